"""Latency of each stage of a request, by budget and load, beside plain vLLM."""
