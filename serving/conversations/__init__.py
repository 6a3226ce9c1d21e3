"""The cache of adapters for the next turn of a conversation."""
