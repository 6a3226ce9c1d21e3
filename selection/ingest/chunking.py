"""Chunking: a text is split into chunks of the model's tokens.

A chunk has at most `max_length` tokens and ends at a definition or paragraph if one is near, else
at the end of a line, else anywhere. A long text is tokenised window by window, so that memory is
bounded and the work can be cancelled between two windows.

This module is independent of files and corpora.
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
    """How documents are split into chunks.

    Attributes:
        max_length: maximum number of tokens of a chunk.
        overlap: number of tokens at the end of a chunk that the next one repeats.
        unique: omit a chunk whose tokens the corpus already contains. The chunk belongs to the
            document that first contained it, and is deleted with it.

    Raises:
        SelectionOptionError: a length or overlap out of range.
    """

    max_length: int = 256
    overlap: int = 0
    unique: bool = False

    def __post_init__(self) -> None:
        if not self.max_length >= 2:
            raise SelectionOptionError(
                f"the chunk length must be at least 2 tokens, got {self.max_length}"
            )
        if not 0 <= self.overlap <= self.max_length // 2:
            raise SelectionOptionError(
                f"the overlap of chunks of {self.max_length} tokens must be from 0 to "
                f"{self.max_length // 2} tokens, got {self.overlap}"
            )


def split(
    text: str,
    tokenizer: Any,
    chunking: Chunking,
    check_cancelled: Callable[[], None] = lambda: None,
) -> list[Chunk]:
    """Split a text into chunks.

    A chunk ends where the last definition or paragraph in its second half begins, else at the last
    end of a line there, else when it is full. A final chunk of one token is dropped, since it has
    nothing to predict.

    Args:
        text: the whole text.
        tokenizer: the base model's tokenizer.
        chunking: length and overlap of chunks.
        check_cancelled: called before each window is tokenised; an exception that it raises ends
            the work.
    """
    chunks: list[Chunk] = []
    token_objects: dict[int, int] = {}
    start, width = 0, WINDOW
    while start < len(text):
        check_cancelled()
        end = _window_end(text, start, width)
        new, rest = _split_window(
            text[start:end], start, tokenizer, chunking, token_objects, last=end == len(text)
        )
        if end < len(text) and rest == start:
            # The window has no complete chunk: widen it.
            width *= 2
            continue
        chunks += new
        if end == len(text):
            break
        start, width = rest, WINDOW
    return chunks


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits that two tokenizers share only if they give the same tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def _window_end(text: str, start: int, width: int) -> int:
    """The end of a window: after the last paragraph in its second half, else the last line or word
    there.
    """
    if len(text) - start <= width:
        return len(text)
    middle, end = start + width // 2, start + width
    for mark in ("\n\n", "\n", " "):
        position = text.rfind(mark, middle, end)
        if position >= 0:
            return position + len(mark)
    return end


def _split_window(
    window: str,
    offset: int,
    tokenizer: Any,
    chunking: Chunking,
    token_objects: dict[int, int],
    *,
    last: bool,
) -> tuple[list[Chunk], int]:
    """The chunks of a window, and the position in the text where the rest begins.

    In all windows but the last, a chunk that reaches the window's end is left to the next window.

    Args:
        offset: position of the window in the text.
        token_objects: one int object for each token, however often it occurs, since a long text has
            millions of tokens.
        last: whether the text ends with this window.
    """
    encoded = tokenizer(
        window, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    boundaries = {match.end() for match in _BOUNDARY.finditer(window)}
    chunks: list[Chunk] = []
    start = 0
    while start < len(ids):
        end = min(start + chunking.max_length, len(ids))
        if end == len(ids) and not last:
            break
        if end < len(ids):
            ends = range(end, start + chunking.max_length // 2, -1)
            line_ends = [e for e in ends if window[offsets[e - 1][1] - 1] == "\n"]
            end = next(
                (e for e in line_ends if offsets[e - 1][1] in boundaries),
                line_ends[0] if line_ends else end,
            )
        if end - start > 1:
            begin, stop = offsets[start][0], offsets[end - 1][1]
            tokens = tuple(token_objects.setdefault(token, token) for token in ids[start:end])
            chunks.append(Chunk(offset + begin, window[begin:stop], tokens))
        if end == len(ids):
            break
        start = max(end - chunking.overlap, start + 1)
    rest = offsets[start][0] if start < len(ids) else len(window)
    return chunks, offset + rest
