"""Chunking: a text becomes sequences of the model's tokens.

A sequence has at most `max_length` tokens and ends at a definition or paragraph where one is near,
else at the end of a line, else anywhere. A long text is tokenised window by window, so that memory
is bounded and the work can be broken off between two windows.

It knows nothing of files or corpora.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selection.corpus.sqlite_store import Chunk
from selection.errors import SelectionOptionError

WINDOW = 1 << 18  # characters tokenised at once; a tokenizer needs some 75 bytes for each
_BOUNDARY = re.compile(
    r"\n\s*\n|\n(?=(?:async def|def|class|fn|func|function|public|private|@|#{1,6} ))"
)


@dataclass(frozen=True)
class Chunking:
    """How documents become sequences.

    Attributes:
        max_length: tokens of a sequence at most.
        overlap: tokens at the end of a sequence that begin the next one, too.
        unique: leave out a sequence whose very tokens the corpus holds already. It then belongs to
            the document that brought it first, and goes with it.
    """

    max_length: int = 256
    overlap: int = 0
    unique: bool = False

    def __post_init__(self) -> None:
        if not self.max_length >= 2:
            raise SelectionOptionError(f"a sequence has at least 2 tokens, not {self.max_length}")
        if not 0 <= self.overlap <= self.max_length // 2:
            raise SelectionOptionError(
                f"sequences of {self.max_length} tokens can overlap by 0 to {self.max_length // 2}"
            )


def split(
    text: str, tokenizer: Any, cut: Chunking, alive: Callable[[], None] = lambda: None
) -> list[Chunk]:
    """Cut a text into sequences.

    A sequence ends where the last definition or paragraph in its second half begins, else at the
    last line's end there, else when it is full. A last sequence of a single token is dropped: it
    has nothing to predict.

    Args:
        text: the whole text.
        tokenizer: the base model's.
        cut: the length of sequences, and how they overlap.
        alive: called before each window is tokenised; what it raises ends the work.
    """
    pieces: list[Chunk] = []
    known: dict[int, int] = {}
    start, width = 0, WINDOW
    while start < len(text):
        alive()
        end = _window_end(text, start, width)
        found, rest = _pieces(text[start:end], start, tokenizer, cut, known, last=end == len(text))
        if end < len(text) and rest == start:
            # A sequence that is longer than a window is looked for in a wider one.
            width *= 2
            continue
        pieces += found
        if end == len(text):
            break
        start, width = rest, WINDOW
    return pieces


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits that two tokenizers share only if they give the same tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def _window_end(text: str, start: int, width: int) -> int:
    """Where a window ends: behind a paragraph, a line or a word in its second half, if there is
    one.
    """
    if len(text) - start <= width:
        return len(text)
    middle, end = start + width // 2, start + width
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, middle, end)
        if found >= 0:
            return found + len(mark)
    return end


def _pieces(
    window: str, before: int, tokenizer: Any, cut: Chunking, known: dict[int, int], *, last: bool
) -> tuple[list[Chunk], int]:
    """The sequences of a window that begins `before` characters into the text, and where the rest
    begins.

    Of all windows but the last, what reaches the window's end is left for the next one.
    """
    encoded = tokenizer(
        window, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    boundaries = {match.end() for match in _BOUNDARY.finditer(window)}
    pieces: list[Chunk] = []
    start = 0
    while start < len(ids):
        end = min(start + cut.max_length, len(ids))
        if end == len(ids) and not last:
            break
        if end < len(ids):
            ends = range(end, start + cut.max_length // 2, -1)
            at_line = [e for e in ends if window[offsets[e - 1][1] - 1] == "\n"]
            end = next(
                (e for e in at_line if offsets[e - 1][1] in boundaries),
                at_line[0] if at_line else end,
            )
        if end - start > 1:
            first, final = offsets[start][0], offsets[end - 1][1]
            # Each number is one object however often it occurs: a long text has millions of tokens.
            tokens = tuple(known.setdefault(token, token) for token in ids[start:end])
            pieces.append(Chunk(before + first, window[first:final], tokens))
        if end == len(ids):
            break
        start = max(end - cut.overlap, start + 1)
    rest = offsets[start][0] if start < len(ids) else len(window)
    return pieces, before + rest
