"""Training from an earlier adapter: single steps from its weights, with new Adam moments."""

from __future__ import annotations

import threading

import pytest
from safetensors.torch import load as from_safetensors

from adapters.step_plan import PLANS
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.peft_reference import Base, PeftReference, assert_close, first_weights
from tests.adapters.trainers import (
    SEQUENCES,
    TIMEOUT,
    assert_same,
    other_requests,
    paused,
    recorded_rows,
    trainer_of,
    weights_of,
)

_EARLIER, _LATER = SEQUENCES[:3], SEQUENCES[3:]


def trained(trainer: Trainer, sequences: list[list[int]] = _EARLIER, seed: int = 7) -> bytes:
    """The weights of an earlier adapter."""
    adapter = trainer.train(TrainingRequest(sequences, seed=seed)).adapter
    assert adapter is not None
    return adapter.weights


def bytes_of(training: TrainingResult) -> bytes:
    assert training.adapter is not None
    return training.adapter.weights


class TestStart:
    def test_it_equals_peft_with_the_earlier_weights_and_new_moments(
        self, base: Base, base_trainer: Trainer
    ) -> None:
        start = trained(base_trainer)
        plain = PeftReference(base, start)
        for sequence in _LATER:
            plain.step(*plain.gradients(sequence))

        training = base_trainer.train(TrainingRequest(_LATER, start=start))

        assert training.losses == pytest.approx(plain.losses, rel=1e-4)
        assert_close(weights_of(training), plain.weights)

    def test_it_differs_from_a_fresh_adapter_and_from_one_long_training(
        self, trainer: Trainer
    ) -> None:
        # One long training would have carried Adam's moments over.
        training = trainer.train(TrainingRequest(_LATER, seed=7, start=trained(trainer)))

        fresh, both = (
            trainer.train(TrainingRequest(_LATER, seed=7)),
            trainer.train(TrainingRequest(_EARLIER + _LATER, seed=7)),
        )
        assert len({bytes_of(training), bytes_of(fresh), bytes_of(both)}) == 3
        assert training.losses[0] == pytest.approx(both.losses[len(_EARLIER)], rel=1e-4)
        assert training.losses[0] != pytest.approx(fresh.losses[0], rel=1e-4)

    def test_losses_and_steps_are_of_this_training_alone(self, trainer: Trainer) -> None:
        start = trained(trainer)
        before = trainer.nats(_LATER[0], 1, start) / (len(_LATER[0]) - 1)

        training = trainer.train(TrainingRequest(_LATER, start=start))

        assert training.adapter is not None
        assert training.adapter.losses == training.losses
        assert (len(training.losses), training.sequences_used, training.stop) == (
            len(_LATER),
            len(_LATER),
            "steps",
        )
        assert training.losses[0] == pytest.approx(before, rel=1e-5)

    @pytest.mark.parametrize("plan", PLANS)
    def test_starting_from_initial_weights_equals_a_fresh_adapter(
        self, base: Base, base_trainer: Trainer, plan: str
    ) -> None:
        repeated = SEQUENCES[:3] * 2

        further = base_trainer.train(
            TrainingRequest(repeated, plan=plan, start=first_weights(base, seed=4))
        )

        assert_same(further, base_trainer.train(TrainingRequest(repeated, seed=4, plan=plan)))

    def test_the_seed_has_no_effect(self, trainer: Trainer) -> None:
        start = trained(trainer)

        one, other = (
            trainer.train(TrainingRequest(_LATER, seed=1, start=start)),
            trainer.train(TrainingRequest(_LATER, seed=2, start=start)),
        )

        assert bytes_of(one) == bytes_of(other)

    def test_earlier_training_is_not_forgotten(self, trainer: Trainer) -> None:
        earlier, later = SEQUENCES[0], SEQUENCES[5]
        start = trained(trainer, [earlier] * 30)

        further = bytes_of(trainer.train(TrainingRequest([later] * 10, start=start)))

        assert trainer.nats(earlier, 1, further) < 0.8 * trainer.nats(earlier, 1)
        assert trainer.nats(later, 1, further) < trainer.nats(later, 1, start)

    def test_repeated_starts_equal_peft(self, base: Base, base_trainer: Trainer) -> None:
        weights = first_weights(base, seed=0)
        expected = weights
        for sequence in SEQUENCES:
            plain = PeftReference(base, expected)
            plain.step(*plain.gradients(sequence))
            weights = bytes_of(base_trainer.train(TrainingRequest([sequence], start=weights)))

            assert_close(from_safetensors(weights), plain.weights)
            expected = weights

    def test_the_earlier_weights_do_not_change(self, trainer: Trainer) -> None:
        start = trained(trainer)
        copy = bytes(bytearray(start))

        name = trainer.train(TrainingRequest(_LATER, start=start)).adapter

        assert start == copy
        assert name is not None
        assert name.weights != start


