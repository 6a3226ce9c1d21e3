"""The workers: concurrent selections and trainings, waiting that counts, and cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.model.row import Row
from adapters.trainer import TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
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
from serving.adaptation.workers import FAILURES, CorporaWorker, SelectorWorker, TrainerWorker
from serving.errors import TrainerFailedError
from tests.adapters.trainers import wait_until

_SEQUENCE = [(7 * i) % 101 for i in range(32)]
_ENDLESS = [_SEQUENCE] * 20_000  # some minutes


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


@pytest.fixture
def stage(tiny_llama: str) -> TrainerWorker:
    return TrainerWorker(TrainerConfig(tiny_llama, rank=4))


async def train_alone(stage: TrainerWorker) -> TrainingResult:
    return await stage.train(TrainingRequest([_SEQUENCE] * 3, seed=2))


async def test_the_learning_rate_is_the_corpus_s_unless_the_server_has_one(
    stage: TrainerWorker, tiny_llama: str
) -> None:
    with_rate = TrainerWorker(TrainerConfig(tiny_llama, rank=4, learning_rate=1e-2))

    by_corpus = await stage.train(TrainingRequest([_SEQUENCE] * 3, learning_rate=1e-2))
    by_server = await with_rate.train(TrainingRequest([_SEQUENCE] * 3, learning_rate=1e-4))
    by_default = await stage.train(TrainingRequest([_SEQUENCE] * 3))

    assert by_corpus.losses == pytest.approx(by_server.losses, rel=1e-5)
    assert by_corpus.losses[-1] != pytest.approx(by_default.losses[-1], rel=1e-3)


async def test_it_trains_as_the_trainer_does(stage: TrainerWorker) -> None:
    training = await stage.train(TrainingRequest([_SEQUENCE] * 3, seed=2))

    assert training.adapter is not None
    assert (len(training.losses), training.stop) == (3, "steps")


async def test_it_trains_an_adapter_further(stage: TrainerWorker) -> None:
    first = await stage.train(TrainingRequest([_SEQUENCE] * 3, seed=2))
    assert first.adapter is not None

    second = await stage.train(
        TrainingRequest([_SEQUENCE] * 3, seed=2, start=first.adapter.weights)
    )

    assert second.losses[0] < first.losses[0]


async def test_trainings_at_once_give_what_they_give_one_by_one(stage: TrainerWorker) -> None:
    alone = [await stage.train(TrainingRequest([_SEQUENCE] * 3, seed=seed)) for seed in range(4)]

    together = await asyncio.gather(
        *(stage.train(TrainingRequest([_SEQUENCE] * 3, seed=seed)) for seed in range(4))
    )

    weights = [training.adapter.weights for training in alone if training.adapter]
    assert [training.adapter.weights for training in together if training.adapter] == weights
    assert len(set(weights)) == 4


async def test_trainings_share_the_trainer(stage: TrainerWorker) -> None:
    endless = asyncio.create_task(stage.train(TrainingRequest(_ENDLESS, seconds=2.0)))
    await asyncio.sleep(0.1)

    short = await stage.train(TrainingRequest([_SEQUENCE] * 3))

    assert short.adapter is not None
    assert not endless.done()
    assert (await endless).stop == "seconds"


async def test_waiting_counts_towards_the_seconds(tiny_llama: str) -> None:
    stage = TrainerWorker(TrainerConfig(tiny_llama, rank=4, slots=1))
    first = asyncio.create_task(stage.train(TrainingRequest(_ENDLESS, seconds=0.5)))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(stage.train(TrainingRequest(_ENDLESS, seconds=1.0)))

    assert (await first).stop == "seconds"
    waited = await second

    assert waited.stop == "seconds"
    assert waited.seconds > 0.7
    assert waited.seconds - waited.waited < 1.0


async def test_on_step_is_called_in_the_event_loop(stage: TrainerWorker) -> None:
    steps: list[TrainingProgress] = []

    training = await stage.train(TrainingRequest([_SEQUENCE] * 3), on_step=steps.append)
    await asyncio.sleep(0)

    assert [(progress.steps, progress.total_steps, progress.loss) for progress in steps] == [
        (n, 3, loss) for n, loss in enumerate(training.losses, start=1)
    ]


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelling_ends_a_training_and_the_stage_goes_on(
    stage: TrainerWorker, times: int
) -> None:
    before = await train_alone(stage)
    stepping, steps = asyncio.Event(), []

    def count(progress: TrainingProgress) -> None:
        steps.append(progress.steps)
        if progress.steps == 4:
            stepping.set()

    task = asyncio.create_task(stage.train(TrainingRequest(_ENDLESS), on_step=count))
    await stepping.wait()

    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task

    taken = len(steps)
    after = await train_alone(stage)
    assert len(steps) == taken  # it did not go on behind our back
    assert before.adapter is not None
    assert after.adapter is not None
    assert after.adapter.weights == before.adapter.weights


async def test_cancelling_a_waiting_training_leaves_the_others_alone(tiny_llama: str) -> None:
    stage = TrainerWorker(TrainerConfig(tiny_llama, rank=4, slots=1))
    running = asyncio.create_task(stage.train(TrainingRequest(_ENDLESS, seconds=0.5)))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(stage.train(TrainingRequest([_SEQUENCE])))
    await asyncio.sleep(0)  # lets it begin to wait

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert (await running).stop == "seconds"
    assert (await train_alone(stage)).adapter is not None


async def test_a_trainer_that_fails_at_every_training_is_unhealthy_until_a_step_ends(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = TrainerWorker(TrainerConfig(tiny_llama))

    def broken(*_: Any) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(stage._trainer.base, "losses", broken)
        # Those of corpora, which are tried again and again, prove nothing.
        for background in [True] * FAILURES + [False] * FAILURES:
            await stage.check_health()
            with pytest.raises(torch.AcceleratorError):
                await stage.train(TrainingRequest([_SEQUENCE], background=background))
        with pytest.raises(TrainerFailedError, match="the last 3 trainings failed"):
            await stage.check_health()

    await stage.train(TrainingRequest([_SEQUENCE]))
    await stage.check_health()


async def test_a_training_that_gives_way_is_not_taken_for_hanging(tiny_llama: str) -> None:
    # Arrange: a training in the background, alone, for longer than any step takes.
    now = 0.0
    stage = TrainerWorker(TrainerConfig(tiny_llama, rank=4), lambda: now)
    await stage.give_way(1e6)
    request = TrainingRequest([_SEQUENCE] * 3, background=True)
    background = asyncio.create_task(stage.train(request))
    await asyncio.to_thread(wait_until, lambda: stage._trainer.gives_way)

    # Act and assert.
    for _ in range(3):
        now += 1e4
        await stage.check_health()
    assert (await train_alone(stage)).adapter is not None
    await asyncio.to_thread(wait_until, lambda: stage._trainer.gives_way)
    now += 1e4
    await stage.check_health()
    assert not background.done()

    # What it waited for does not count as the time of a step.
    assert stage._longest_pause < 1e4
    background.cancel()
    with pytest.raises(asyncio.CancelledError):
        await background


async def test_a_training_in_the_background_that_takes_no_step_is_found(tiny_llama: str) -> None:
    now = 0.0
    stage = TrainerWorker(TrainerConfig(tiny_llama, rank=4), lambda: now)
    with stage._trainer._loop.model_lock:
        request = TrainingRequest([_SEQUENCE] * 3, background=True)
        background = asyncio.create_task(stage.train(request))
        await asyncio.sleep(0)
        now += 1e4

        with pytest.raises(TrainerFailedError, match="hangs"):
            await stage.check_health()
        with pytest.raises(TrainerFailedError, match="hangs"):
            await background


async def test_the_loss_of_rows_is_the_trainers(stage: TrainerWorker) -> None:
    row = Row.of(_SEQUENCE)

    found = await stage.loss([row, row])
    await stage.give_way(1e6)
    waiting = asyncio.create_task(stage.loss([row]))
    await train_alone(stage)

    assert found == pytest.approx(stage._trainer.nats(_SEQUENCE, 1) / row.scored_tokens)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_refused_training_frees_the_stage(stage: TrainerWorker) -> None:
    with pytest.raises(ValueError, match="a training sequence has 1 tokens"):
        await stage.train(TrainingRequest([[1]]))

    assert (await train_alone(stage)).adapter is not None


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
    """A turnstile that holds whoever comes in, once, until it is let go."""

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
