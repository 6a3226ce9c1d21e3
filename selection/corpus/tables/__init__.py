"""The tables of a corpus's database beside documents and sequences, and the connection to it."""
