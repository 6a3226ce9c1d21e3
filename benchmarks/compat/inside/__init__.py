"""Pytest files for clients' own environments, which know only the server's address."""
