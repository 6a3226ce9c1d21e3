"""What threads share: the embedder in turns, and corpora that stay open as long as they are the
ones on disk.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import Chunk, CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Embeddings, Prompt
from selection.threaded_embedder import ThreadedEmbedder


class Counting:
    """An embedder that fails when two are in it, and notes who was."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.texts: list[str] = []
        self._embedder = embedder
        self._inside = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Embeddings:
        assert self._inside.acquire(blocking=False), "two at once"
        self.texts += texts
        vectors = self._embedder.embed(texts)
        self._inside.release()
        return vectors

    def windows(self, prompt: Prompt) -> list[str]:
        return self._embedder.windows(prompt)


def test_whoever_embeds_all_the_time_holds_nobody_up(words: Embedder) -> None:
    counting = Counting(words)
    shared = ThreadedEmbedder(lambda: counting)
    begun, done = threading.Event(), threading.Event()

    def embed_all_the_time() -> None:
        while not done.is_set():
            shared.embed(["much"])
            begun.set()

    busy = [threading.Thread(target=embed_all_the_time) for _ in range(3)]
    for thread in busy:
        thread.start()
    assert begun.wait(30)
    waited = []
    for i in range(100):
        before = len(counting.texts)
        shared.embed([f"request {i}"])
        waited.append(counting.texts.index(f"request {i}") - before)
    done.set()
    for thread in busy:
        thread.join()

    # Each thread that waits already goes first, once; now and then some more, before the request
    # has come.
    assert sorted(waited)[50] <= len(busy) + 1


def test_an_embedder_that_fails_gives_its_turn_on(words: Embedder) -> None:
    class Failing(Counting):
        """Injects a fault: an embedder that fails at one text."""

        def embed(self, texts: Sequence[str]) -> Embeddings:
            if "fails" in texts:
                raise RuntimeError("out of memory")
            return super().embed(texts)

    shared = ThreadedEmbedder(lambda: Failing(words))

    with pytest.raises(RuntimeError, match="out of memory"):
        shared.embed(["fails"])

    assert shared.embed(["next"]).shape == (1, words.dimension)
    assert shared.windows(Prompt("next")) == ["next"]


def test_a_corpus_stays_open_whatever_it_is_called(corpora: Path, words: Embedder) -> None:
    made = Corpus.create(corpora, "notes", words, "t", {"name": "my notes"})
    shared = CorpusPool(corpora, words, "t")

    held = []
    for name in ("notes", made.meta()["id"], "my notes", "notes"):
        with shared.use(name) as corpus:
            held.append(corpus)

    assert all(corpus is held[0] for corpus in held)
    shared.close()
    with shared.use("notes") as corpus:
        assert corpus is not held[0]
    shared.close()
    made.close()


def test_a_corpus_removed_and_made_again_is_another(corpora: Path, words: Embedder) -> None:
    shared = CorpusPool(corpora, words, "t")
    for text in ("before", "after"):
        made = Corpus.create(corpora, "notes", words, "t")
        made.add(text, text, [Chunk(0, text, (1, 2))], words.embed([text]))
        with shared.use("notes") as corpus:
            ids, _ = corpus.nearest(words.embed([text]), 10)
            assert [source.text for source, _ in corpus.read(ids.tolist()).values()] == [text]
        made.close()
        shutil.rmtree(corpora / "notes")
    with pytest.raises(CorpusNotFoundError), shared.use("notes"):
        pass
    shared.close()


def test_a_corpus_that_was_embedded_anew_meanwhile_is_refused(
    corpora: Path, words: Embedder, other_words: Embedder
) -> None:
    made = Corpus.create(corpora, "notes", words, "t")
    shared = CorpusPool(corpora, words, "t")
    with shared.use("notes"):
        pass

    made.reembed(other_words)
    made.close()

    with pytest.raises(CorpusError, match="mayfly corpus reembed"), shared.use("notes"):
        pass
    shared.close()
    others = CorpusPool(corpora, other_words, "another")
    with pytest.raises(CorpusError, match="another model's tokenizer"), others.use("notes"):
        pass
    others.close()
