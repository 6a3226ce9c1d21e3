"""The loop that trains the adapters of many requests, step by step."""
