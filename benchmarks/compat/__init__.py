"""Compatibility: clients from PyPI, in environments of their own, against a real server."""
