"""Turns: requests share an embedder and corpora, none waits for all of another, and each can be
cancelled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from selection import selector as selector_module
from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Embeddings, Prompt
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.limit import AbandonedError, Limit, SecondsSpentError
from selection.request import SelectionRequest
from selection.selector import Selector, SelectorConfig
from selection.strategies import registry
from selection.targets import MAX_TARGETS, Truncation
from selection.threaded_embedder import BATCH_CHARACTERS, BATCH_TEXTS, ThreadedEmbedder

_LONG = "bees " * (BATCH_CHARACTERS // 5)  # fills a batch


class SlowEmbedder:
    """Fault injection: an embedder that calls a test's function at each batch."""

    def __init__(self, words: Embedder) -> None:
        self.name, self.revision, self.dimension = words.name, words.revision, words.dimension
        self.batches: list[list[str]] = []
        self.tokenised: list[Prompt] = []
        self.window_count = 1
        self.on_batch: Callable[[], object] = lambda: None
        self._words = words

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self.batches.append(list(texts))
        self.on_batch()
        return self._words.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        self.tokenised.append(prompt)
        return [f"{prompt.text} {window}" for window in range(self.window_count)]


class Gate:
    """Blocks the embedder in its first batch until it is opened."""

    def __init__(self, slow: SlowEmbedder) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()
        slow.on_batch = self._pass

    def _pass(self) -> None:
        self.reached.set()
        assert self._opened.wait(60)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def slow(words: Embedder) -> SlowEmbedder:
    return SlowEmbedder(words)


@pytest.fixture
def selector(corpora: Path, slow: SlowEmbedder, tokenizer: Any) -> Selector:
    for name in ("hive", "tracks"):
        corpus = Corpus.create(corpora, name, slow, tokenizer_digest(tokenizer))
        texts = [f"Number {i} of the {name}: bees and trains, {i} in all." for i in range(8)]
        ingest(
            corpus, [Document(f"{name} {i}", text) for i, text in enumerate(texts)], slow, tokenizer
        )
        corpus.close()
    config = SelectorConfig(corpora, candidates=4, regularisation=0.1)
    selector = Selector(config, embedder=ThreadedEmbedder(lambda: slow))
    slow.batches.clear()
    return selector


@pytest.fixture
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)


def wait_for_queue(threaded: ThreadedEmbedder, count: int) -> None:
    """Wait until `count` units of work are in the queue."""
    until = time.monotonic() + 30
    while threaded._thread._work_queue.qsize() < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_small_request_waits_for_one_batch_of_a_large_one(
    slow: SlowEmbedder, threads: ThreadPoolExecutor
) -> None:
    threaded, gate = ThreadedEmbedder(lambda: slow), Gate(slow)
    large = threads.submit(threaded.embed, [_LONG] * 50)
    gate.reached.wait(30)
    small = threads.submit(threaded.embed, ["small"])
    wait_for_queue(threaded, 1)

    gate.open()

    assert small.result(30).shape == (1, slow.dimension)
    assert large.result(60).shape == (50, slow.dimension)
    assert slow.batches.index(["small"]) == 1


def test_large_requests_take_turns(slow: SlowEmbedder, threads: ThreadPoolExecutor) -> None:
    threaded, gate = ThreadedEmbedder(lambda: slow), Gate(slow)
    texts = {name: [f"{name} {i} {_LONG}" for i in range(10)] for name in ("first", "second")}
    first = threads.submit(threaded.embed, texts["first"])
    gate.reached.wait(30)
    second = threads.submit(threaded.embed, texts["second"])
    wait_for_queue(threaded, 1)

    def wait_for_the_other() -> None:
        """Wait until the other request has a unit of work in the queue, or has ended."""
        until = time.monotonic() + 30
        while not threaded._thread._work_queue.qsize() and not (first.done() or second.done()):
            assert time.monotonic() < until
            time.sleep(0.001)

    slow.on_batch = wait_for_the_other
    gate.open()
    first.result(30), second.result(30)

    order = [batch[0].split()[0] for batch in slow.batches]
    differences = [
        abs(order[:i].count("first") - order[:i].count("second")) for i in range(len(order))
    ]
    assert max(differences) <= 1
    assert len(order) == 20


