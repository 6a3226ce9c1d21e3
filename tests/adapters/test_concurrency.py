"""Concurrent requests: they join and leave between steps, meet deadlines and do not starve."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from adapters.step_plan import PLANS
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.trainers import (
    SEQUENCES,
    TIMEOUT,
    assert_idle,
    assert_same,
    other_requests,
    paused,
    recorded_rows,
    simulated_trainer_of,
    trainer_of,
)


class TestBatching:
    """Requests join and leave between the steps of others."""

    def test_joining_and_leaving_between_steps(self, trainer: Trainer) -> None:
        requests = other_requests(3)
        alone = trainer.train(TrainingRequest(SEQUENCES * 3, seed=1))
        others_alone = [
            trainer.train(TrainingRequest(sequences[: 1 + 2 * k], seed=k))
            for k, sequences in enumerate(requests)
        ]
        arrived: list[Future[TrainingResult]] = []

        def submit_next(progress: TrainingProgress) -> None:
            if progress.steps in (2, 5, 6):
                k = len(arrived)
                arrived.append(trainer.submit(TrainingRequest(requests[k][: 1 + 2 * k], seed=k)))

        with recorded_rows(trainer) as rows:
            training = trainer.train(TrainingRequest(SEQUENCES * 3, seed=1), on_step=submit_next)

        assert_same(training, alone)
        for future, expected in zip(arrived, others_alone, strict=True):
            assert_same(future.result(TIMEOUT), expected)
        assert rows[:3] == [1, 1, 2]
        assert {1, 2, 3} <= set(rows)

    def test_more_requests_than_slots(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=3)
        requests = other_requests(10)
        alone = [
            trainer.train(TrainingRequest(sequences, seed=k))
            for k, sequences in enumerate(requests)
        ]

        with recorded_rows(trainer) as rows:
            with paused(trainer):
                futures = [
                    trainer.submit(TrainingRequest(sequences, seed=k))
                    for k, sequences in enumerate(requests)
                ]
            trainings = [future.result(TIMEOUT) for future in futures]

        assert max(rows) == 3
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)
        names = {training.adapter.name for training in trainings if training.adapter is not None}
        assert len(names) == 10

    def test_each_request_has_its_own_learning_rate(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=3, learning_rate=1e-3)
        rates = (1e-2, None, 1e-4)
        alone = [
            trainer_of(tiny_llama, slots=1, learning_rate=rate or 1e-3).train(
                TrainingRequest(SEQUENCES)
            )
            for rate in rates
        ]

        with recorded_rows(trainer) as rows:
            with paused(trainer):
                futures = [
                    trainer.submit(TrainingRequest(SEQUENCES, learning_rate=rate)) for rate in rates
                ]
            trainings = [future.result(TIMEOUT) for future in futures]

        assert max(rows) == 3
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)

    @pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan"), float("inf")])
    def test_an_invalid_learning_rate_is_refused(self, trainer: Trainer, rate: float) -> None:
        with pytest.raises(ValueError, match="learning rate"):
            trainer.train(TrainingRequest(SEQUENCES, learning_rate=rate))

    def test_one_slot_is_enough(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        alone = [trainer.train(TrainingRequest(sequences)) for sequences in other_requests(4)]

        with recorded_rows(trainer) as rows:
            with paused(trainer):
                futures = [
                    trainer.submit(TrainingRequest(sequences)) for sequences in other_requests(4)
                ]
            trainings = [future.result(TIMEOUT) for future in futures]

        assert set(rows) == {1}
        for training, expected in zip(trainings, alone, strict=True):
            assert training.adapter is not None
            assert expected.adapter is not None
            assert training.adapter.weights == expected.adapter.weights

    def test_a_batch_stays_within_its_tokens(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, batch_tokens=3 * 12)

        with recorded_rows(trainer) as rows:
            with paused(trainer):
                futures = [trainer.submit(TrainingRequest([SEQUENCES[0]] * 3)) for _ in range(7)]
            assert {future.result(TIMEOUT).stop for future in futures} == {"steps"}

        assert max(rows) == 3

    def test_submitting_from_many_threads(self, trainer: Trainer) -> None:
        requests = other_requests(24, steps=3)
        alone = [
            trainer.train(TrainingRequest(sequences, seed=k))
            for k, sequences in enumerate(requests)
        ]

        with ThreadPoolExecutor(12) as pool:
            trainings = list(
                pool.map(
                    lambda k: trainer.train(TrainingRequest(requests[k], seed=k)),
                    range(len(requests)),
                )
            )

        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)
        assert_idle(trainer)

    def test_scoring_with_the_base_model_while_requests_train(self, trainer: Trainer) -> None:
        expected = trainer.nats(SEQUENCES[1], 3)
        stop = threading.Event()
        futures = [
            trainer.submit(TrainingRequest([SEQUENCES[0]] * 20_000), cancelled=stop)
            for _ in range(3)
        ]

        found = [trainer.nats(SEQUENCES[1], 3) for _ in range(10)]
        still_training = not any(future.done() for future in futures)
        stop.set()

        assert still_training
        assert found == [expected] * 10
        assert {future.result(TIMEOUT).stop for future in futures} == {"cancelled"}


class TestDeadlines:
    """No step starts that would end late."""

    @pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9])
    def test_without_time_no_step_is_taken(self, trainer: Trainer, seconds: float) -> None:
        training = trainer.train(TrainingRequest(SEQUENCES, seconds=seconds))

        assert (training.adapter, training.losses, training.sequences_used) == (None, (), 0)
        assert training.stop == "seconds"

    @pytest.mark.parametrize("plan", PLANS)
    def test_the_adapter_at_the_deadline_is_that_of_the_steps_taken(
        self, tiny_llama: str, plan: str
    ) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama)
        many = SEQUENCES * 100

        training = trainer.train(TrainingRequest(many, seed=3, seconds=0.3, plan=plan))

        alone = trainer.train(TrainingRequest(many[: training.sequences_used], seed=3, plan=plan))
        assert training.stop == "seconds"
        assert 0 < training.sequences_used < len(many)
        assert training.adapter is not None
        assert alone.adapter is not None
        assert training.adapter.weights == alone.adapter.weights

    @pytest.mark.parametrize("beside", [0, 5])
    def test_no_request_is_late_by_a_step(self, tiny_llama: str, beside: int) -> None:
        # Arrange: long sequences, alone and beside requests without a deadline.
        trainer, clock = simulated_trainer_of(tiny_llama)
        long = [[(7 * i + j) % 97 for j in range(64)] for i in range(4)] * 200
        step = clock.FIXED + clock.PER_TOKEN * 64 * (beside + 1)
        stop = threading.Event()
        futures = [
            trainer.submit(TrainingRequest(long, seed=k), cancelled=stop) for k in range(beside)
        ]

        for seconds in (0.03, 0.1, 0.15, 0.2) * 2:
            reported: list[TrainingProgress] = []
            with paused(trainer):
                future = trainer.submit(
                    TrainingRequest(long, seconds=seconds), on_step=reported.append
                )
            training = future.result(TIMEOUT)

            # Where one step ends the next one starts.
            assert training.stop == "seconds"
            assert all(progress.seconds <= seconds for progress in reported)
            assert training.seconds < seconds + step
        stop.set()
        assert all(future.result(TIMEOUT).stop == "cancelled" for future in futures)

    def test_a_deadline_is_met_beside_requests_with_many_steps(self, tiny_llama: str) -> None:
        # Arrange: seven earlier requests, whose sequences cannot share a batch with short ones.
        trainer, _ = simulated_trainer_of(tiny_llama)
        stop = threading.Event()
        long = [[(7 * i + j) % 97 for j in range(64)] for i in range(4)] * 1_000
        with paused(trainer):
            earlier = [
                trainer.submit(TrainingRequest(long, seed=k), cancelled=stop) for k in range(7)
            ]

            urgent = trainer.submit(TrainingRequest([SEQUENCES[0]] * 20, seconds=2))
        training = urgent.result(TIMEOUT)
        still_training = not any(future.done() for future in earlier)
        stop.set()

        assert still_training
        assert (training.stop, len(training.losses)) == ("steps", 20)
        assert training.seconds < 2
        for future in earlier:
            assert future.result(TIMEOUT).stop == "cancelled"

    def test_a_request_without_a_deadline_is_not_starved(self, tiny_llama: str) -> None:
        # A batch holds one sequence, so the more urgent requests go first.
        trainer, _ = simulated_trainer_of(tiny_llama, batch_tokens=12, slots=4)
        patient = trainer.submit(TrainingRequest([SEQUENCES[0]] * 10))
        urgent = [
            trainer.submit(TrainingRequest([SEQUENCES[0]] * 500, seconds=0.3)) for _ in range(3)
        ]

        assert patient.result(TIMEOUT).stop == "steps"
        assert {future.result(TIMEOUT).stop for future in urgent} == {"seconds"}

    def test_waiting_for_a_slot_counts(self, tiny_llama: str) -> None:
        # Arrange: the second request arrives after the first step of the first.
        trainer, _ = simulated_trainer_of(tiny_llama, slots=1)
        many = [SEQUENCES[0]] * 500
        later: list[Future[TrainingResult]] = []

        def submit_another(progress: TrainingProgress) -> None:
            if progress.steps == 1:
                later.append(trainer.submit(TrainingRequest(many, seconds=0.6)))

        first = trainer.train(TrainingRequest(many, seconds=0.2), on_step=submit_another)
        second = later[0].result(TIMEOUT)

        assert (first.stop, second.stop) == ("seconds", "seconds")
        assert 0.1 < second.waited < 0.2
        assert 0.5 < second.seconds <= 0.6

    def test_waiting_is_reported_apart_from_training(self, tiny_llama: str) -> None:
        trainer, clock = simulated_trainer_of(tiny_llama, slots=1)
        with paused(trainer):
            waiting = trainer.submit(TrainingRequest(SEQUENCES))
            late = trainer.submit(TrainingRequest(SEQUENCES, seconds=1e-6))
            clock.now += 10.0

        waited, trained = waiting.result(TIMEOUT), trainer.train(TrainingRequest(SEQUENCES))

        assert 10.0 <= waited.waited < waited.seconds < 11.0
        assert trained.waited == 0.0 < trained.seconds < 1.0
        assert late.result(TIMEOUT).waited == late.result(TIMEOUT).seconds
        assert late.result(TIMEOUT).losses == ()

    def test_reused_gradients_do_not_mislead_the_step_times(self, tiny_llama: str) -> None:
        # Steps without tokens cost next to nothing; a step with tokens must still get its time.
        trainer, _ = simulated_trainer_of(tiny_llama)
        trainer.train(TrainingRequest([SEQUENCES[0]] * 300, plan="reuse"))

        training = trainer.train(TrainingRequest(SEQUENCES, seconds=1.0))

        assert training.stop == "steps"
        assert training.seconds < 1.0

    def test_no_sequences_give_no_adapter(self, trainer: Trainer) -> None:
        training = trainer.train(TrainingRequest([]))

        assert (training.adapter, training.losses, training.stop) == (None, (), "steps")


class TestPreemption:
    def test_a_preempted_request_gets_the_same_adapter_as_alone(self, tiny_llama: str) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama, slots=1)
        many = SEQUENCES * 40
        alone = trainer.train(TrainingRequest(many, seed=3)).adapter
        urgent: list[Future[TrainingResult]] = []
        order: list[str] = []

        def submit_urgent(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                urgent.append(trainer.submit(TrainingRequest(SEQUENCES, seed=4, seconds=20.0)))
                urgent[0].add_done_callback(lambda _: order.append("urgent"))

        with paused(trainer):
            patient = trainer.submit(TrainingRequest(many, seed=3), on_step=submit_urgent)
            patient.add_done_callback(lambda _: order.append("patient"))
        training, first = patient.result(TIMEOUT), urgent[0].result(TIMEOUT)

        assert order == ["urgent", "patient"]
        # Only the time before its own first step counts as waiting.
        assert training.waited < training.seconds - first.seconds
        assert len(first.losses) == len(SEQUENCES)
        assert alone is not None
        assert training.adapter is not None
        assert training.adapter.weights == alone.weights

    def test_a_preempted_request_keeps_its_steps_when_time_runs_out(self, tiny_llama: str) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama, slots=1)
        urgent: list[Future[TrainingResult]] = []

        def submit_urgent(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                request = TrainingRequest(SEQUENCES * 100, seed=4, seconds=1.0)
                urgent.append(trainer.submit(request))

        preempted = trainer.train(
            TrainingRequest(SEQUENCES * 100, seed=3, seconds=1.5), on_step=submit_urgent
        )

        assert urgent[0].result(TIMEOUT).stop == "seconds"
        assert preempted.stop == "seconds"
        assert preempted.adapter is not None
        assert len(preempted.losses) >= 5
