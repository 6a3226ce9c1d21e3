"""Compatibility: the clients that people use, each in an environment of its own, against a real
server.
"""
