"""Bits per byte of held-out text, by strategy, setting, steps and seconds."""
