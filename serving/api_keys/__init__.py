"""API keys: of the command line, of a key file and of the database of the corpora."""
