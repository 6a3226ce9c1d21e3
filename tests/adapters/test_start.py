"""Training from an earlier adapter: from its weights with new Adam moments, or from its state."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_safetensors

from adapters.errors import TrainingOptionError
from adapters.step_plan import PLANS
from adapters.trainer import Trainer
from adapters.training import (
    Probe,
    TrainingProgress,
    TrainingRequest,
    TrainingResult,
    TrainingState,
)
from tests.adapters.peft_reference import Base, PeftReference, assert_close, first_weights
from tests.adapters.trainers import (
    POISON,
    SEQUENCES,
    TIMEOUT,
    assert_same,
    failing_on_poison,
    other_requests,
    paused,
    recorded_rows,
    simulated_trainer_of,
    trainer_of,
    weights_of,
)

_EARLIER, _LATER = SEQUENCES[:3], SEQUENCES[3:]
# An adapter that has learnt A knows B less well than the base model.
_A, _B = SEQUENCES[0], [(37 * i * i + 11) % 97 for i in range(12)]


def trained(trainer: Trainer, sequences: list[list[int]] = _EARLIER, seed: int = 7) -> bytes:
    """The weights of an earlier adapter."""
    adapter = trainer.train(TrainingRequest(sequences, seed=seed)).adapter
    assert adapter is not None
    return adapter.weights


def bytes_of(training: TrainingResult) -> bytes:
    assert training.adapter is not None
    return training.adapter.weights


def loss_of(trainer: Trainer, text: list[int], weights: bytes | None = None) -> float:
    """Loss of a text in nats per token, under the base model or an adapter."""
    return trainer.nats(text, 1, weights) / (len(text) - 1)


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


class TestContinuing:
    """From a state, a training goes on as if it had never ended."""

    @pytest.mark.parametrize(
        ("plan", "averaged"), [("sequential", 1), ("batched", 1), ("sequential", 8)]
    )
    def test_it_equals_a_training_that_was_not_interrupted(
        self, base_trainer: Trainer, plan: str, averaged: int
    ) -> None:
        many = SEQUENCES * 5
        request = TrainingRequest(many, 7, plan=plan, keep_state=True, averaged_steps=averaged)
        whole = base_trainer.train(request)

        first = base_trainer.train(replace(request, sequences=many[:15]))
        second = base_trainer.train(replace(request, sequences=many[15:], start=first.state))

        assert first.losses + second.losses == whole.losses
        assert second.state == whole.state
        assert second.state is not None
        assert second.state.weights == bytes_of(second) == bytes_of(whole)
        assert second.state.steps == len(whole.losses)

    def test_an_average_is_of_the_weights_after_each_step(self, trainer: Trainer) -> None:
        # Arrange: the weights after each step.
        after = []

        def note(step: TrainingProgress) -> None:
            after.append(from_safetensors(trainer.export(step.slot)))

        sequences = SEQUENCES[:4]

        # Act
        result = trainer.train(TrainingRequest(sequences, averaged_steps=3), on_step=note)

        # Assert: means of up to three steps, of which later ones move it by a third.
        for name, tensor in from_safetensors(bytes_of(result)).items():
            one, two, three, four = (weights[name] for weights in after)
            expected = (one + two + three) / 3
            torch.testing.assert_close(tensor, expected + (four - expected) / 3)
        assert bytes_of(result) != bytes_of(trainer.train(TrainingRequest(sequences)))

    def test_it_differs_from_a_start_with_new_moments(self, trainer: Trainer) -> None:
        state = trainer.train(TrainingRequest(_EARLIER, keep_state=True)).state
        assert state is not None

        continued, anew = (
            trainer.train(TrainingRequest(_LATER, start=start, keep_state=True))
            for start in (state, state.weights)
        )

        assert bytes_of(continued) != bytes_of(anew)
        assert anew.state is not None
        assert anew.state.steps == len(_LATER)

    def test_a_training_that_ended_early_has_a_state(self, tiny_llama: str) -> None:
        trainer, _ = simulated_trainer_of(tiny_llama)
        many = SEQUENCES * 20

        first = trainer.train(TrainingRequest(many, seconds=0.3, keep_state=True))
        rest = many[first.sequences_used :]
        second = trainer.train(TrainingRequest(rest, start=first.state))

        assert first.stop == "seconds"
        assert 0 < first.sequences_used < len(many)
        assert bytes_of(second) == bytes_of(trainer.train(TrainingRequest(many)))

    def test_it_is_kept_on_request_only_and_not_without_an_adapter(self, trainer: Trainer) -> None:
        cancelled = threading.Event()

        def cancel(_: TrainingProgress) -> None:
            cancelled.set()

        keeping = TrainingRequest(SEQUENCES, keep_state=True)

        assert trainer.train(TrainingRequest(SEQUENCES)).state is None
        assert trainer.train(TrainingRequest([], keep_state=True)).state is None
        assert trainer.train(keeping, cancelled=cancelled, on_step=cancel).state is None

    def test_a_factor_lowers_either_learning_rate(self, trainer: Trainer) -> None:
        # Powers of two, so that the products are exact.
        rate = trainer.learning_rate
        for own in (None, 2.0**-8):
            lowered = TrainingRequest(SEQUENCES, learning_rate=own, learning_rate_factor=0.5)
            same = TrainingRequest(SEQUENCES, learning_rate=(own or rate) / 2)

            assert bytes_of(trainer.train(lowered)) == bytes_of(trainer.train(same))

    def test_what_has_learnt_a_corpus_is_trained_on_at_the_rate_of_the_models_size(
        self, trainer: Trainer
    ) -> None:
        start = trained(trainer)
        at_rates = [
            TrainingRequest(SEQUENCES, start=start, learning_rate_factor=factor)
            for factor in (None, trainer.start_rate, 1.0)
        ]

        found, expected, other = (bytes_of(trainer.train(each)) for each in at_rates)

        assert found == expected != other


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


class TestStartIfBetter:
    """The start is used only if it lowers the probe's loss."""

    @staticmethod
    def asking(
        trainer: Trainer, text: list[int], gain: float | None = None, **more: Any
    ) -> TrainingRequest:
        """A request with a start that has learnt the text A, and this text as its probe."""
        start = trained(trainer, [_A] * 60)
        options: dict[str, Any] = {
            "seed": 3,
            "start": start,
            "start_if_better": True,
            "learning_rate_factor": 0.5,
        }
        return TrainingRequest(_LATER * 4, probe=Probe(tuple(text), gain), **options | more)

    @pytest.mark.parametrize("gain", [None, 1e-9])
    def test_it_is_used_where_it_does(self, trainer: Trainer, gain: float | None) -> None:
        request = self.asking(trainer, _A, gain)

        training = trainer.train(request)

        assert training.comparison is not None
        assert training.comparison.uses_start
        assert training.comparison.fresh_loss == pytest.approx(loss_of(trainer, _A), rel=1e-5)
        assert training.probe_losses[0] == (0, training.comparison.start_loss)
        assert request.start is not None
        plain = trainer.train(replace(request, start_if_better=False))
        assert bytes_of(training) == bytes_of(plain)
        assert (training.probe_losses, plain.comparison) == (plain.probe_losses, None)

    @pytest.mark.parametrize("gain", [None, 1e-9])
    @pytest.mark.parametrize("plan", PLANS)
    def test_a_fresh_adapter_is_trained_where_it_does_not(
        self, trainer: Trainer, plan: str, gain: float | None
    ) -> None:
        request = self.asking(trainer, _B, gain, plan=plan)

        training = trainer.train(request)

        assert isinstance(request.start, bytes)
        assert training.comparison is not None
        assert not training.comparison.uses_start
        assert training.comparison.start_loss == pytest.approx(
            loss_of(trainer, _B, request.start), rel=1e-5
        )
        fresh = trainer.train(
            replace(request, start=None, start_if_better=False, learning_rate_factor=1.0)
        )
        assert bytes_of(training) == bytes_of(fresh)
        assert training.losses == fresh.losses
        assert dict(training.probe_losses) == pytest.approx(dict(fresh.probe_losses), rel=1e-6)
        assert training.adapter_sequences == fresh.adapter_sequences

    def test_a_state_leaves_no_moments_behind(self, trainer: Trainer) -> None:
        state = trainer.train(TrainingRequest([_A] * 60, keep_state=True)).state

        request = self.asking(trainer, _B, start=state, keep_state=True)
        training = trainer.train(request)

        fresh = replace(request, start=None, start_if_better=False, learning_rate_factor=1.0)
        assert training.state == trainer.train(fresh).state

    def test_it_costs_one_more_forward_pass(self, trainer: Trainer) -> None:
        passes: list[int] = []
        request = replace(self.asking(trainer, _A), sequences=_LATER[:1])
        hook = trainer.base.model.base_model.register_forward_pre_hook(
            lambda _, given: passes.append(len(given[0]))
        )
        try:
            trainer.train(request)
        finally:
            hook.remove()

        # Both evaluations, a step, and the final evaluation with the probe.
        assert passes == [1, 1, 1, 2]

    def test_each_of_several_requests_gets_its_own(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=4)
        fresh = TrainingRequest(_LATER * 4, seed=4, probe=Probe(tuple(_B)))
        requests = [self.asking(trainer, text, gain) for text in (_A, _B) for gain in (None, 0.5)]
        requests = [*requests, fresh, replace(requests[1], start_if_better=False)]
        alone = [trainer.train(request) for request in requests]

        with recorded_rows(trainer) as rows:
            with paused(trainer):
                futures = [trainer.submit(request) for request in requests]
            together = [future.result(TIMEOUT) for future in futures]

        assert max(rows) == 4
        for one, other in zip(together, alone, strict=True):
            assert_same(one, other)
            assert dict(one.probe_losses) == pytest.approx(dict(other.probe_losses), rel=1e-5)
            assert (one.comparison is None) == (other.comparison is None)
        uses = [each.comparison and each.comparison.uses_start for each in together]
        assert uses == [True, True, False, False, None, None]

    def test_a_preempted_request_keeps_what_it_started_from(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        request = self.asking(trainer, _B)
        alone, urgent = trainer.train(request), []

        def submit_urgent(progress: TrainingProgress) -> None:
            if progress.steps == 5:
                urgent.append(trainer.submit(TrainingRequest(_LATER, seconds=TIMEOUT)))

        training = trainer.train(request, on_step=submit_urgent)

        assert urgent[0].result(TIMEOUT).adapter is not None
        assert bytes_of(training) == bytes_of(alone)
        assert training.comparison == alone.comparison

    def test_a_broken_start_is_not_used(self, trainer: Trainer) -> None:
        start = trained(trainer)[:-4] + b"\x00\x00\xc0\x7f"

        training = trainer.train(self.asking(trainer, _A, start=start))

        assert training.comparison is not None
        assert math.isnan(training.comparison.start_loss)
        assert (training.stop, training.comparison.uses_start) == ("steps", False)

    @pytest.mark.parametrize(
        ("problem", "stop"),
        [(None, "diverged"), (MemoryError("can't allocate memory"), "out-of-memory")],
    )
    def test_it_is_told_where_the_first_step_fails(
        self, trainer: Trainer, problem: Exception | None, stop: str
    ) -> None:
        def fail(hidden: torch.Tensor) -> None:
            hidden.fill_(math.nan)
            if problem is not None:
                raise problem

        request = replace(self.asking(trainer, _B), sequences=[[POISON] * 12])
        with failing_on_poison(trainer, fail):
            training = trainer.train(request)

        assert (training.adapter, training.stop) == (None, stop)
        assert training.comparison is not None
        assert not training.comparison.uses_start

    def test_nothing_is_compared_without_a_step(self, trainer: Trainer) -> None:
        request = self.asking(trainer, _B)

        for each in (replace(request, seconds=0.0), replace(request, sequences=[])):
            training = trainer.train(each)
            assert (training.adapter, training.comparison) == (None, None)

    def test_without_time_for_it_the_start_is_used(self, tiny_llama: str) -> None:
        trainer, clock = simulated_trainer_of(tiny_llama)
        request = replace(self.asking(trainer, _B), sequences=_LATER[:1])
        tokens = len(_LATER[0]) + len(_B)
        # A step, and the final evaluation alone.
        seconds = 2 * clock.FIXED + clock.PER_TOKEN * (2 * tokens)

        hurried = trainer.train(replace(request, seconds=seconds))
        patient = trainer.train(replace(request, seconds=3 * seconds))

        assert (hurried.comparison, hurried.probe_losses) == (None, ())
        assert bytes_of(hurried) == bytes_of(trainer.train(replace(request, start_if_better=False)))
        assert patient.comparison is not None

    def test_it_needs_a_start_and_a_probe(self) -> None:
        for more in ({"start": b""}, {"probe": Probe((1, 2))}, {}):
            with pytest.raises(TrainingOptionError, match="give both"):
                TrainingRequest(_LATER, start_if_better=True, **more)


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

    def test_moments_of_another_size(self, trainer: Trainer) -> None:
        mine = trained(trainer)

        with pytest.raises(TrainingOptionError, match="does not fit"):
            trainer.train(TrainingRequest(_LATER, start=TrainingState(mine, bytes(8), 3)))

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"averaged_steps": 0}, "an average of 0 steps"),
            ({"averaged_steps": 2, "probe": Probe((1, 2), gain=1.0)}, "no average"),
        ],
    )
    def test_an_average_that_cannot_be(self, more: dict[str, Any], message: str) -> None:
        with pytest.raises(TrainingOptionError, match=message):
            TrainingRequest(_LATER, **more)

    def test_negative_steps(self) -> None:
        with pytest.raises(TrainingOptionError, match="-1 steps"):
            TrainingState(b"", b"", -1)

    @pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
    def test_an_invalid_factor_on_the_learning_rate(self, factor: float) -> None:
        with pytest.raises(TrainingOptionError, match="factor on the learning rate"):
            TrainingRequest(_LATER, learning_rate_factor=factor)

    def test_a_state_of_a_training_that_returns_its_best_adapter(self) -> None:
        with pytest.raises(TrainingOptionError, match="no state to keep"):
            TrainingRequest(_LATER, probe=Probe((1, 2), gain=0.1), keep_state=True)

    def test_weights_with_nan_end_only_that_training(self, trainer: Trainer) -> None:
        mine = trained(trainer)
        # The last number is NaN.
        broken = mine[:-4] + b"\x00\x00\xc0\x7f"
        with paused(trainer):
            beside = trainer.submit(TrainingRequest(_LATER, seed=1))
            future = trainer.submit(TrainingRequest(_LATER, start=broken))

        assert (future.result(TIMEOUT).adapter, future.result(TIMEOUT).stop) == (None, "diverged")
        assert_same(beside.result(TIMEOUT), trainer.train(TrainingRequest(_LATER, seed=1)))
