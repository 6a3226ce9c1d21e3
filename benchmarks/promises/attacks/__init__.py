"""Malformed requests, seeded, each with the response that it must get."""
