"""Limits on the completions of one request, and the check for valid token ids."""

from __future__ import annotations

from typing import Any

# Largest number of completions of one prompt.
MAX_N = 128
# Largest number of completions of one request, over all its prompts.
MAX_ANSWERS = 2048


def are_tokens(tokens: list[Any], vocabulary: int) -> bool:
    """Whether every entry is a token id of a vocabulary of `vocabulary` tokens."""
    return all(type(token) is int and 0 <= token < vocabulary for token in tokens)
