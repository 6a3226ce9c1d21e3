"""Corpora in PostgreSQL beside those in a folder: the same picks, their costs, and kills."""
