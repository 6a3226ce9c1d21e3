"""Corpora in a PostgreSQL database with pgvector, which any number of machines share."""
