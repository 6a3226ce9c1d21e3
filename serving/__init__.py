"""serving: the HTTP server, the adaptation of a request, and the command `mayfly`."""

__version__ = "0.2.0"
