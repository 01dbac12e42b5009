"""What knows nothing of speech, of a model or of a run: seeds, files, caches, units, YAML trees."""
