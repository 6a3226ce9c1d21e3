"""The corpora of a server as vector stores: uploads, attached files, search."""