class TestConcurrency:
    """The adapter does not depend on the requests beside it."""

    def test_beside_fresh_and_started_adapters(self, base: Base, base_trainer: Trainer) -> None:
        starts = [None, trained(base_trainer), trained(base_trainer, SEQUENCES[2:4], seed=9), None]
        requests = other_requests(4)
        alone = [
            base_trainer.train(TrainingRequest(sequences, seed=k, start=start))
            for k, (sequences, start) in enumerate(zip(requests, starts, strict=True))
        ]

        with recorded_rows(base_trainer) as rows:
            with paused(base_trainer):
                futures = [
                    base_trainer.submit(TrainingRequest(sequences, seed=k, start=start))
                    for k, (sequences, start) in enumerate(zip(requests, starts, strict=True))
                ]
            trainings = [future.result(TIMEOUT) for future in futures]

        assert max(rows) == 4
        for training, expected in zip(trainings, alone, strict=True):
            assert_same(training, expected)

    def test_the_next_request_in_its_slot_starts_afresh(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        fresh = bytes_of(trainer.train(TrainingRequest(_LATER, seed=1)))

        trainer.train(TrainingRequest(_LATER, start=trained(trainer)))

        assert bytes_of(trainer.train(TrainingRequest(_LATER, seed=1))) == fresh

    def test_it_may_wait_for_a_slot_and_be_preempted(self, tiny_llama: str) -> None:
        # Arrange: the only slot is taken; the waiting request is preempted after its fifth step.
        trainer = trainer_of(tiny_llama, slots=1)
        start, many = trained(trainer), SEQUENCES * 5
        alone = trainer.train(TrainingRequest(many, start=start))
        urgent_alone = trainer.train(TrainingRequest(_LATER, start=start))
        urgent, preempted = [], threading.Event()

        def submit_urgent(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                urgent.append(trainer.submit(TrainingRequest(_LATER, start=start, seconds=TIMEOUT)))
                urgent[0].add_done_callback(
                    lambda _: preempted.set() if not patient.done() else None
                )

        # Act.
        with paused(trainer):
            patient = trainer.submit(TrainingRequest(many, start=start), on_step=submit_urgent)
        training = patient.result(60)

        # Assert.
        assert preempted.is_set()
        assert bytes_of(urgent[0].result(TIMEOUT)) == bytes_of(urgent_alone)
        assert bytes_of(training) == bytes_of(alone)

    def test_without_time_for_a_step_there_is_no_adapter(self, trainer: Trainer) -> None:
        training = trainer.train(TrainingRequest(_LATER, start=trained(trainer), seconds=0.0))

        assert (training.adapter, training.losses, training.stop) == (None, (), "seconds")


class TestRefusals:
    """An invalid start is refused before anything is queued."""

    def test_weights_of_another_rank_or_choice_of_projections(
        self, trainer: Trainer, tiny_llama: str
    ) -> None:
        mine = trained(trainer)
        narrow = Base("llama", tiny_llama)
        elsewhere = first_weights(narrow, 0, ("q_proj",))
        with paused(trainer):
            future = trainer.submit(TrainingRequest(_LATER, seed=1))
            for wrong in (b"", b"x" * len(mine), mine[:-4], mine + b"0000", elsewhere):
                with pytest.raises(ValueError, match="another model, rank or LoRA targets"):
                    trainer.submit(TrainingRequest(_LATER, start=wrong))

        assert_same(future.result(TIMEOUT), trainer.train(TrainingRequest(_LATER, seed=1)))

    def test_weights_of_another_model(self, trainer: Trainer, tiny_gpt2: str) -> None:
        with pytest.raises(ValueError, match="another model, rank or LoRA targets"):
            trainer.train(TrainingRequest(_LATER, start=first_weights(Base("gpt2", tiny_gpt2), 0)))

    def test_weights_with_nan_end_only_that_training(self, trainer: Trainer) -> None:
        mine = trained(trainer)
        # The last number is NaN.
        broken = mine[:-4] + b"\x00\x00\xc0\x7f"
        with paused(trainer):
            beside = trainer.submit(TrainingRequest(_LATER, seed=1))
            future = trainer.submit(TrainingRequest(_LATER, start=broken))

        assert (future.result(TIMEOUT).adapter, future.result(TIMEOUT).stop) == (None, "diverged")
        assert_same(beside.result(TIMEOUT), trainer.train(TrainingRequest(_LATER, seed=1)))
