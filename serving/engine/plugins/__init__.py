"""What Mayfly changes in vLLM's processes, by vLLM's own plugin mechanism."""
