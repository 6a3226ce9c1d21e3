"""The tables of one corpus in PostgreSQL, as `selection.corpus.tables` has them in SQLite."""
