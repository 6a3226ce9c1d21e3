"""The models in the cache: their cards, their names, and the import of GGUF files."""
