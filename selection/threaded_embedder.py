"""ThreadedEmbedder: one embedder for the threads of one process.

A tokenizer fails when two threads use it at once, so callers take turns. Texts are embedded in
small batches, and callers take turns batch by batch: a caller with few texts waits for one batch of
each other caller, however many texts the others have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np

from selection.embedding import Embedder, Embeddings, Prompt
from selection.limit import UNLIMITED, Limit

# One turn embeds several short texts, or one that fills an embedder's window. More long texts at
# once are no faster, and delay other callers for longer.
BATCH_TEXTS, BATCH_CHARACTERS = 8, 1024
P = ParamSpec("P")
Result = TypeVar("Result")


class ThreadedEmbedder:
    """An embedder that threads use in turns, each for a batch of its texts.

    It is loaded and computes in a thread of its own: OpenMP keeps a team for each thread that has
    computed, and when the teams have more threads than there are cores, none of them spins, which
    makes an embedding take half as long again.

    Args:
        load: creates the embedder.
    """

    def __init__(self, load: Callable[[], Embedder]) -> None:
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._tokenizing_thread = ThreadPoolExecutor(1, "tokenizer")
        self._embedder = self._thread.submit(load).result()
        self.name, self.revision, self.dimension = (
            self._embedder.name,
            self._embedder.revision,
            self._embedder.dimension,
        )

    def embed(self, texts: Sequence[str], limit: Limit = UNLIMITED) -> Embeddings:
        """Unit vectors [N, D] of texts.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached; at most one more batch was
                embedded.
        """
        embed = self._embedder.embed
        return np.concatenate(
            [_in_turn(self._thread, limit, embed, batch) for batch in _batches(texts)]
        )

    def embed_ahead(self, batches: Iterable[Sequence[str]]) -> Iterator[Embeddings]:
        """The unit vectors of each batch, in order, for a process that does nothing else.

        A batch is one turn. It is embedded while the caller uses the vectors of the one before, and
        prepares the one after.
        """
        pending: Future[Embeddings] | None = None
        for batch in batches:
            submitted = self._thread.submit(self._embedder.embed, batch)
            if pending is not None:
                yield pending.result()
            pending = submitted
        if pending is not None:
            yield pending.result()

    def windows(self, prompt: Prompt, limit: Limit = UNLIMITED) -> list[str]:
        """The prompt's last windows, in order.

        Raises:
            AbandonedError, SecondsSpentError: as `embed`.
        """
        # In a thread of its own, because a short text would otherwise wait twice for a batch of a
        # long one.
        return _in_turn(self._tokenizing_thread, limit, self._embedder.windows, prompt)


def _in_turn(
    thread: ThreadPoolExecutor,
    limit: Limit,
    work: Callable[P, Result],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    """Do one unit of work in its turn, first come, first served: each caller has at most one unit
    in the queue.
    """

    def unit() -> Result:
        # Checked in the turn and not before the wait, so that work abandoned meanwhile does not
        # delay the next caller.
        limit.check()
        return work(*args, **kwargs)

    return thread.submit(unit).result()


def _batches(texts: Sequence[str]) -> list[list[str]]:
    """The texts in batches of one turn each; at least one batch."""
    batches: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        if batches[-1] and (
            len(batches[-1]) == BATCH_TEXTS or characters + len(text) > BATCH_CHARACTERS
        ):
            batches.append([])
            characters = 0
        batches[-1].append(text)
        characters += len(text)
    return batches