def test_batches_have_few_texts_and_keep_their_order(slow: SlowEmbedder, words: Embedder) -> None:
    threaded = ThreadedEmbedder(lambda: slow)
    texts = [f"text {i} {'of bees ' * (i * 13 % 200)}" for i in range(60)]

    vectors = threaded.embed(texts)

    assert [text for batch in slow.batches for text in batch] == texts
    assert all(len(batch) <= BATCH_TEXTS for batch in slow.batches)
    assert all(
        len(batch) == 1 or sum(map(len, batch)) <= BATCH_CHARACTERS for batch in slow.batches
    )
    assert (vectors == words.embed(texts)).all()
    assert threaded.embed([]).shape == (0, slow.dimension)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_selection_ends_within_a_unit_of_work_once_its_seconds_are_over(
    selector: Selector, slow: SlowEmbedder, after: int
) -> None:
    # Arrange: a clock that each batch of the embedding advances by a second.
    now = [0.0]

    def pass_a_second() -> None:
        now[0] += 1.0

    slow.on_batch = pass_a_second
    prompts = [Prompt(f"{_LONG} {i}") for i in range(20)]

    with pytest.raises(SecondsSpentError):
        selector.select(
            SelectionRequest(prompts, "hive", steps=3),
            limit=Limit(float(after), clock=lambda: now[0]),
        )

    assert len(slow.batches) == after


def test_a_limit_that_suffices_changes_nothing(selector: Selector) -> None:
    prompts = [Prompt("bees"), Prompt("trains in all")]

    free = selector.select(SelectionRequest(prompts, "hive", steps=5))
    limited = selector.select(SelectionRequest(prompts, "hive", steps=5), limit=Limit(1000.0))

    assert (limited.ids, limited.uncertainty, limited.truncation) == (
        free.ids,
        free.uncertainty,
        None,
    )


@pytest.mark.parametrize("strategy", ["sift", "nn", "nn-f", "us", "random", "hull"])
def test_a_choice_can_be_cancelled(selector: Selector, slow: SlowEmbedder, strategy: str) -> None:
    # Arrange: a clock that each check advances by a second. The last checks are within the choice.
    checks = [0]

    def clock() -> float:
        checks[0] += 1
        return float(checks[0])

    selector.select(
        SelectionRequest([Prompt("bees")], "hive", steps=4, strategy=strategy),
        limit=Limit(1000.0, clock=clock),
    )
    total = checks[0]

    checks[0] = 0
    with pytest.raises(SecondsSpentError):
        selector.select(
            SelectionRequest([Prompt("bees")], "hive", steps=4, strategy=strategy),
            limit=Limit(total - 2, clock=clock),
        )


def test_an_abandoned_selection_is_not_embedded_further(
    selector: Selector, slow: SlowEmbedder, threads: ThreadPoolExecutor
) -> None:
    gate, abandoned = Gate(slow), threading.Event()
    prompts = [Prompt(f"{_LONG} {i}") for i in range(20)]
    selecting = threads.submit(
        selector.select,
        SelectionRequest(prompts, "hive", steps=3),
        Limit(abandoned=abandoned),
    )
    gate.reached.wait(30)

    abandoned.set()
    gate.open()

    with pytest.raises(AbandonedError):
        selecting.result(30)
    assert len(slow.batches) == 1


def test_a_selection_that_embeds_locks_no_corpus(
    selector: Selector, slow: SlowEmbedder, threads: ThreadPoolExecutor
) -> None:
    gate = Gate(slow)
    selecting = threads.submit(selector.select, SelectionRequest([Prompt("bees")], "hive", steps=3))
    gate.reached.wait(30)

    with selector.corpora.open("hive", limit=Limit(30.0)) as corpus:
        assert corpus.counts() == (8, 8)

    gate.open()
    assert len(selecting.result(30).ids) == 3


def test_only_as_many_prompts_as_the_limit_are_tokenised(
    selector: Selector, slow: SlowEmbedder
) -> None:
    prompts = [Prompt(f"prompt {i}") for i in range(2048)]

    selection = selector.select(SelectionRequest(prompts, "hive", steps=3))

    assert selection.truncation == Truncation(MAX_TARGETS, 2048, "prompts")
    assert len(slow.tokenised) == sum(map(len, slow.batches)) == MAX_TARGETS
    assert (slow.tokenised[0], slow.tokenised[-1]) == (prompts[0], prompts[-1])


