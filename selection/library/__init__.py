"""The library of corpora behind vector stores: uploads, attached files, search."""
