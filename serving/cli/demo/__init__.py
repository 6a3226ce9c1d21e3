"""The command `mayfly demo`: an invented format, and a passage of code."""