def test_the_last_window_of_each_prompt_comes_first_when_there_are_too_many(
    selector: Selector, slow: SlowEmbedder
) -> None:
    slow.window_count = 4
    prompts = [Prompt(f"prompt {i}") for i in range(20)]

    selection = selector.select(SelectionRequest(prompts, "hive", steps=3))

    embedded = [text for batch in slow.batches for text in batch]
    assert selection.truncation == Truncation(MAX_TARGETS, 80, "windows")
    assert len(embedded) == MAX_TARGETS
    assert {f"prompt {i} 3" for i in range(20)} <= set(embedded)
    assert embedded == [
        text for i in range(20) for text in (f"prompt {i} 2", f"prompt {i} 3") if text in embedded
    ]


def test_a_corpus_that_was_replaced_between_search_and_reading_is_searched_again(
    selector: Selector,
    corpora: Path,
    slow: SlowEmbedder,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Arrange: during the first choice the corpus is replaced by another one of that name.
    choices = []

    def choose_and_replace(*args: Any, **kwargs: Any) -> Any:
        choices.append(1)
        if len(choices) == 1:
            Corpus.open(corpora, "hive").remove()
            corpus = Corpus.create(corpora, "hive", slow, tokenizer_digest(tokenizer))
            ingest(
                corpus,
                [Document(f"new {i}", f"New text {i} of wax.") for i in range(8)],
                slow,
                tokenizer,
            )
            corpus.close()
        return registry.choose(*args, **kwargs)

    monkeypatch.setattr(selector_module, "choose", choose_and_replace)

    selection = selector.select(SelectionRequest([Prompt("bees")], "hive", steps=3))

    assert len(choices) == 2
    assert all(source.name.startswith("new") for source, _ in selection.sources)


def test_a_corpus_in_use_does_not_block_another(selector: Selector) -> None:
    with selector.corpora.open("hive"), selector.corpora.open("tracks", limit=Limit(30.0)) as other:
        assert other.name == "tracks"


def test_the_wait_for_a_corpus_in_use_ends_with_the_limit(
    selector: Selector, threads: ThreadPoolExecutor
) -> None:
    def use(limit: Limit) -> str:
        with selector.corpora.open("hive", limit=limit) as corpus:
            return corpus.name

    abandoned = threading.Event()
    with selector.corpora.open("hive"):
        waiting: Future[str] = threads.submit(use, Limit(60.0))
        gone: Future[str] = threads.submit(use, Limit(abandoned=abandoned))
        abandoned.set()
        with pytest.raises(AbandonedError):
            gone.result(30)
        assert not waiting.done()
    assert waiting.result(30) == "hive"


def test_a_corpus_that_is_closed_during_use_stays_open_until_it_is_released(
    corpora: Path, slow: SlowEmbedder
) -> None:
    Corpus.create(corpora, "notes", slow, "t").close()
    threaded = CorpusPool(corpora, slow, "t")

    with threaded.open("notes") as corpus:
        threaded.close()
        assert corpus.counts() == (0, 0)

    with pytest.raises(Exception, match="closed"):
        corpus.counts()
    with threaded.open("notes") as another:
        assert another is not corpus
    threaded.close()


def test_long_searches_delay_neither_a_lookup_nor_a_short_search(
    corpora: Path, slow: SlowEmbedder, tokenizer: Any, threads: ThreadPoolExecutor
) -> None:
    library = Library(corpora, ThreadedEmbedder(lambda: slow), tokenizer, corpora.parent / "files")
    store = library.create_store("hive").id
    gate = Gate(slow)
    long = threads.submit(library.search, store, [f"{i} {_LONG}" for i in range(16)])
    gate.reached.wait(30)
    short = threads.submit(library.search, store, ["wax"])
    wait_for_queue(library._embedder, 1)

    assert library.store(store).id == store

    gate.open()
    assert short.result(30) == long.result(30) == ()
    assert slow.batches.index(["wax 0"]) == 1
    library.close()


def test_a_store_deleted_during_the_embedding_of_a_search_is_missing(
    corpora: Path, slow: SlowEmbedder, tokenizer: Any, threads: ThreadPoolExecutor
) -> None:
    library = Library(corpora, ThreadedEmbedder(lambda: slow), tokenizer, corpora.parent / "files")
    store = library.create_store("hive").id
    gate = Gate(slow)
    searching = threads.submit(library.search, store, ["wax"])
    gate.reached.wait(30)

    library.delete_store(store)
    gate.open()

    with pytest.raises(Exception, match="there is no vector store") as missing:
        searching.result(30)
    assert not isinstance(missing.value, CorpusNotFoundError)
    assert not isinstance(missing.value, CorpusError)
    library.close()
