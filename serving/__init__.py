"""serving: the HTTP door, the journey of a request, and the command `mayfly`."""

__version__ = "0.2.0"
