"""The workers of the corpora: concurrent selections, their seconds, and cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from selection.access import Principal
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import CorpusNotFoundError
from selection.embedding import Embedder, Embeddings, Prompt, load_embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.limit import SecondsSpentError
from selection.request import SelectionRequest
from selection.selector import SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.workers.corpora import CorporaWorker
from serving.workers.stages import SelectorWorker


class Turnstile:
    """An embedder that counts concurrent calls, and can block them."""

    def __init__(self, words: Embedder) -> None:
        self.name, self.revision, self.dimension = words.name, words.revision, words.dimension
        self.at_once = self.entered = 0
        self.on_entry: Callable[[], object] = lambda: None
        self._words = words
        self._inside = 0

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self._inside += 1
        self.entered += 1
        self.at_once = max(self.at_once, self._inside)
        self.on_entry()
        self._inside -= 1
        return self._words.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        return [prompt.text]


async def test_selections_at_once_give_what_they_give_one_by_one(
    corpora: Path, nano: str, tokenizer: Any
) -> None:
    embedder = load_embedder("base-model", base_model=nano)
    corpus = Corpus.create(corpora, "notes", embedder, tokenizer_digest(tokenizer))
    ingest(
        corpus,
        [Document(f"{i}", f"The story of number {i} and its {i + 1} friends.") for i in range(5)],
        embedder,
        tokenizer,
    )
    corpus.close()
    stage = SelectorWorker(SelectorConfig(corpora, embedder="base-model", base_model=nano))
    prompts = ["number 3", "friends", "a story"]
    alone = [
        await stage.select(SelectionRequest([Prompt(prompt)], "notes", steps=4))
        for prompt in prompts
    ]

    together = await asyncio.gather(
        *(stage.select(SelectionRequest([Prompt(prompt)], "notes", steps=4)) for prompt in prompts)
    )

    assert [(s.ids, s.uncertainty) for s in together] == [(s.ids, s.uncertainty) for s in alone]
    assert all(len(s.ids) == 4 for s in alone)
    with pytest.raises(CorpusNotFoundError):
        await stage.select(SelectionRequest([Prompt("x")], "absent", steps=4))
    with pytest.raises(CorpusNotFoundError):
        await stage.select(
            SelectionRequest(
                [Prompt("x")], "notes", steps=4, principal=Principal("alice", frozenset({"other"}))
            )
        )


@pytest.fixture
def turnstile(words: Embedder) -> Turnstile:
    return Turnstile(words)


class Held:
    """A turnstile that holds its callers until it is let go."""

    def __init__(self, turnstile: Turnstile) -> None:
        self.reached, self._free = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            loop.call_soon_threadsafe(self.reached.set)
            self._free.wait(60)

        turnstile.on_entry = hold

    def let_go(self) -> None:
        self._free.set()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_selection_ends_within_a_unit_of_work_and_is_waited_for(
    corpora: Path, turnstile: Turnstile, times: int
) -> None:
    # Arrange: a selection that is held in the first of its many parts.
    Corpus.create(corpora, "notes", turnstile, "a tokenizer").close()
    stage = SelectorWorker(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: turnstile))
    before, held = turnstile.entered, Held(turnstile)
    prompts = [Prompt(f"{number} " + "one " * 500) for number in range(20)]
    task = asyncio.create_task(stage.select(SelectionRequest(prompts, "notes", steps=1)))
    await held.reached.wait()

    # Act: cancel, and give the event loop every chance to go on too early.
    for _ in range(times):
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
    too_early = task.done()
    held.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not too_early
    assert turnstile.entered == before + 1
    assert (
        await stage.select(SelectionRequest([Prompt("two")], "notes", steps=1))
    ).stop == "corpus"
    assert turnstile.at_once == 1


async def test_a_small_selection_overtakes_large_ones(corpora: Path, turnstile: Turnstile) -> None:
    # Arrange: more large selections than asyncio's own pool has threads.
    Corpus.create(corpora, "notes", turnstile, "a tokenizer").close()
    stage = SelectorWorker(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: turnstile))
    before, held = turnstile.entered, Held(turnstile)
    prompts = [Prompt(f"{number} " + "one " * 500) for number in range(60)]
    large = [
        asyncio.create_task(stage.select(SelectionRequest(prompts, "notes", steps=1)))
        for _ in range(40)
    ]
    await held.reached.wait()

    small = asyncio.create_task(stage.select(SelectionRequest([Prompt("small")], "notes", steps=1)))
    await asyncio.sleep(0)
    held.let_go()
    await small

    # No more than a few parts of each, where all together have 2,400.
    assert turnstile.entered - before < 20 * len(large)
    assert not any(task.done() for task in large)
    for task in large:
        task.cancel()
    await asyncio.gather(*large, return_exceptions=True)


async def test_a_selection_ends_with_its_seconds(corpora: Path, turnstile: Turnstile) -> None:
    Corpus.create(corpora, "notes", turnstile, "a tokenizer").close()
    stage = SelectorWorker(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: turnstile))
    before = turnstile.entered

    with pytest.raises(SecondsSpentError):
        await stage.select(SelectionRequest([Prompt("one")], "notes", steps=1), seconds=0.0)

    assert turnstile.entered == before


async def test_a_list_and_a_short_search_overtake_long_searches(
    corpora: Path, nano: str, turnstile: Turnstile
) -> None:
    config = SelectorConfig(corpora, base_model=nano)
    stage = CorporaWorker(config, embedder=ThreadedEmbedder(lambda: turnstile))
    store = (await stage.call(Library.create_store, "hive")).id
    before, held = turnstile.entered, Held(turnstile)
    queries = [f"{number} " + "one " * 500 for number in range(16)]
    long = [asyncio.create_task(stage.call(Library.search, store, queries)) for _ in range(10)]
    await held.reached.wait()

    assert (await stage.call(Library.store, store)).id == store
    short = asyncio.create_task(stage.call(Library.search, store, ["wax"]))
    await asyncio.sleep(0)
    held.let_go()

    assert await short == ()
    assert turnstile.entered - before < 8 * len(long)
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)
