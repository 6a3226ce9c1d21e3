"""One embedder for the threads of one process.

A tokenizer that two threads use at once fails, so callers take turns. Texts are embedded in small
parts, and callers take turns part by part: one with few texts waits for one part of each other
caller, whatever the others still have to embed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np

from selection.embedding import Embedder, Embeddings, Prompt
from selection.limit import UNLIMITED, Limit

# Embedded in one turn: several short texts, or one that fills an embedder's window. More long ones
# at once are no faster, and hold others up for longer.
PART_TEXTS, PART_CHARACTERS = 8, 1024
P = ParamSpec("P")
Result = TypeVar("Result")


class ThreadedEmbedder:
    """An embedder that threads use in turns, each for a part of its texts.

    It is loaded and computes in a thread of its own: OpenMP keeps a team for each thread that has
    computed, and where teams have more threads than there are cores it lets none spin, which makes
    an embedding half as long again.

    Args:
        load: makes the embedder.
    """

    def __init__(self, load: Callable[[], Embedder]) -> None:
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._tokenising = ThreadPoolExecutor(1, "segments")
        self._embedder = self._thread.submit(load).result()
        self.name, self.revision, self.dimension = (
            self._embedder.name,
            self._embedder.revision,
            self._embedder.dimension,
        )

    def embed(self, texts: Sequence[str], limit: Limit = UNLIMITED) -> Embeddings:
        """Unit vectors [N, D] of texts.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached; at most one more part was
                embedded.
        """
        embed = self._embedder.embed
        return np.concatenate(
            [_in_turn(self._thread, limit, embed, part) for part in _parts(texts)]
        )

    def segments(self, prompt: Prompt, limit: Limit = UNLIMITED) -> list[str]:
        """The prompt's last windows, in order.

        Raises:
            AbandonedError, SecondsSpentError: as `embed`.
        """
        # In a thread of its own: a short text would wait for a part of a long one twice.
        return _in_turn(self._tokenising, limit, self._embedder.segments, prompt)


def _in_turn(
    thread: ThreadPoolExecutor,
    limit: Limit,
    work: Callable[P, Result],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """Do one unit of work when its turn comes: a caller waits with one unit at a time, first come,
    first served.
    """

    def unit() -> Result:
        # Here and not before the wait: what has become useless meanwhile must not hold up the next
        # caller.
        limit.check()
        return work(*args, **kwargs)

    return thread.submit(unit).result()


def _parts(texts: Sequence[str]) -> list[list[str]]:
    """The texts in parts, each for one turn; one part at least."""
    parts: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        if parts[-1] and (len(parts[-1]) == PART_TEXTS or characters + len(text) > PART_CHARACTERS):
            parts.append([])
            characters = 0
        parts[-1].append(text)
        characters += len(text)
    return parts
