"""Comparing texts under several adapters, while requests train."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from adapters.errors import TrainingOptionError
from adapters.model.row import Row
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingStop
from tests.adapters.trainers import (
    SEQUENCES,
    TIMEOUT,
    assert_same,
    simulated_trainer_of,
    trainer_of,
)

# A token in none of the sequences that are trained on.
_MARK = 98


@pytest.fixture(scope="module")
def trainer(tiny_llama: str) -> Trainer:
    return trainer_of(tiny_llama)


def test_each_row_is_scored_under_each_adapter(trainer: Trainer) -> None:
    adapter = trainer.train(TrainingRequest(SEQUENCES)).adapter
    assert adapter is not None
    text, prompt = SEQUENCES[1], SEQUENCES[0]
    after_text = Row.of([*text, *prompt], ((len(text) + 1, len(text) + len(prompt)),))
    rows = [Row.of(prompt), after_text]

    losses = trainer.compare(rows, [None, adapter.weights])

    assert losses == tuple(
        tuple(trainer.nats(row.tokens, row.scored, weights) / row.scored_tokens for row in rows)
        for weights in (None, adapter.weights)
    )
    assert len({loss for each in losses for loss in each}) == 4


def test_it_takes_turns_with_the_steps_of_a_training_and_changes_nothing(
    trainer: Trainer,
) -> None:
    # Arrange: a comparison of four rows begins during the second step.
    sequences = SEQUENCES * 8
    alone = trainer.train(TrainingRequest(sequences, seed=3))
    marks: list[bool] = []
    comparison: list[Future[object]] = []
    threads = ThreadPoolExecutor(1)

    def note(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        marks.append(int(arguments[0][0, 0]) == _MARK)

    def on_step(progress: TrainingProgress) -> None:
        if progress.steps == 2:
            rows = [Row.of([_MARK, *SEQUENCES[0]])]
            comparison.append(threads.submit(trainer.compare, rows, [None] * 4))

    # Act.
    hook = trainer.base.model.base_model.register_forward_pre_hook(note)
    try:
        training = trainer.train(TrainingRequest(sequences, seed=3), on_step=on_step)
        comparison[0].result(TIMEOUT)
    finally:
        hook.remove()

    # Assert: a step or two between its rows, and the same adapter.
    assert_same(training, alone)
    compared = [position for position, is_marked in enumerate(marks) if is_marked]
    assert len(compared) == 4
    assert all(1 < after - before <= 3 for before, after in pairwise(compared))


def test_no_step_follows_a_comparison_that_has_outlasted_the_seconds(tiny_llama: str) -> None:
    # Arrange: a training of 50 seconds, and a comparison that takes 100.
    trainer, clock = simulated_trainer_of(tiny_llama)
    passes: list[str] = []
    threads = ThreadPoolExecutor(1)

    def note(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if int(arguments[0][0, 0]) == _MARK:
            clock.now += 100.0
            passes.append("comparison")
        elif torch.is_grad_enabled():
            passes.append("step")

    def on_step(progress: TrainingProgress) -> None:
        if progress.steps == 2:
            threads.submit(trainer.compare, [Row.of([_MARK, *SEQUENCES[0]])], [None])

    # Act.
    hook = trainer.base.model.base_model.register_forward_pre_hook(note)
    try:
        training = trainer.train(TrainingRequest(SEQUENCES * 8, seconds=50.0), on_step=on_step)
    finally:
        hook.remove()
        threads.shutdown()

    # Assert.
    assert training.stop == TrainingStop.SECONDS
    assert passes[-1] == "comparison"


@pytest.mark.parametrize("tokens", [[1], [1, 10_000]])
def test_invalid_rows_are_refused(trainer: Trainer, tokens: list[int]) -> None:
    with pytest.raises(TrainingOptionError):
        trainer.compare([Row.of(tokens)], [None])
