"""A server on one machine: Ray, HAProxy, their supervision and their files."""
