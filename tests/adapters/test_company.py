"""Requests that train at once: they come and go between steps, and nobody is late or starved."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from adapters.step_plan import PLANS
from adapters.trainer import Trainer, TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.trainers import (
    SEQUENCES,
    SOON,
    assert_all_is_left,
    assert_same,
    held,
    others,
    rows_of_steps,
    trainer_of,
)


class TestCompany:
    """Requests come and go between the steps of others."""

    def test_joining_and_leaving_between_steps(self, trainer: Trainer) -> None:
        wishes = others(3)
        alone = trainer.train(TrainingRequest(SEQUENCES * 3, seed=1))
        alone_theirs = [
            trainer.train(TrainingRequest(wish[: 1 + 2 * k], seed=k))
            for k, wish in enumerate(wishes)
        ]
        came: list[Future[TrainingResult]] = []

        def welcome(progress: TrainingProgress) -> None:
            if progress.steps in (2, 5, 6):
                k = len(came)
                came.append(trainer.submit(TrainingRequest(wishes[k][: 1 + 2 * k], seed=k)))

        with rows_of_steps(trainer) as rows:
            training = trainer.train(TrainingRequest(SEQUENCES * 3, seed=1), on_step=welcome)

        assert_same(training, alone)
        for future, expected in zip(came, alone_theirs, strict=True):
            assert_same(future.result(SOON), expected)
        assert rows[:3] == [1, 1, 2]
        assert {1, 2, 3} <= set(rows)

    def test_more_requests_than_slots(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=3)
        wishes = others(10)
        alone = [trainer.train(TrainingRequest(wish, seed=k)) for k, wish in enumerate(wishes)]

        with rows_of_steps(trainer) as rows:
            with held(trainer):
                futures = [
                    trainer.submit(TrainingRequest(wish, seed=k)) for k, wish in enumerate(wishes)
                ]
            trainings = [future.result(SOON) for future in futures]

        assert max(rows) == 3
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)
        names = {training.adapter.name for training in trainings if training.adapter is not None}
        assert len(names) == 10

    def test_each_has_the_learning_rate_it_asks_for(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=3, learning_rate=1e-3)
        rates = (1e-2, None, 1e-4)
        alone = [
            trainer_of(tiny_llama, slots=1, learning_rate=rate or 1e-3).train(
                TrainingRequest(SEQUENCES)
            )
            for rate in rates
        ]

        with rows_of_steps(trainer) as rows:
            with held(trainer):
                futures = [
                    trainer.submit(TrainingRequest(SEQUENCES, learning_rate=rate)) for rate in rates
                ]
            trainings = [future.result(SOON) for future in futures]

        assert max(rows) == 3
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)

    @pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf")])
    def test_a_learning_rate_that_is_none_is_refused(self, trainer: Trainer, rate: float) -> None:
        with pytest.raises(ValueError, match="learning rate"):
            trainer.train(TrainingRequest(SEQUENCES, learning_rate=rate))

    def test_one_slot_is_enough(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        alone = [trainer.train(TrainingRequest(wish)) for wish in others(4)]

        with rows_of_steps(trainer) as rows:
            with held(trainer):
                futures = [trainer.submit(TrainingRequest(wish)) for wish in others(4)]
            trainings = [future.result(SOON) for future in futures]

        assert set(rows) == {1}
        for training, expected in zip(trainings, alone, strict=True):
            assert training.adapter is not None
            assert expected.adapter is not None
            assert training.adapter.weights == expected.adapter.weights

    def test_a_batch_holds_no_more_tokens_than_said(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, batch_tokens=3 * 12)

        with rows_of_steps(trainer) as rows:
            with held(trainer):
                futures = [trainer.submit(TrainingRequest([SEQUENCES[0]] * 3)) for _ in range(7)]
            assert {future.result(SOON).stop for future in futures} == {"steps"}

        assert max(rows) == 3

    def test_from_many_threads(self, trainer: Trainer) -> None:
        wishes = others(24, steps=3)
        alone = [trainer.train(TrainingRequest(wish, seed=k)) for k, wish in enumerate(wishes)]

        with ThreadPoolExecutor(12) as pool:
            trainings = list(
                pool.map(
                    lambda k: trainer.train(TrainingRequest(wishes[k], seed=k)), range(len(wishes))
                )
            )

        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)
        assert_all_is_left(trainer)

    def test_the_base_model_answers_while_others_train(self, trainer: Trainer) -> None:
        expected = trainer.nats(SEQUENCES[1], 3)
        stop = threading.Event()
        futures = [
            trainer.submit(TrainingRequest([SEQUENCES[0]] * 20_000), cancelled=stop)
            for _ in range(3)
        ]

        found = [trainer.nats(SEQUENCES[1], 3) for _ in range(10)]
        under_way = not any(future.done() for future in futures)
        stop.set()

        assert under_way
        assert found == [expected] * 10
        assert {future.result(SOON).stop for future in futures} == {"cancelled"}


class TestDeadlines:
    """Nobody is late."""

    @pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9])
    def test_without_time_there_is_no_step(self, trainer: Trainer, seconds: float) -> None:
        training = trainer.train(TrainingRequest(SEQUENCES, seconds=seconds))

        assert (training.adapter, training.losses, training.used, training.stop) == (
            None,
            (),
            0,
            "seconds",
        )

    @pytest.mark.parametrize("how", PLANS)
    def test_when_the_time_is_up_the_steps_taken_are_an_adapter(
        self, trainer: Trainer, how: str
    ) -> None:
        # Far more steps than fit: what is trained until the deadline is what those steps alone
        # would have given.
        many = SEQUENCES * 2_000

        training = trainer.train(TrainingRequest(many, seed=3, seconds=0.3, plan=how))

        alone = trainer.train(TrainingRequest(many[: training.used], seed=3, plan=how))
        assert training.stop == "seconds"
        assert 0 < training.used < len(many)
        assert training.adapter is not None
        assert alone.adapter is not None
        assert training.adapter.weights == alone.adapter.weights

    def test_the_deadline_is_overrun_by_less_than_a_step(self, trainer: Trainer) -> None:
        # Arrange: long sequences; alone, and with others who have all the time.
        long = [[(7 * i + j) % 97 for j in range(64)] for i in range(4)] * 500
        trainer.train(TrainingRequest(long[:40]))
        begun, overruns, longest = [], [], 0.0

        # Act.
        for company in (0, 5):
            stop = threading.Event()
            futures = [
                trainer.submit(TrainingRequest(long * 10, seed=k), cancelled=stop)
                for k in range(company)
            ]
            for seconds in (0.03, 0.1, 0.15, 0.2) * 2:
                told: list[TrainingProgress] = []
                training = trainer.train(
                    TrainingRequest(long, seconds=seconds), on_step=told.append
                )
                assert training.stop == "seconds"
                # Where one step ends the next begins.
                begun += [step.seconds - seconds for step in told[:-1]]
                overruns.append(training.seconds - seconds)
                longest = max(
                    [longest, *(b.seconds - a.seconds for a, b in itertools.pairwise(told))]
                )
            stop.set()
            assert all(future.result(SOON).stop == "cancelled" for future in futures)

        # Assert: whoever is late is so by the step that was being taken; a machine may pause in the
        # midst of one.
        assert max(begun) <= 0
        assert statistics.median(overruns) < longest

    def test_who_has_a_second_is_not_starved_by_who_has_many_steps(self, trainer: Trainer) -> None:
        # Arrange: seven who came before, with sequences that cannot share a batch with the short
        # ones.
        stop = threading.Event()
        long = [[(7 * i + j) % 97 for j in range(64)] for i in range(4)] * 1_000
        company = [trainer.submit(TrainingRequest(long, seed=k), cancelled=stop) for k in range(7)]
        time.sleep(0.05)

        training = trainer.train(TrainingRequest([SEQUENCES[0]] * 20, seconds=5))
        company_steps = not any(future.done() for future in company)
        stop.set()

        assert company_steps
        assert (training.stop, len(training.losses)) == ("steps", 20)
        for future in company:
            assert future.result(SOON).stop == "cancelled"

    def test_who_has_no_deadline_is_not_starved_by_who_has_one(self, tiny_llama: str) -> None:
        # One batch holds one sequence, so whoever is more urgent goes first; the patient one ends
        # all the same.
        trainer = trainer_of(tiny_llama, batch_tokens=12, slots=4)
        patient = trainer.submit(TrainingRequest([SEQUENCES[0]] * 10))
        hurried = [
            trainer.submit(TrainingRequest([SEQUENCES[0]] * 10_000, seconds=0.3)) for _ in range(3)
        ]

        assert patient.result(SOON).stop == "steps"
        assert {future.result(SOON).stop for future in hurried} == {"seconds"}

    def test_waiting_for_a_slot_counts(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        stop, begun = threading.Event(), threading.Event()
        many = [SEQUENCES[0]] * 20_000
        first = trainer.submit(
            TrainingRequest(many, seconds=0.2), cancelled=stop, on_step=lambda _: begun.set()
        )
        assert begun.wait(SOON)

        later = trainer.submit(TrainingRequest(many, seconds=0.6)).result(SOON)
        stop.set()

        assert later.stop == "seconds"
        assert later.seconds > 0.4
        assert later.waited > 0.0
        assert later.seconds - later.waited < 0.6
        assert first.result(SOON).stop == "seconds"

    def test_waiting_is_told_apart_from_training(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        trainer.train(TrainingRequest(SEQUENCES))
        with held(trainer):
            waiting = trainer.submit(TrainingRequest(SEQUENCES))
            never = trainer.submit(TrainingRequest(SEQUENCES, seconds=1e-6))
            time.sleep(0.2)

        waited, trained = waiting.result(SOON), trainer.train(TrainingRequest(SEQUENCES))

        assert 0.2 < waited.waited < waited.seconds
        assert 0.0 <= trained.waited < trained.seconds
        assert (never.result(SOON).waited, never.result(SOON).losses) == (
            never.result(SOON).seconds,
            (),
        )

    def test_gradients_taken_again_do_not_mislead_the_clock(self, trainer: Trainer) -> None:
        # Steps without tokens cost next to nothing; whoever computes must still be given time.
        trainer.train(TrainingRequest([SEQUENCES[0]] * 300, plan="reuse"))

        training = trainer.train(TrainingRequest(SEQUENCES, seconds=5))

        assert training.stop == "steps"

    def test_no_sequences_give_no_adapter(self, trainer: Trainer) -> None:
        training = trainer.train(TrainingRequest([]))

        assert (training.adapter, training.losses, training.stop) == (None, (), "steps")


class TestGivingUpASlot:
    def test_who_gives_up_a_slot_gets_what_it_would_have_got_alone(self, tiny_llama: str) -> None:
        trainer = Trainer(TrainerConfig(tiny_llama, rank=4, precision="float32", slots=1))
        many = SEQUENCES * 40
        alone = trainer.train(TrainingRequest(many, seed=3)).adapter
        begun, hurried = threading.Event(), []

        def ask(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                hurried.append(trainer.submit(TrainingRequest(SEQUENCES, seed=4, seconds=20.0)))
                begun.set()

        patient = trainer.submit(TrainingRequest(many, seed=3), on_step=ask)
        assert begun.wait(60)
        first = hurried[0].result(60)
        overtaken = not patient.done()
        training = patient.result(60)
        adapter = training.adapter

        assert overtaken
        assert training.waited < training.seconds - first.seconds  # only until its own first step
        assert len(first.losses) == len(SEQUENCES)
        assert alone is not None
        assert adapter is not None
        assert adapter.weights == alone.weights

    def test_what_was_trained_before_the_slot_was_given_up_is_not_lost_when_time_runs_out(
        self, tiny_llama: str
    ) -> None:
        trainer = Trainer(TrainerConfig(tiny_llama, rank=4, precision="float32", slots=1))
        hurried = []

        def ask(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                hurried.append(
                    trainer.submit(TrainingRequest(SEQUENCES * 20_000, seed=4, seconds=1.0))
                )

        parked = trainer.train(
            TrainingRequest(SEQUENCES * 20_000, seed=3, seconds=1.5), on_step=ask
        )

        assert hurried[0].result(60).stop == "seconds"
        assert parked.stop == "seconds"
        assert parked.adapter is not None
        assert len(parked.losses) >= 5
