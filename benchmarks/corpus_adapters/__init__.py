"""Adapters of corpora: what they gain and cost, and what becomes of them when documents go."""
