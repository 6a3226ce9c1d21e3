"""Background requests: they give way to all others, and are not changed by it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from adapters.errors import TrainingOptionError
from adapters.model.row import Row
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.trainers import (
    SEQUENCES,
    TIMEOUT,
    assert_same,
    other_requests,
    recorded_rows,
    simulated_trainer_of,
    trainer_of,
    wait_until,
)

# A token in none of the sequences that are trained on.
_MARK = 98
_LONG = 1000.0


def in_background(sequences: list[list[int]], seed: int = 0) -> TrainingRequest:
    return TrainingRequest(sequences, seed=seed, background=True, keep_state=True)


@contextmanager
def recorded_marks(trainer: Trainer) -> Iterator[list[bool]]:
    """Whether each forward pass within the `with` block is of a row that begins with _MARK."""
    marks: list[bool] = []

    def note(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        marks.append(int(arguments[0][0, 0]) == _MARK)

    hook = trainer.base.model.base_model.register_forward_pre_hook(note)
    try:
        yield marks
    finally:
        hook.remove()


class TestTraining:
    @pytest.mark.parametrize("slots", [1, 8])
    def test_others_overtake_it_and_it_gets_the_same_adapter(
        self, tiny_llama: str, slots: int
    ) -> None:
        # Arrange: with one slot it is preempted, and its moments survive.
        trainer = trainer_of(tiny_llama, slots=slots)
        many, requests = SEQUENCES * 3, other_requests(3)
        alone = trainer.train(in_background(many, seed=5))
        others_alone = [trainer.train(TrainingRequest(each)) for each in requests]
        order: list[str] = []
        others: list[Future[TrainingResult]] = []

        def submit_others(progress: TrainingProgress) -> None:
            order.append("background")
            if progress.steps == 4:
                for each in requests:
                    others.append(
                        trainer.submit(
                            TrainingRequest(each), on_step=lambda _: order.append("other")
                        )
                    )

        # Act.
        with recorded_rows(trainer) as rows:
            training = trainer.train(in_background(many, seed=5), on_step=submit_others)

        # Assert.
        assert order == ["background"] * 4 + ["other"] * 18 + ["background"] * 14
        assert rows[4:-14] == ([3] * 6 if slots > 1 else [1] * 18)
        assert training.state == alone.state
        assert training.losses == alone.losses
        for future, expected in zip(others, others_alone, strict=True):
            assert_same(future.result(TIMEOUT), expected)

    def test_no_step_begins_while_it_gives_way(self, tiny_llama: str) -> None:
        trainer, clock = simulated_trainer_of(tiny_llama)
        alone = trainer.train(in_background(SEQUENCES))
        steps: list[float] = []

        def give_way(progress: TrainingProgress) -> None:
            steps.append(clock.now)
            if progress.steps == 2:
                trainer.give_way(_LONG)
                trainer.give_way(1.0)

        background = trainer.submit(in_background(SEQUENCES), on_step=give_way)
        wait_until(lambda: trainer.gives_way)
        other = trainer.train(TrainingRequest(SEQUENCES))
        wait_until(lambda: trainer.gives_way)
        taken = len(steps)
        clock.now += _LONG

        assert background.result(TIMEOUT).state == alone.state
        assert other.stop == "steps"
        assert taken == 2
        assert steps[2] - steps[1] >= _LONG
        assert not trainer.gives_way

    def test_it_may_give_way_before_its_first_step(self, tiny_llama: str) -> None:
        trainer, clock = simulated_trainer_of(tiny_llama)
        alone = trainer.train(in_background(SEQUENCES, seed=5))
        # What its slot held before.
        trainer.train(in_background(SEQUENCES, seed=6))

        trainer.give_way(_LONG)
        background = trainer.submit(in_background(SEQUENCES, seed=5))
        wait_until(lambda: trainer.gives_way)
        clock.now += _LONG

        assert background.result(TIMEOUT).state == alone.state

    def test_cancelling_ends_it_while_it_gives_way(self, tiny_llama: str) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama)
        trainer.give_way(_LONG)
        cancelled = threading.Event()

        future = trainer.submit(in_background(SEQUENCES), cancelled=cancelled)
        wait_until(lambda: trainer.gives_way)
        cancelled.set()

        assert future.result(TIMEOUT).stop == "cancelled"

    def test_it_sleeps_while_it_gives_way(self, tiny_llama: str) -> None:
        # A loop that does not would look at the clock tens of thousands of times.
        looks = 0
        cancelled = threading.Event()

        def clock() -> float:
            nonlocal looks
            looks += 1
            return 0.0

        trainer = Trainer(trainer_of(tiny_llama).config, clock)
        trainer.give_way(_LONG)
        future = trainer.submit(in_background(SEQUENCES), cancelled=cancelled)
        wait_until(lambda: trainer.gives_way)

        before = looks
        time.sleep(0.5)
        found = looks - before
        cancelled.set()

        assert found < 100
        assert future.result(TIMEOUT).stop == "cancelled"

    def test_the_idle_trim_does_not_free_its_slot(self, tiny_llama: str) -> None:
        trainer, clock = simulated_trainer_of(tiny_llama)
        alone = trainer.train(in_background(SEQUENCES))

        def give_way(progress: TrainingProgress) -> None:
            if progress.steps == 2:
                trainer.give_way(_LONG)

        future = trainer.submit(in_background(SEQUENCES), on_step=give_way)
        wait_until(lambda: trainer.gives_way)
        trainer._loop._release_slots()
        clock.now += _LONG

        assert future.result(TIMEOUT).state == alone.state


class TestLoss:
    def test_it_is_the_mean_over_scored_tokens(self, trainer: Trainer) -> None:
        weights = trainer.train(in_background(SEQUENCES * 5)).state
        assert weights is not None
        rows = [Row.of(SEQUENCES[0]), Row.of(SEQUENCES[5], ((3, 6), (8, 9)))]
        nats = [
            trainer.nats(SEQUENCES[0], 1, weights.weights),
            trainer.nats(SEQUENCES[5], ((3, 6), (8, 9)), weights.weights),
        ]

        found = trainer.loss(rows, weights.weights)

        assert found == pytest.approx(sum(nats) / (11 + 4))
        assert found < trainer.loss(rows)

    def test_no_request_waits_for_more_than_one_row(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama)
        rows = [Row.of([_MARK, *sequence]) for sequence in SEQUENCES * 5]
        expected = trainer.loss(rows)
        started = threading.Event()

        def start(_: TrainingProgress) -> None:
            started.set()

        with recorded_marks(trainer) as marks, ThreadPoolExecutor(1) as thread:
            others = [
                trainer.submit(TrainingRequest(SEQUENCES * 10), on_step=start) for _ in range(2)
            ]
            assert started.wait(TIMEOUT)
            loss = thread.submit(trainer.loss, rows)
            for other in others:
                assert other.result(TIMEOUT).stop == "steps"
            assert loss.result(TIMEOUT) == expected

        assert sum(marks) == len(rows)
        last_step = len(marks) - 1 - marks[::-1].index(False)
        assert sum(marks[:last_step]) <= 1

    def test_it_gives_way_until_it_is_cancelled(self, tiny_llama: str) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama)
        trainer.give_way(_LONG)
        cancelled = threading.Event()

        with recorded_marks(trainer) as marks, ThreadPoolExecutor(1) as thread:
            loss = thread.submit(trainer.loss, [Row.of([_MARK, 1, 2])], None, cancelled)
            trainer.train(TrainingRequest(SEQUENCES))
            cancelled.set()

            assert math.isnan(loss.result(TIMEOUT))
        assert not any(marks)

    def test_it_refuses_what_cannot_be_measured(self, trainer: Trainer) -> None:
        for rows in ([], [Row.of([1])], [Row.of([1, 10**6])], [Row.of([1, 2], ((0, 2),))]):
            with pytest.raises(TrainingOptionError):
                trainer.loss(rows)
        with pytest.raises(TrainingOptionError, match="does not fit"):
            trainer.loss([Row.of([1, 2])], b"no adapter")
