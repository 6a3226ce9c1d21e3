"""ThreadedEmbedder: threads take turns, and a failing call does not block the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from selection.embedding import Embedder, Embeddings, Prompt
from selection.threaded_embedder import ThreadedEmbedder


class ExclusiveEmbedder:
    """An embedder that fails when two threads use it at once, and records the texts."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.texts: list[str] = []
        self._embedder = embedder
        self._in_use = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Embeddings:
        assert self._in_use.acquire(blocking=False), "two threads at once"
        self.texts += texts
        vectors = self._embedder.embed(texts)
        self._in_use.release()
        return vectors

    def windows(self, prompt: Prompt) -> list[str]:
        return self._embedder.windows(prompt)


def test_constant_users_do_not_block_other_requests(words: Embedder) -> None:
    embedder = ExclusiveEmbedder(words)
    threaded = ThreadedEmbedder(lambda: embedder)
    started, done = threading.Event(), threading.Event()

    def embed_constantly() -> None:
        while not done.is_set():
            threaded.embed(["much"])
            started.set()

    busy = [threading.Thread(target=embed_constantly) for _ in range(3)]
    for thread in busy:
        thread.start()
    assert started.wait(30)
    overtaken = []
    for i in range(100):
        before = len(embedder.texts)
        threaded.embed([f"request {i}"])
        overtaken.append(embedder.texts.index(f"request {i}") - before)
    done.set()
    for thread in busy:
        thread.join()

    # Each thread that is already waiting goes first, once; occasionally more go before the request
    # arrives.
    assert sorted(overtaken)[50] <= len(busy) + 1


def test_a_failing_embedder_does_not_block_the_next_request(words: Embedder) -> None:
    class FailingEmbedder(ExclusiveEmbedder):
        """Fault injection: an embedder that fails at one text."""

        def embed(self, texts: Sequence[str]) -> Embeddings:
            if "fails" in texts:
                raise RuntimeError("out of memory")
            return super().embed(texts)

    threaded = ThreadedEmbedder(lambda: FailingEmbedder(words))

    with pytest.raises(RuntimeError, match="out of memory"):
        threaded.embed(["fails"])

    assert threaded.embed(["next"]).shape == (1, words.dimension)
    assert threaded.windows(Prompt("next")) == ["next"]


def test_a_batch_is_embedded_while_its_caller_prepares_the_next(words: Embedder) -> None:
    batches = [[f"text {i} of batch {batch}" for i in range(3)] for batch in range(4)]
    embedding = threading.Event()

    class AnnouncingEmbedder(ExclusiveEmbedder):
        """An embedder that announces each batch."""

        def embed(self, texts: Sequence[str]) -> Embeddings:
            embedding.set()
            return super().embed(texts)

    threaded = ThreadedEmbedder(lambda: AnnouncingEmbedder(words))

    def prepared() -> Iterator[list[str]]:
        for number, batch in enumerate(batches):
            # The batch before is being embedded, although its vectors were not asked for yet.
            assert number == 0 or embedding.wait(30)
            embedding.clear()
            yield batch

    vectors = list(threaded.embed_ahead(prepared()))

    assert [each.tolist() for each in vectors] == [words.embed(each).tolist() for each in batches]


def test_an_error_of_a_batch_reaches_the_caller(words: Embedder) -> None:
    class FailingEmbedder(ExclusiveEmbedder):
        """Fault injection: an embedder that fails at one text."""

        def embed(self, texts: Sequence[str]) -> Embeddings:
            if "fails" in texts:
                raise RuntimeError("out of memory")
            return super().embed(texts)

    ahead = ThreadedEmbedder(lambda: FailingEmbedder(words)).embed_ahead([["a"], ["fails"], ["b"]])

    assert next(ahead).shape == (1, words.dimension)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(ahead)
