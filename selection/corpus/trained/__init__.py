"""The adapter of a corpus: its files, what of it may be used, and the plan by which it is trained.

Knows weights as bytes only: neither torch nor `adapters` is imported here.
"""
