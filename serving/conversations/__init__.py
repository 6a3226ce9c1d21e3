"""Adapters that are kept for the next turn of a conversation."""
