"""The journey where a stage hangs: the request is answered in its seconds, and says why it is not
adapted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Adapter
from adapters.trainer import TrainerConfig
from adapters.training import TrainingRequest
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Prompt
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.selector import SelectorConfig
from selection.targets import MAX_TARGETS, Truncation
from selection.threaded_embedder import ThreadedEmbedder
from serving.adaptation import pipeline as adaptation_module
from serving.adaptation import workers
from serving.adaptation.pipeline import Adaptation
from serving.adaptation.wish import AdaptationRequest
from serving.adaptation.workers import SelectorWorker, TrainerWorker
from serving.budget import Budget
from serving.engine.current_request import LoadedAdapter
from serving.errors import AdaptationFailedError, HangingError

WISH = AdaptationRequest((Prompt("a hive of bees"),), Budget(steps=3, seconds=0.3), (), "notes")


class NoEngine:
    """Is never reached."""

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        raise AssertionError("there should be nothing to load")

    async def unload(self, loaded: LoadedAdapter) -> None:
        raise AssertionError("there should be nothing to unload")


@pytest.fixture
def selector(
    corpora: Path, words: Embedder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> SelectorWorker:
    monkeypatch.setattr(adaptation_module, "LATE_SECONDS", 0.3)
    corpus = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    ingest(
        corpus, [Document("bees", "A hive of bees keeps itself warm in winter.")], words, tokenizer
    )
    corpus.close()
    return SelectorWorker(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: words))


@pytest.fixture(scope="module")
def trainer(nano: str) -> TrainerWorker:
    return TrainerWorker(TrainerConfig(nano, rank=4))


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """A lock that another thread holds and does not give back, as something that hangs would."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def test_a_trainer_that_hangs_costs_no_more_than_the_seconds(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = Adaptation(WISH, selector, trainer, NoEngine())
    with held(trainer._trainer._loop.model_lock):
        begun = time.monotonic()
        loaded = await adaptation.speaker()
        waited = time.monotonic() - begun
        await adaptation.discard()

    assert loaded is None
    assert waited < 3.0
    assert adaptation.report is not None
    assert (adaptation.report.adapted, adaptation.report.stop) == (False, "seconds")
    assert adaptation.report.reason == "the seconds were spent before the trainer answered"
    assert (await trainer.train(TrainingRequest([[1, 2, 3]]))).stop == "steps"  # it is as it was


async def test_a_selector_that_hangs_costs_no_more_than_the_seconds(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = Adaptation(WISH, selector, trainer, NoEngine())
    with held(selector._selector.corpora._lock):
        loaded = await adaptation.speaker()
        await adaptation.discard()

    assert loaded is None
    assert adaptation.report is not None
    assert adaptation.report.reason == "the seconds were spent before anything was chosen"


async def test_selecting_counts_against_the_seconds(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = Adaptation(
        replace(WISH, budget=Budget(steps=3, seconds=1e-9)), selector, trainer, NoEngine()
    )

    loaded = await adaptation.speaker()
    await adaptation.discard()

    assert loaded is None
    assert adaptation.report is not None
    assert (adaptation.report.stop, adaptation.report.seconds) == ("seconds", {})
    assert adaptation.report.reason == "the seconds were spent before anything was chosen"


async def test_the_report_says_what_was_left_out(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    prompts = tuple(Prompt(f"bees {number}") for number in range(100))
    # Nothing to train on.
    wish = replace(WISH, budget=Budget(steps=3), only={"type": "eq", "key": "none", "value": 1})

    clamped = Adaptation(replace(wish, prompts=prompts), selector, trainer, NoEngine())
    await clamped.speaker()
    before = Adaptation(
        replace(wish, truncation=Truncation(MAX_TARGETS, 2048, "prompts")),
        selector,
        trainer,
        NoEngine(),
    )
    await before.speaker()
    all_of_it = Adaptation(wish, selector, trainer, NoEngine())
    await all_of_it.speaker()

    told = [each.report.targets for each in (clamped, before, all_of_it) if each.report is not None]
    assert told == [
        {"used": MAX_TARGETS, "of": 100, "unit": "prompts"},
        {"used": MAX_TARGETS, "of": 2048, "unit": "prompts"},
        None,
    ]


async def test_who_requires_an_adapter_is_told_in_time_too(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = Adaptation(replace(WISH, required=True), selector, trainer, NoEngine())
    with held(trainer._trainer._loop.model_lock):
        with pytest.raises(AdaptationFailedError, match="before the trainer answered"):
            await adaptation.speaker()
        await adaptation.discard()


async def test_a_trainer_that_hangs_is_not_healthy(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TrainerWorker(TrainerConfig(tiny_llama, rank=4))
    monkeypatch.setattr(workers, "STILL_SECONDS", 0.2)
    monkeypatch.setattr(workers, "STILL_TIMES", 0.0)
    await trainer.check_health()
    with held(trainer._trainer._loop.model_lock):
        training = asyncio.create_task(trainer.train(TrainingRequest([[1, 2, 3]])))
        await asyncio.sleep(0.1)
        await trainer.check_health()
        await asyncio.sleep(0.4)
        with pytest.raises(HangingError, match="hangs"):
            await trainer.check_health()
        with pytest.raises(HangingError, match="hangs"):
            await training
        with pytest.raises(HangingError, match="hangs"):  # although nobody waits any more
            await trainer.check_health()
    assert (
        await trainer.train(TrainingRequest([[1, 2, 3]]))
    ).stop == "steps"  # it has come to itself
    await trainer.check_health()


async def test_a_trainer_that_takes_step_after_step_is_healthy(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TrainerWorker(TrainerConfig(tiny_llama, rank=4))
    monkeypatch.setattr(workers, "STILL_SECONDS", 0.2)
    monkeypatch.setattr(workers, "STILL_TIMES", 10.0)
    training = asyncio.create_task(
        trainer.train(TrainingRequest([[1, 2, 3]] * 20_000, seconds=1.0))
    )
    while not training.done():
        await trainer.check_health()
        await asyncio.sleep(0.02)
    assert (await training).stop == "seconds"


async def test_warmed_up_stages_know_the_corpus_and_what_a_step_takes(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    # Arrange: what was measured while other processes started says that no step fits.
    times = trainer._trainer._loop.times
    with trainer._trainer._loop.model_lock:
        for _ in range(40):
            for each in (times.step, times.probe, times.final):
                each.observe(16, 600.0)

    await selector.warm_up("notes")
    await trainer.warm_up()

    assert [held.corpus.name for held in selector._selector.corpora._entries] == ["notes"]
    assert (await trainer.train(TrainingRequest([[1, 2, 3]] * 2, seconds=60.0))).stop == "steps"


async def test_warming_up_without_a_corpus_is_nothing(selector: SelectorWorker) -> None:
    await selector.warm_up(None)

    assert selector._selector.corpora._entries == []
