"""Shards: searches return what the whole corpus does, follow its changes, and detect what does not
fit together.
"""

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

from selection.access import Principal
from selection.corpus.corpus import Corpus
from selection.corpus.shards import Shard, ShardCall, shard_folder, update_shards
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Prompt
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.request import SelectionRequest
from selection.selector import Selection, Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from tests.selection.trained_helpers import SHAPE, found, train

_TOPICS = ("cat", "dog", "ship", "bread", "tax", "stone", "river", "lamp")
_DOCUMENTS = [
    Document(
        f"{topic}-{number}.txt",
        f"The {topic} number {number} stands beside the {_TOPICS[number % 8]} and waits for the "
        f"{topic}.",
        {"topic": topic, "number": number},
    )
    for topic in _TOPICS
    for number in range(6)
]
_PROMPTS = [[Prompt("the dog by the river")], [Prompt("bread and tax"), Prompt("a ship of stone")]]


class ShardedHome:
    """Corpora, whole and in any number of shards, and selectors over either."""

    def __init__(self, home: Path, embedder: Embedder, tokenizer: Any) -> None:
        self.home, self._embedder, self._tokenizer = home, embedder, tokenizer
        self.threaded = ThreadedEmbedder(lambda: embedder)
        self._threads: list[ThreadPoolExecutor] = []

    def make_corpus(self, documents: list[Document], name: str = "things") -> Corpus:
        corpus = Corpus.create(
            self.home / "corpora", name, self._embedder, tokenizer_digest(self._tokenizer)
        )
        ingest(corpus, documents, self._embedder, self._tokenizer)
        return corpus

    def shard(
        self,
        corpus: Corpus,
        shards: int,
        on_document: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        roots = [shard_folder(self.home, shard, shards) for shard in range(shards)]
        update_shards(corpus, roots, on_document)
        return roots

    def selector(self, shards: int) -> Selector:
        calls = [self._call(shard_folder(self.home, shard, shards)) for shard in range(shards)]
        config = SelectorConfig(self.home / "corpora", candidates=20, adapters=SHAPE)
        return Selector(config, calls, self.threaded)

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()

    def _call(self, root: Path) -> ShardCall:
        shard, thread = Shard(root), ThreadPoolExecutor(1)
        self._threads.append(thread)

        def call(method: Callable[..., Any], *args: Any) -> Future[Any]:
            return thread.submit(method, shard, *args)

        return call


@pytest.fixture
def home(tmp_path: Path, words: Embedder, tokenizer: Any) -> Iterator[ShardedHome]:
    home = ShardedHome(tmp_path, words, tokenizer)
    yield home
    home.close()


def chosen(selection: Selection) -> list[Any]:
    """The parts of a selection that must not depend on the shards."""
    return [
        selection.corpus,
        selection.ids,
        selection.sequences,
        selection.sources,
        selection.calibration,
    ]


@pytest.mark.parametrize("shards", [1, 2, 4, 7])
@pytest.mark.parametrize("strategy", ["sift", "nn"])
def test_a_sharded_selection_equals_that_of_the_whole_corpus(
    shards: int, strategy: str, home: ShardedHome
) -> None:
    whole = home.selector(0)
    home.shard(home.make_corpus(_DOCUMENTS), shards)
    sharded = home.selector(shards)

    for prompts in _PROMPTS:
        for only in (None, {"type": "gt", "key": "number", "value": 2}):
            one = whole.select(
                SelectionRequest(prompts, "things", steps=12, strategy=strategy, filter=only)
            )
            many = sharded.select(
                SelectionRequest(prompts, "things", steps=12, strategy=strategy, filter=only)
            )
            assert chosen(many) == chosen(one)
            assert many.uncertainty == pytest.approx(one.uncertainty, abs=1e-6)
            assert many.irreducible == pytest.approx(one.irreducible, abs=1e-5)


def test_every_document_lies_in_one_shard(home: ShardedHome) -> None:
    roots = home.shard(home.make_corpus(_DOCUMENTS), 3)

    partitions = [
        {entry.name for entry in Corpus.open(root, "things").documents()} for root in roots
    ]
    assert sum(map(len, partitions)) == len(_DOCUMENTS)
    assert set.union(*partitions) == {document.name for document in _DOCUMENTS}
    assert all(partitions)


def test_updated_shards_equal_the_whole_corpus(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    sharded = home.selector(2)
    sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=3))

    corpus.delete("dog-1.txt")
    changed = Document(
        "dog-2.txt", "The dog number 2 swims in the river, in the river, the dog.", {"topic": "new"}
    )
    new = Document("a-first.txt", "The dog looks at the river once more.", {"topic": "new"})
    home.make_corpus([changed, new])
    home.shard(corpus, 2)

    assert chosen(sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=12))) == chosen(
        home.selector(0).select(SelectionRequest(_PROMPTS[0], "things", steps=12))
    )
    only = {"type": "eq", "key": "topic", "value": "new"}
    sources = sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=12, filter=only)).sources
    assert {source.name for source, _ in sources} == {"dog-2.txt", "a-first.txt"}


