"""Validation of what clients send: names, metadata, attributes, chunk lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selection.corpus.filters import Scalar
from selection.errors import LibraryError

# OpenAI's limits for metadata and attributes: keys per object, characters per key and per value.
_KEYS, _KEY, _VALUE = 16, 64, 512
# Tokens per chunk.
_SHORTEST, _LONGEST = 8, 4096


def checked_text(value: Any, what: str, max_characters: int) -> str:
    """A short text in one line.

    Args:
        value: what the client sent.
        what: its name, with which an error message begins.
        max_characters: maximum number of characters.

    Raises:
        LibraryError: an invalid text.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= max_characters:
        raise LibraryError(f"{what} must be a string of 1 to {max_characters} characters")
    if not is_unicode(value) or any(character < " " for character in value):
        raise LibraryError(f"{what} must be Unicode text without control characters")
    return value


def checked_attributes(
    value: Any, what: str, scalar: tuple[type, ...] = (str, int, float, bool)
) -> Mapping[str, Scalar]:
    """A flat object within OpenAI's limits; None becomes an empty one.

    Args:
        value: what the client sent.
        what: its name, for error messages.
        scalar: the permitted types of values.

    Raises:
        LibraryError: an invalid object.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _KEYS:
        raise LibraryError(f"`{what}` must be an object of at most {_KEYS} keys")
    for key, each in value.items():
        checked_text(key, f"a key of `{what}`", _KEY)
        if type(each) not in scalar:
            kinds = ", ".join(kind.__name__ for kind in scalar)
            raise LibraryError(f"`{what}.{key}` must be of type {kinds}, not nested")
        if isinstance(each, str):
            if len(each) > _VALUE or not is_unicode(each):
                raise LibraryError(
                    f"`{what}.{key}` must be Unicode text of at most {_VALUE} characters"
                )
            if "\0" in each:
                raise LibraryError(f"`{what}.{key}` must not contain the character U+0000")
        elif not abs(each) < 1 << 63:
            raise LibraryError(f"`{what}.{key}` must be a finite number below 2^63")
    return dict(value)


def parse_chunking(length: int, overlap: int) -> tuple[int, int]:
    """Tokens per chunk and tokens of overlap, if they are within the limits.

    Raises:
        LibraryError: they are not.
    """
    if not _SHORTEST <= length <= _LONGEST or not 0 <= overlap <= length // 2:
        raise LibraryError(
            f"a chunk must have {_SHORTEST} to {_LONGEST} tokens of the served model and overlap "
            "by at most half of them"
        )
    return length, overlap


def is_unicode(text: str) -> bool:
    """Whether a text is free of surrogates, which UTF-8 cannot encode."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
