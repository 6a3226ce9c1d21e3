"""Trains the adapter of a corpus ahead of requests: in the command, or beside the requests of a
server.
"""