def test_a_document_deleted_from_the_corpus_only_is_not_found(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    sharded = home.selector(2)
    (first, _), *_ = sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=1)).sources

    corpus.delete(first.name)

    assert first.name not in {
        s.name for s, _ in sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=20)).sources
    }


def test_deleted_sequences_in_a_shard_do_not_displace_others(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    target_TD = np.eye(1, int(corpus.meta()["dimension"]), dtype=np.float32)
    ids_K, _ = corpus.nearest(target_TD, len(_DOCUMENTS) // 2)
    for each in corpus.read(ids_K.tolist()).values():
        corpus.delete(each.source.name)

    with home.selector(2).searched.open("things") as sharded:
        for k in (1, 2, 5, 100):
            assert (
                sharded.nearest(target_TD, k)[0].tolist()
                == corpus.nearest(target_TD, k)[0].tolist()
            )


def test_an_unresponsive_shard_does_not_affect_other_corpora(home: ShardedHome) -> None:
    home.make_corpus(_DOCUMENTS)
    home.shard(home.make_corpus(_DOCUMENTS, "others"), 2)

    def unresponsive(*_: Any) -> Any:
        raise TimeoutError

    config = SelectorConfig(home.home / "corpora")
    selector = Selector(config, [unresponsive, unresponsive], home.threaded)
    assert selector.select(SelectionRequest(_PROMPTS[0], "things", steps=3)).sources
    with pytest.raises(TimeoutError):
        selector.select(SelectionRequest(_PROMPTS[0], "others", steps=3))


def test_unchanged_documents_are_not_imported_again(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    (root,) = home.shard(corpus, 1)
    before = Corpus.open(root, "things").meta()

    home.shard(corpus, 1)

    assert Corpus.open(root, "things").meta() == before


def test_the_whole_corpus_may_be_the_candidates(home: ShardedHome) -> None:
    home.shard(home.make_corpus(_DOCUMENTS), 3)

    with home.selector(3).searched.open("things") as sharded:
        ids_K, _ = sharded.nearest(
            np.eye(1, int(sharded.meta()["dimension"]), dtype=np.float32), None
        )
    assert len(set(ids_K.tolist())) == len(_DOCUMENTS)


def test_a_corpus_in_no_shard_is_searched_whole(home: ShardedHome) -> None:
    home.shard(home.make_corpus(_DOCUMENTS), 2)
    home.make_corpus(_DOCUMENTS[:6], "others")
    sharded = home.selector(2)

    sources = sharded.select(SelectionRequest(_PROMPTS[0], "others", steps=5)).sources
    assert {source.name for source, _ in sources} <= {document.name for document in _DOCUMENTS[:6]}
    assert sources
    with pytest.raises(CorpusNotFoundError, match="no corpus 'nowhere'"):
        sharded.select(SelectionRequest(_PROMPTS[0], "nowhere", steps=1))


def test_incomplete_partitions_are_not_searched(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)

    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        home.shard(corpus, 2, interrupt)

    whole = home.selector(0).select(SelectionRequest(_PROMPTS[0], "things", steps=12))
    assert chosen(
        home.selector(2).select(SelectionRequest(_PROMPTS[0], "things", steps=12))
    ) == chosen(whole)
    home.shard(corpus, 2)
    assert chosen(
        home.selector(2).select(SelectionRequest(_PROMPTS[0], "things", steps=12))
    ) == chosen(whole)


def test_a_removed_corpus_is_not_found_in_its_shards(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    sharded = home.selector(2)
    corpus.remove()

    with pytest.raises(CorpusNotFoundError):
        sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=1))
    home.make_corpus(_DOCUMENTS[:3])
    # A new corpus of the same name is in no shard.
    sources = sharded.select(SelectionRequest(_PROMPTS[0], "things", steps=12)).sources
    assert {source.name for source, _ in sources} <= {document.name for document in _DOCUMENTS[:3]}


def test_shards_are_hidden_from_principals_who_do_not_see_the_corpus(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    corpus.update_meta({"owner": "alice"})
    sharded = home.selector(2)

    assert sharded.select(
        SelectionRequest(_PROMPTS[0], "things", steps=3, principal=Principal("alice", frozenset()))
    ).ids
    with pytest.raises(CorpusNotFoundError):
        sharded.select(
            SelectionRequest(
                _PROMPTS[0], "things", steps=3, principal=Principal("bob", frozenset())
            )
        )


def test_shards_that_do_not_fit_together_are_refused(home: ShardedHome) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    two, three = home.shard(corpus, 2), home.shard(corpus, 3)
    shutil.rmtree(two[1] / "things")

    with pytest.raises(CorpusError, match="shard 1 of 2 does not fit"):
        home.selector(2).select(SelectionRequest(_PROMPTS[0], "things", steps=1))
    shutil.copytree(three[1] / "things", two[1] / "things")
    with pytest.raises(CorpusError, match="shard 1 of 2 does not fit"):
        home.selector(2).select(SelectionRequest(_PROMPTS[0], "things", steps=1))


def test_shards_of_other_embeddings_are_replaced(home: ShardedHome, words: Embedder) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    corpus.reembed(words)

    with pytest.raises(CorpusError, match="does not fit"):
        home.selector(2).select(SelectionRequest(_PROMPTS[0], "things", steps=1))
    home.shard(corpus, 2)
    assert chosen(
        home.selector(2).select(SelectionRequest(_PROMPTS[0], "things", steps=12))
    ) == chosen(home.selector(0).select(SelectionRequest(_PROMPTS[0], "things", steps=12)))


@given(
    shards=st.integers(1, 5),
    k=st.integers(1, 60),
    targets=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_nearest_of_all_shards_equal_those_of_the_whole_corpus(
    shards: int, k: int, targets: int, seed: int, home: ShardedHome
) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, shards)
    drawn = np.random.default_rng(seed).normal(size=(targets, int(corpus.meta()["dimension"])))
    targets_TD = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    with home.selector(shards).searched.open("things") as sharded:
        _, many_KD = sharded.nearest(targets_TD, k)
    _, one_KD = corpus.nearest(targets_TD, k)

    def similarity(vectors_KD: Any) -> Any:
        return np.abs(vectors_KD @ targets_TD.T).max(axis=1)

    assert len(many_KD) == len(one_KD)
    assert similarity(many_KD) == pytest.approx(similarity(one_KD), abs=1e-6)


def test_a_damaged_partition_is_reported_with_its_folder(
    corpora: Path, words: Embedder, tmp_path: Path
) -> None:
    corpus = Corpus.create(corpora, "nx", words, "tokenizer")
    folder = tmp_path / "shard" / "nx"
    folder.mkdir(parents=True)
    (folder / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    with pytest.raises(
        CorpusError,
        match="delete its folder, which contains copies only, and run this command again",
    ) as caught:
        update_shards(corpus, [tmp_path / "shard"])

    assert caught.value.__notes__ == [f"its folder is {folder}"]
    corpus.close()


@pytest.mark.parametrize("change", ["delete", "replace"])
def test_the_adapter_of_a_sharded_corpus_is_that_of_the_whole(
    change: str, home: ShardedHome
) -> None:
    corpus = home.make_corpus(_DOCUMENTS)
    home.shard(corpus, 2)
    train(corpus)
    sharded = home.selector(2)
    request = SelectionRequest(_PROMPTS[0], "things", steps=3, start=True)
    assert sharded.select(request).start == sharded.start(request).start == found(corpus)

    # The shards still hold the document.
    if change == "delete":
        corpus.delete("cat-1.txt")
    else:
        home.make_corpus([Document("cat-1.txt", "Another text.")]).close()

    selection = sharded.select(request)
    assert selection.start is sharded.start(request).start is None
    assert "were deleted or replaced" in str(selection.no_start)
    corpus.close()
