"""Uploaded files, until they are deleted: in a folder, or in the database of the corpora."""
