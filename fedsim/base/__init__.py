"""General tools, independent of speech, models and runs: seeds, files, caches, units, YAML."""
