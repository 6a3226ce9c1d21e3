"""Trainings with a probe: they stop when the probe gains too little, return the best adapter, alone
and in a batch, and do not affect others.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch

from adapters.early_stopping import has_stalled, simulate
from adapters.step_plan import PLANS
from adapters.trainer import Trainer
from adapters.training import Probe, TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.peft_reference import assert_close
from tests.adapters.trainers import (
    POISON,
    SEQUENCES,
    TIMEOUT,
    assert_same,
    failing_on_poison,
    other_requests,
    paused,
    simulated_trainer_of,
    trainer_of,
    weights_of,
)

# The probe, and a training sequence.
_LEARNT = SEQUENCES[0]
_STEPS = [_LEARNT] * 30
_HARMFUL = [[(7 * i) % 97 for i in range(12)], [(3 * i + 50) % 97 for i in range(12)]]
# The probe is learnt first, then unlearnt.
_OVERTRAINED = [_LEARNT] * 8 + _HARMFUL * 20
_RATE = 1e-2


def lowest(training: TrainingResult) -> tuple[int, float]:
    """The evaluation after a step with the lowest loss."""
    return min(training.probe_losses[1:], key=lambda evaluation: evaluation[1])


def loss_of(trainer: Trainer, training: TrainingResult) -> float:
    """Loss of the probe under the returned adapter."""
    assert training.adapter is not None
    return trainer.nats(_LEARNT, 1, training.adapter.weights) / (len(_LEARNT) - 1)


def test_training_goes_on_while_the_probe_gains(trainer: Trainer) -> None:
    training = trainer.train(TrainingRequest(_STEPS, probe=Probe(tuple(_LEARNT), 0.01)))

    assert (training.stop, len(training.losses), training.adapter_sequences) == ("steps", 30, 30)


def test_training_ends_when_the_probe_gains_too_little(trainer: Trainer) -> None:
    # 60 steps of 1.8 per cent would be more than the whole loss.
    gain = 1.8

    training = trainer.train(
        TrainingRequest(_STEPS * 2, probe=Probe(tuple(_LEARNT), gain), learning_rate=2e-2)
    )

    evaluations = training.probe_losses
    assert training.stop == "gain"
    assert evaluations[-1][0] == len(training.losses) < 60
    assert [has_stalled(evaluations[:n], gain) for n in range(1, len(evaluations) + 1)] == [
        *[False] * (len(evaluations) - 1),
        True,
    ]


class TestTheBestAdapterIsReturned:
    @pytest.mark.parametrize("plan", PLANS)
    def test_when_more_steps_hurt(self, trainer: Trainer, plan: str) -> None:
        training = trainer.train(
            TrainingRequest(
                _OVERTRAINED,
                seed=3,
                probe=Probe(tuple(_LEARNT), 0.5),
                learning_rate=_RATE * (4 if plan == "batched" else 1),
                plan=plan,
            )
        )

        used, loss = lowest(training)
        assert training.stop == "gain"
        assert training.adapter_sequences == used < training.sequences_used
        assert training.probe_losses[-1][1] > loss
        assert loss_of(trainer, training) == pytest.approx(loss, rel=1e-5)
        assert training.before_and_after == (training.probe_losses[0][1], loss)

    def test_it_equals_an_adapter_of_fewer_steps(self, trainer: Trainer) -> None:
        training = trainer.train(
            TrainingRequest(
                _OVERTRAINED, seed=3, probe=Probe(tuple(_LEARNT), 0.5), learning_rate=_RATE
            )
        )

        no_further = trainer.train(
            TrainingRequest(_OVERTRAINED[: training.adapter_sequences], seed=3, learning_rate=_RATE)
        )
        assert training.adapter is not None
        assert no_further.adapter is not None
        assert_close(weights_of(training), weights_of(no_further))
        assert training.adapter.losses == pytest.approx(no_further.adapter.losses, rel=1e-5)
        assert len(training.losses) == training.sequences_used > training.adapter_sequences

    def test_when_all_steps_are_taken(self, trainer: Trainer) -> None:
        # The last steps hurt, but are too few for a stop; no evaluation is due after the last one.
        sequences = _OVERTRAINED[:13]

        training = trainer.train(
            TrainingRequest(sequences, probe=Probe(tuple(_LEARNT), 0.5), learning_rate=_RATE)
        )

        assert training.stop == "steps"
        assert training.probe_losses[-1][0] == 13
        assert training.adapter_sequences == lowest(training)[0] < 13
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_when_the_time_is_up(self, tiny_llama: str) -> None:
        trainer, clock = simulated_trainer_of(tiny_llama)

        def use_up_the_time(progress: TrainingProgress) -> None:
            if progress.steps == 12:
                clock.now += 100.0

        training = trainer.train(
            TrainingRequest(
                _OVERTRAINED,
                seconds=100.0,
                probe=Probe(tuple(_LEARNT), 1e-9),
                learning_rate=_RATE,
            ),
            on_step=use_up_the_time,
        )

        assert training.stop == "seconds"
        assert training.probe_losses[-1][0] == training.sequences_used == 12
        assert training.adapter_sequences == lowest(training)[0]
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_when_training_diverges(self, trainer: Trainer) -> None:
        def explode(hidden: torch.Tensor) -> None:
            hidden.fill_(math.nan)

        with failing_on_poison(trainer, explode):
            training = trainer.train(
                TrainingRequest(
                    [*_OVERTRAINED[:12], [POISON] * 12],
                    probe=Probe(tuple(_LEARNT), 0.5),
                    learning_rate=_RATE,
                )
            )

        assert (training.stop, training.sequences_used) == ("diverged", 12)
        assert training.adapter_sequences == lowest(training)[0] < 12
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_when_the_request_was_preempted(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        probe = Probe(tuple(_LEARNT), 0.5)
        alone = trainer.train(
            TrainingRequest(_OVERTRAINED, seed=3, probe=probe, learning_rate=_RATE)
        )
        urgent = []

        def submit_urgent(progress: TrainingProgress) -> None:
            # The best evaluation has just passed.
            if progress.steps == alone.adapter_sequences + 1:
                urgent.append(
                    trainer.submit(TrainingRequest(SEQUENCES, seed=4, seconds=20.0, probe=probe))
                )

        preempted = trainer.train(
            TrainingRequest(_OVERTRAINED, seed=3, probe=probe, learning_rate=_RATE),
            on_step=submit_urgent,
        )

        assert urgent[0].result(TIMEOUT).adapter is not None
        assert_same(preempted, alone)
        assert preempted.adapter_sequences == alone.adapter_sequences

    def test_when_training_starts_from_an_earlier_adapter(self, trainer: Trainer) -> None:
        earlier = trainer.train(TrainingRequest(_STEPS[:4], learning_rate=_RATE)).adapter
        assert earlier is not None

        training = trainer.train(
            TrainingRequest(
                _OVERTRAINED,
                start=earlier.weights,
                probe=Probe(tuple(_LEARNT), 0.5),
                learning_rate=_RATE,
            )
        )

        before = trainer.nats(_LEARNT, 1, earlier.weights) / (len(_LEARNT) - 1)
        assert training.probe_losses[0][0] == 0
        assert training.probe_losses[0][1] == pytest.approx(before, rel=1e-5)
        assert training.adapter_sequences == lowest(training)[0] < training.sequences_used
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_but_not_to_a_cancelled_request(self, trainer: Trainer) -> None:
        cancelled = threading.Event()

        def cancel(progress: TrainingProgress) -> None:
            if progress.steps == 12:
                cancelled.set()

        training = trainer.train(
            TrainingRequest(_OVERTRAINED, probe=Probe(tuple(_LEARNT), 1e-9), learning_rate=_RATE),
            cancelled=cancelled,
            on_step=cancel,
        )

        assert (training.adapter, training.stop, training.adapter_sequences) == (
            None,
            "cancelled",
            0,
        )


class TestWithoutAGain:
    """The probe is only measured; the training is the same as without it."""

    def test_the_probe_is_evaluated_once_before_and_once_after(self, trainer: Trainer) -> None:
        training = trainer.train(TrainingRequest(_STEPS, seed=3, probe=Probe(tuple(_LEARNT))))

        (none, before), (all_of_them, after) = training.probe_losses
        assert (none, all_of_them) == (0, 30)
        assert before == pytest.approx(trainer.nats(_LEARNT, 1) / (len(_LEARNT) - 1), rel=1e-5)
        assert after == pytest.approx(loss_of(trainer, training), rel=1e-5)
        assert training.before_and_after == (
            training.probe_losses[0][1],
            training.probe_losses[1][1],
        )

    def test_the_last_adapter_is_returned_even_if_more_steps_hurt(self, trainer: Trainer) -> None:
        training = trainer.train(
            TrainingRequest(_OVERTRAINED, seed=3, probe=Probe(tuple(_LEARNT)), learning_rate=_RATE)
        )

        assert_same(
            training, trainer.train(TrainingRequest(_OVERTRAINED, seed=3, learning_rate=_RATE))
        )
        assert training.adapter_sequences == training.sequences_used == len(_OVERTRAINED)

    def test_the_last_evaluation_shares_the_final_forward_pass(self, trainer: Trainer) -> None:
        passes: list[int] = []
        hook = trainer.base.model.base_model.register_forward_pre_hook(
            lambda _, given: passes.append(len(given[0]))
        )
        try:
            trainer.train(TrainingRequest(_STEPS[:2], probe=Probe(tuple(_LEARNT))))
        finally:
            hook.remove()

        # The first evaluation, two steps, and the final evaluation with the probe.
        assert passes == [1, 1, 1, 2]

    def test_a_probe_without_time_is_dropped_rather_than_the_step(self, trainer: Trainer) -> None:
        with trainer._loop.model_lock:
            trainer._loop.times.forget()
            for length in (12, 24, 12, 24):
                trainer._loop.times.step.observe(length, 0.01)
                trainer._loop.times.final.observe(length, 0.01)
                trainer._loop.times.probe.observe(length, 1e3)

        training = trainer.train(
            TrainingRequest(_STEPS[:3], seconds=5.0, probe=Probe(tuple(_LEARNT)))
        )

        assert (training.stop, len(training.losses), training.probe_losses) == ("steps", 3, ())
        assert training.before_and_after is None


def test_the_reported_losses_are_the_adapters(trainer: Trainer) -> None:
    nats = {0: trainer.nats(_LEARNT, 1)}

    def score(progress: TrainingProgress) -> None:
        nats[progress.sequences_used] = trainer.nats(_LEARNT, 1, trainer.export(progress.slot))

    training = trainer.train(
        TrainingRequest(_STEPS, probe=Probe(tuple(_LEARNT), 1e-9)), on_step=score
    )

    assert len(training.probe_losses) > 2
    for used, loss in training.probe_losses:
        assert loss == pytest.approx(nats[used] / (len(_LEARNT) - 1), rel=1e-5)


def test_early_stopping_is_the_same_in_a_batch_as_alone(trainer: Trainer) -> None:
    options = [
        {"probe": Probe(tuple(_LEARNT), gain), "learning_rate": rate}
        for gain in (90.0, 1.5, 0.01, None)
        for rate in (3e-3, _RATE)
    ]
    alone = [trainer.train(TrainingRequest(_OVERTRAINED, **each)) for each in options]  # type: ignore[arg-type]

    with paused(trainer):
        futures = [trainer.submit(TrainingRequest(_OVERTRAINED, **each)) for each in options]  # type: ignore[arg-type]
    together = [future.result(TIMEOUT) for future in futures]

    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)
        assert one.adapter_sequences == other.adapter_sequences
        assert [used for used, _ in one.probe_losses] == [used for used, _ in other.probe_losses]


def test_a_failing_evaluation_ends_only_that_request(trainer: Trainer) -> None:
    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("a broken kernel")

    alone = trainer.train(TrainingRequest(other_requests(1)[0], probe=Probe(tuple(_LEARNT), 1e-9)))

    with failing_on_poison(trainer, broken):
        with paused(trainer):
            poisoned = trainer.submit(TrainingRequest(_STEPS, probe=Probe((1, POISON, 2), 1.0)))
            healthy = trainer.submit(
                TrainingRequest(other_requests(1)[0], probe=Probe(tuple(_LEARNT), 1e-9))
            )
        with pytest.raises(RuntimeError, match="a broken kernel"):
            poisoned.result(TIMEOUT)
        assert_same(healthy.result(TIMEOUT), alone)


def test_a_probe_loss_that_is_not_finite_is_a_divergence(trainer: Trainer) -> None:
    def explode(hidden: torch.Tensor) -> None:
        hidden.fill_(math.nan)

    with failing_on_poison(trainer, explode):
        training = trainer.train(TrainingRequest(_STEPS, probe=Probe((1, POISON, 2), 1.0)))

    assert (training.stop, training.adapter, training.probe_losses) == ("diverged", None, ())


def test_the_end_of_a_long_probe_is_used(trainer: Trainer) -> None:
    long = tuple(_LEARNT) * 20

    training = trainer.train(TrainingRequest(_STEPS[:2], probe=Probe(long, 1e-9)))

    end = long[-trainer.base.context :]
    assert training.probe_losses[0][1] == pytest.approx(
        trainer.nats(end, 1) / (len(end) - 1), rel=1e-5
    )


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_gain_is_refused(trainer: Trainer, gain: float) -> None:
    with pytest.raises(ValueError, match="gain"):
        trainer.submit(TrainingRequest(_STEPS, probe=Probe(tuple(_LEARNT), gain)))


def test_a_probe_of_one_token_is_refused(trainer: Trainer) -> None:
    with pytest.raises(ValueError, match="tokens"):
        trainer.submit(TrainingRequest(_STEPS, probe=Probe((1,), 1.0)))


def test_a_probe_does_not_change_the_adapter(trainer: Trainer) -> None:
    probe_losses = trainer.train(TrainingRequest(_STEPS, seed=5, probe=Probe(tuple(_LEARNT), 1e-9)))

    assert_same(
        probe_losses, replace(trainer.train(TrainingRequest(_STEPS, seed=5)), adapter_sequences=30)
    )


@pytest.mark.parametrize("rate", [3e-3, _RATE])
@pytest.mark.parametrize("gain", [0.05, 0.5, 2.0])
def test_a_simulation_from_known_losses_predicts_the_training(
    trainer: Trainer, gain: float, rate: float
) -> None:
    losses = [trainer.nats(_LEARNT, 1)]

    def score(progress: TrainingProgress) -> None:
        losses.append(trainer.nats(_LEARNT, 1, trainer.export(progress.slot)))

    trainer.train(TrainingRequest(_OVERTRAINED, seed=3, learning_rate=rate), on_step=score)

    training = trainer.train(
        TrainingRequest(_OVERTRAINED, seed=3, learning_rate=rate, probe=Probe(tuple(_LEARNT), gain))
    )

    assert (training.sequences_used, training.adapter_sequences) == simulate(losses, gain)
