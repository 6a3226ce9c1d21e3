"""A corpus in shards answers as the whole would, follows its changes, and says what does not fit together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection import selector as selector_module
from selection.corpus import Corpus
from selection.documents import Document, ingest, tokenizer_digest
from selection.embedding import Embedder, Prompt
from selection.reader import Reader
from selection.selector import Selection, Selector, SelectorConfig
from selection.shards import Ask, Shard, folder_of, follow
from selection.store import CorpusError, CorpusNotFoundError

_TOPICS = ("cat", "dog", "ship", "bread", "tax", "stone", "river", "lamp")
_DOCUMENTS = [
    Document(
        f"{topic}-{number}.txt",
        f"The {topic} number {number} stands beside the {_TOPICS[number % 8]} and waits for the {topic}.",
        {"topic": topic, "number": number},
    )
    for topic in _TOPICS
    for number in range(6)
]
_PROMPTS = [[Prompt("the dog by the river")], [Prompt("bread and tax"), Prompt("a ship of stone")]]


class Shelf:
    """One corpus, whole and in any number of shards, and selectors over each."""

    def __init__(self, home: Path, embedder: Embedder, tokenizer: Any) -> None:
        self.home, self._embedder, self._tokenizer = home, embedder, tokenizer
        self._threads: list[ThreadPoolExecutor] = []

    def fill(self, documents: list[Document], name: str = "things") -> Corpus:
        corpus = Corpus.create(self.home / "corpora", name, self._embedder, tokenizer_digest(self._tokenizer))
        ingest(corpus, documents, self._embedder, self._tokenizer)
        return corpus

    def shard(self, corpus: Corpus, shards: int) -> list[Path]:
        roots = [folder_of(self.home, shard, shards) for shard in range(shards)]
        follow(corpus, roots, self._embedder)
        return roots

    def selector(self, shards: int) -> Selector:
        asks = [self._ask(folder_of(self.home, shard, shards)) for shard in range(shards)]
        return Selector(SelectorConfig(self.home / "corpora", candidates=20), asks)

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()

    def _ask(self, root: Path) -> Ask:
        shard, thread = Shard(root), ThreadPoolExecutor(1)
        self._threads.append(thread)

        def ask(method: Callable[..., Any], *args: Any) -> Future[Any]:
            return thread.submit(method, shard, *args)

        return ask


@pytest.fixture
def shelf(tmp_path: Path, words: Embedder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(selector_module, "load_embedder", lambda *_, **__: words)
    shelf = Shelf(tmp_path, words, tokenizer)
    yield shelf
    shelf.close()


def told(selection: Selection) -> list[Any]:
    """What is chosen, without the numbers of sequences, which belong to where they lie."""
    return [selection.corpus, selection.sequences, [(source.name, times) for source, times in selection.sources]]


@pytest.mark.parametrize("shards", [1, 2, 4, 7])
@pytest.mark.parametrize("strategy", ["sift", "nn"])
def test_the_selection_is_that_of_the_whole(shards: int, strategy: str, shelf: Shelf) -> None:
    whole = shelf.selector(0)
    shelf.shard(shelf.fill(_DOCUMENTS), shards)
    sharded = shelf.selector(shards)

    for prompts in _PROMPTS:
        for only in (None, {"type": "gt", "key": "number", "value": 2}):
            one = whole.select(prompts, "things", steps=12, strategy=strategy, only=only)
            many = sharded.select(prompts, "things", steps=12, strategy=strategy, only=only)
            assert told(many) == told(one)
            assert many.uncertainty == pytest.approx(one.uncertainty, abs=1e-6)
            assert many.irreducible == pytest.approx(one.irreducible, abs=1e-5)


def test_every_document_lies_in_one_shard(shelf: Shelf) -> None:
    roots = shelf.shard(shelf.fill(_DOCUMENTS), 3)

    parts = [{entry.name for entry in Corpus.open(root, "things").documents()} for root in roots]
    assert sum(map(len, parts)) == len(_DOCUMENTS)
    assert set.union(*parts) == {document.name for document in _DOCUMENTS}
    assert all(parts)


def test_shards_follow_the_whole(shelf: Shelf) -> None:
    corpus = shelf.fill(_DOCUMENTS)
    shelf.shard(corpus, 2)
    sharded = shelf.selector(2)
    sharded.select(_PROMPTS[0], "things", steps=3)

    corpus.delete("dog-1.txt")
    changed = Document("dog-2.txt", "The dog number 2 swims in the river, in the river, the dog.", {"topic": "new"})
    again = Document("cat-1.txt", _DOCUMENTS[1].text, {"topic": "other"})
    shelf.fill([changed, again])
    shelf.shard(corpus, 2)

    assert told(sharded.select(_PROMPTS[0], "things", steps=12)) == told(
        shelf.selector(0).select(_PROMPTS[0], "things", steps=12)
    )
    other = {"type": "eq", "key": "topic", "value": "other"}
    assert {s.name for s, _ in sharded.select(_PROMPTS[0], "things", steps=3, only=other).sources} <= {"cat-1.txt"}


def test_what_is_there_is_not_added_again(shelf: Shelf) -> None:
    corpus = shelf.fill(_DOCUMENTS)
    (root,) = shelf.shard(corpus, 1)
    before = Corpus.open(root, "things").meta()["generation"]

    shelf.shard(corpus, 1)

    assert Corpus.open(root, "things").meta()["generation"] == before


def test_a_corpus_in_no_shard_is_found_whole(shelf: Shelf) -> None:
    shelf.shard(shelf.fill(_DOCUMENTS), 2)
    shelf.fill(_DOCUMENTS[:6], "others")
    sharded = shelf.selector(2)

    assert {s.name for s, _ in sharded.select(_PROMPTS[0], "others", steps=5).sources} <= {
        document.name for document in _DOCUMENTS[:6]
    }
    with pytest.raises(CorpusNotFoundError, match="no corpus 'nowhere'"):
        sharded.select(_PROMPTS[0], "nowhere", steps=1)


def test_who_does_not_see_the_whole_does_not_see_its_shards(shelf: Shelf) -> None:
    corpus = shelf.fill(_DOCUMENTS)
    corpus.remember({"owner": "alice"})
    shelf.shard(corpus, 2)
    sharded = shelf.selector(2)

    assert sharded.select(_PROMPTS[0], "things", steps=3, reader=Reader("alice", frozenset())).ids
    with pytest.raises(CorpusNotFoundError):
        sharded.select(_PROMPTS[0], "things", steps=3, reader=Reader("bob", frozenset()))


def test_shards_that_do_not_fit_together_are_told(shelf: Shelf) -> None:
    corpus = shelf.fill(_DOCUMENTS)
    two, three = shelf.shard(corpus, 2), shelf.shard(corpus, 3)
    shutil.rmtree(two[1] / "things")
    shutil.copytree(three[1] / "things", two[1] / "things")

    with pytest.raises(CorpusError, match="mayfly corpus shard things"):
        shelf.selector(2).select(_PROMPTS[0], "things", steps=1)


def test_a_folder_that_holds_another_corpus_of_that_name_is_left_alone(shelf: Shelf, words: Embedder) -> None:
    corpus = shelf.fill(_DOCUMENTS)
    root = folder_of(shelf.home, 0, 1)
    root.mkdir(parents=True)
    Corpus.create(root, "things", words, corpus.meta()["tokenizer"]).close()

    with pytest.raises(CorpusError, match="holds another corpus 'things'"):
        shelf.shard(corpus, 1)


@given(shards=st.integers(1, 5), k=st.integers(1, 60), targets=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_nearest_of_all_shards_are_those_of_the_whole(
    shards: int, k: int, targets: int, seed: int, shelf: Shelf
) -> None:
    corpus = shelf.fill(_DOCUMENTS)
    shelf.shard(corpus, shards)
    drawn = np.random.default_rng(seed).normal(size=(targets, int(corpus.meta()["dimension"])))
    targets_TD = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    with shelf.selector(shards).sharded.use("things") as sharded:
        _, many_KD = sharded.nearest(targets_TD, k)
    _, one_KD = corpus.nearest(targets_TD, k)

    def similarity(vectors_KD: Any) -> Any:
        return np.abs(vectors_KD @ targets_TD.T).max(axis=1)

    assert similarity(many_KD) == pytest.approx(similarity(one_KD), abs=1e-6)
