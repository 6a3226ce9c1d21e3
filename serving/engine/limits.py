"""How many completions one request may ask the engine for, and which token ids are its model's."""

from __future__ import annotations

from typing import Any

MAX_N = 128  # completions of one prompt
MAX_ANSWERS = 2048  # completions of one request, over all its prompts


def are_tokens(tokens: list[Any], vocabulary: int) -> bool:
    """Whether every entry is a token id of a vocabulary of that size."""
    return all(type(token) is int and 0 <= token < vocabulary for token in tokens)
