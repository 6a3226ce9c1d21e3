"""What runs in a client's own environment: pytest files that know the server's address and nothing
of Mayfly's code.
"""
