"""Corpora: documents in SQLite, their embeddings in an index derived from it, and the shards of
both.
"""
