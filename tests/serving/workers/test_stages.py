"""The worker of the trainer: concurrent trainings, waiting that counts, and cancelling."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from adapters.model.row import Row
from adapters.trainer import TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from serving.errors import TrainerFailedError
from serving.workers.stages import FAILURES, TrainerWorker
from tests.adapters.trainers import wait_until

_SEQUENCE = [(7 * i) % 101 for i in range(32)]
_ENDLESS = [_SEQUENCE] * 20_000  # some minutes


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
