"""Speech: models (adapters over transformers), corpora, audio reading and scoring."""
