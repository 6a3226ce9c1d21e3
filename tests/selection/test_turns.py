"""Turns: requests share an embedder and corpora, none waits for the whole of another, each ends
when told to.
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

_LONG = "bees " * (BATCH_CHARACTERS // 5)  # fills a part


class Slow:
    """Injects slowness: an embedder that does what a test says at each part."""

    def __init__(self, words: Embedder) -> None:
        self.name, self.revision, self.dimension = words.name, words.revision, words.dimension
        self.parts: list[list[str]] = []
        self.tokenised: list[Prompt] = []
        self.window_count = 1
        self.on_part: Callable[[], object] = lambda: None
        self._words = words

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self.parts.append(list(texts))
        self.on_part()
        return self._words.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        self.tokenised.append(prompt)
        return [f"{prompt.text} {window}" for window in range(self.window_count)]


class Gate:
    """Holds the embedder in its first part until it is opened."""

    def __init__(self, slow: Slow) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()
        slow.on_part = self._pass

    def _pass(self) -> None:
        self.reached.set()
        assert self._opened.wait(60)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def slow(words: Embedder) -> Slow:
    return Slow(words)


@pytest.fixture
def selector(
    corpora: Path, slow: Slow, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Selector:
    monkeypatch.setattr(selector_module, "load_embedder", lambda *_, **__: slow)
    for name in ("hive", "tracks"):
        corpus = Corpus.create(corpora, name, slow, tokenizer_digest(tokenizer))
        texts = [f"Number {i} of the {name}: bees and trains, {i} in all." for i in range(8)]
        ingest(
            corpus, [Document(f"{name} {i}", text) for i, text in enumerate(texts)], slow, tokenizer
        )
        corpus.close()
    made = Selector(SelectorConfig(corpora, candidates=4, regularisation=0.1))
    slow.parts.clear()
    return made


@pytest.fixture
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)


def queued(shared: ThreadedEmbedder, count: int) -> None:
    """Wait until so many units of work wait for their turn."""
    until = time.monotonic() + 30
    while shared._thread._work_queue.qsize() < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_small_one_waits_for_one_part_of_a_large_one(
    slow: Slow, threads: ThreadPoolExecutor
) -> None:
    shared, gate = ThreadedEmbedder(lambda: slow), Gate(slow)
    large = threads.submit(shared.embed, [_LONG] * 50)
    gate.reached.wait(30)
    small = threads.submit(shared.embed, ["small"])
    queued(shared, 1)

    gate.open()

    assert small.result(30).shape == (1, slow.dimension)
    assert large.result(60).shape == (50, slow.dimension)
    assert slow.parts.index(["small"]) == 1


def test_large_ones_take_turns(slow: Slow, threads: ThreadPoolExecutor) -> None:
    shared, gate = ThreadedEmbedder(lambda: slow), Gate(slow)
    texts = {name: [f"{name} {i} {_LONG}" for i in range(10)] for name in ("first", "second")}
    first = threads.submit(shared.embed, texts["first"])
    gate.reached.wait(30)
    second = threads.submit(shared.embed, texts["second"])
    queued(shared, 1)

    def other_waits() -> None:
        for _ in range(300):  # in vain once the other has ended
            if shared._thread._work_queue.qsize():
                return
            time.sleep(0.001)

    slow.on_part = other_waits
    gate.open()
    first.result(30), second.result(30)

    order = [part[0].split()[0] for part in slow.parts]
    behind = [abs(order[:i].count("first") - order[:i].count("second")) for i in range(len(order))]
    assert max(behind) <= 1
    assert len(order) == 20


def test_parts_hold_few_texts_and_come_back_in_order(slow: Slow, words: Embedder) -> None:
    shared = ThreadedEmbedder(lambda: slow)
    texts = [f"text {i} {'of bees ' * (i * 13 % 200)}" for i in range(60)]

    vectors = shared.embed(texts)

    assert [text for part in slow.parts for text in part] == texts
    assert all(len(part) <= BATCH_TEXTS for part in slow.parts)
    assert all(len(part) == 1 or sum(map(len, part)) <= BATCH_CHARACTERS for part in slow.parts)
    assert (vectors == words.embed(texts)).all()
    assert shared.embed([]).shape == (0, slow.dimension)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_selection_ends_within_a_unit_of_work_once_its_seconds_are_over(
    selector: Selector, slow: Slow, after: int
) -> None:
    # Arrange: a clock that each part of the embedding moves on by a second.
    now = [0.0]

    def pass_a_second() -> None:
        now[0] += 1.0

    slow.on_part = pass_a_second
    prompts = [Prompt(f"{_LONG} {i}") for i in range(20)]

    with pytest.raises(SecondsSpentError):
        selector.select(
            SelectionRequest(prompts, "hive", steps=3),
            limit=Limit(float(after), clock=lambda: now[0]),
        )

    assert len(slow.parts) == after


def test_seconds_that_suffice_change_nothing(selector: Selector) -> None:
    prompts = [Prompt("bees"), Prompt("trains in all")]

    free = selector.select(SelectionRequest(prompts, "hive", steps=5))
    limited = selector.select(SelectionRequest(prompts, "hive", steps=5), limit=Limit(1000.0))

    assert (limited.ids, limited.uncertainty, limited.truncation) == (
        free.ids,
        free.uncertainty,
        None,
    )


@pytest.mark.parametrize("strategy", ["sift", "nn", "nn-f", "us", "random", "hull"])
def test_a_choice_can_be_broken_off(selector: Selector, slow: Slow, strategy: str) -> None:
    # Arrange: a clock that each look moves on by a second. It is looked at more often than before
    # the choice.
    looks = [0]

    def look() -> float:
        looks[0] += 1
        return float(looks[0])

    selector.select(
        SelectionRequest([Prompt("bees")], "hive", steps=4, strategy=strategy),
        limit=Limit(1000.0, clock=look),
    )
    whole = looks[0]

    looks[0] = 0
    with pytest.raises(SecondsSpentError):
        selector.select(
            SelectionRequest([Prompt("bees")], "hive", steps=4, strategy=strategy),
            limit=Limit(whole - 2, clock=look),
        )


def test_what_nobody_waits_for_is_not_embedded_any_more(
    selector: Selector, slow: Slow, threads: ThreadPoolExecutor
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
    assert len(slow.parts) == 1


def test_a_selection_that_embeds_holds_no_corpus(
    selector: Selector, slow: Slow, threads: ThreadPoolExecutor
) -> None:
    gate = Gate(slow)
    selecting = threads.submit(selector.select, SelectionRequest([Prompt("bees")], "hive", steps=3))
    gate.reached.wait(30)

    with selector.corpora.use("hive", limit=Limit(30.0)) as corpus:
        assert corpus.counts() == (8, 8)

    gate.open()
    assert len(selecting.result(30).ids) == 3


def test_of_more_prompts_than_the_bound_some_are_looked_at_and_the_others_not_even_tokenised(
    selector: Selector, slow: Slow
) -> None:
    prompts = [Prompt(f"prompt {i}") for i in range(2048)]

    selection = selector.select(SelectionRequest(prompts, "hive", steps=3))

    assert selection.truncation == Truncation(MAX_TARGETS, 2048, "prompts")
    assert len(slow.tokenised) == sum(map(len, slow.parts)) == MAX_TARGETS
    assert (slow.tokenised[0], slow.tokenised[-1]) == (prompts[0], prompts[-1])


def test_of_more_windows_than_the_bound_the_last_of_each_prompt_come_first(
    selector: Selector, slow: Slow
) -> None:
    slow.window_count = 4
    prompts = [Prompt(f"prompt {i}") for i in range(20)]

    selection = selector.select(SelectionRequest(prompts, "hive", steps=3))

    embedded = [text for part in slow.parts for text in part]
    assert selection.truncation == Truncation(MAX_TARGETS, 80, "windows")
    assert len(embedded) == MAX_TARGETS
    assert {f"prompt {i} 3" for i in range(20)} <= set(embedded)
    assert embedded == [
        text for i in range(20) for text in (f"prompt {i} 2", f"prompt {i} 3") if text in embedded
    ]


def test_a_corpus_that_was_replaced_between_search_and_reading_is_searched_again(
    selector: Selector, corpora: Path, slow: Slow, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: while the first choice is made, another corpus of that name takes the place of the
    # first.
    choose = registry.choose
    chosen = []

    def replacing(*args: Any, **kwargs: Any) -> Any:
        chosen.append(1)
        if len(chosen) == 1:
            Corpus.open(corpora, "hive").remove()
            corpus = Corpus.create(corpora, "hive", slow, tokenizer_digest(tokenizer))
            ingest(
                corpus,
                [Document(f"new {i}", f"New text {i} of wax.") for i in range(8)],
                slow,
                tokenizer,
            )
            corpus.close()
        return choose(*args, **kwargs)

    monkeypatch.setattr(selector_module, "choose", replacing)

    selection = selector.select(SelectionRequest([Prompt("bees")], "hive", steps=3))

    assert len(chosen) == 2
    assert all(source.name.startswith("new") for source, _ in selection.sources)


def test_another_corpus_is_not_waited_for(selector: Selector) -> None:
    with selector.corpora.use("hive"), selector.corpora.use("tracks", limit=Limit(30.0)) as other:
        assert other.name == "tracks"


def test_a_corpus_in_use_is_waited_for_within_the_seconds(
    selector: Selector, threads: ThreadPoolExecutor
) -> None:
    def use(limit: Limit) -> str:
        with selector.corpora.use("hive", limit=limit) as corpus:
            return corpus.name

    abandoned = threading.Event()
    with selector.corpora.use("hive"):
        waiting: Future[str] = threads.submit(use, Limit(60.0))
        gone: Future[str] = threads.submit(use, Limit(abandoned=abandoned))
        abandoned.set()
        with pytest.raises(AbandonedError):
            gone.result(30)
        assert not waiting.done()
    assert waiting.result(30) == "hive"


def test_a_corpus_that_is_closed_while_it_is_used_stays_open_until_its_user_is_done(
    corpora: Path, slow: Slow
) -> None:
    Corpus.create(corpora, "notes", slow, "t").close()
    shared = CorpusPool(corpora, slow, "t")

    with shared.use("notes") as corpus:
        shared.close()
        assert corpus.counts() == (0, 0)

    with pytest.raises(Exception, match="closed"):
        corpus.counts()
    with shared.use("notes") as another:
        assert another is not corpus
    shared.close()


def test_long_searches_hold_up_neither_a_list_nor_a_short_search(
    corpora: Path, slow: Slow, tokenizer: Any, threads: ThreadPoolExecutor
) -> None:
    library = Library(corpora, slow, tokenizer, corpora.parent / "files")
    store = library.create_store("hive").id
    gate = Gate(slow)
    long = threads.submit(library.search, store, [f"{i} {_LONG}" for i in range(16)])
    gate.reached.wait(30)
    short = threads.submit(library.search, store, ["wax"])
    queued(library._embedder, 1)

    assert library.store(store).id == store

    gate.open()
    assert short.result(30) == long.result(30) == ()
    assert slow.parts.index(["wax 0"]) == 1
    library.close()


def test_a_store_that_is_deleted_while_its_search_embeds_is_missing(
    corpora: Path, slow: Slow, tokenizer: Any, threads: ThreadPoolExecutor
) -> None:
    library = Library(corpora, slow, tokenizer, corpora.parent / "files")
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
