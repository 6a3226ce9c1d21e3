"""Watched trainings: they end where what is watched gains too little, hand over the best adapter of
those looked at, alone as in company, and never harm others.
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
    trainer_of,
    weights_of,
)

_LEARNT = SEQUENCES[0]  # is watched, and trained on
_STEPS = [_LEARNT] * 30
_HARMFUL = [[(7 * i) % 97 for i in range(12)], [(3 * i + 50) % 97 for i in range(12)]]
_GOING_ON_HURTS = [_LEARNT] * 8 + _HARMFUL * 20  # what is watched is learnt first, then unlearnt
_RATE = 1e-2


def lowest(training: TrainingResult) -> tuple[int, float]:
    """The look after a step that had the lowest loss."""
    return min(training.probe_losses[1:], key=lambda look: look[1])


def loss_of(trainer: Trainer, training: TrainingResult) -> float:
    """Of what is watched, under the adapter that was handed over."""
    assert training.adapter is not None
    return trainer.nats(_LEARNT, 1, training.adapter.weights) / (len(_LEARNT) - 1)


def test_it_goes_on_as_long_as_it_pays(trainer: Trainer) -> None:
    training = trainer.train(TrainingRequest(_STEPS, probe=Probe(tuple(_LEARNT), 0.01)))

    assert (training.stop, len(training.losses), training.adapter_sequences) == ("steps", 30, 30)


def test_it_ends_where_the_last_looks_brought_too_little(trainer: Trainer) -> None:
    gain = 1.8  # no loss falls by more than all of it, so 60 steps are too many

    training = trainer.train(
        TrainingRequest(_STEPS * 2, probe=Probe(tuple(_LEARNT), gain), learning_rate=2e-2)
    )

    looks = training.probe_losses
    assert training.stop == "gain"
    assert looks[-1][0] == len(training.losses) < 60
    assert [has_stalled(looks[:n], gain) for n in range(1, len(looks) + 1)] == [
        *[False] * (len(looks) - 1),
        True,
    ]


class TestTheBestAdapterIsHandedOver:
    @pytest.mark.parametrize("how", PLANS)
    def test_where_going_on_hurts(self, trainer: Trainer, how: str) -> None:
        training = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS,
                seed=3,
                probe=Probe(tuple(_LEARNT), 0.5),
                learning_rate=_RATE * (4 if how == "batched" else 1),
                plan=how,
            )
        )

        used, loss = lowest(training)
        assert training.stop == "gain"
        assert training.adapter_sequences == used < training.sequences_used
        assert training.probe_losses[-1][1] > loss
        assert loss_of(trainer, training) == pytest.approx(loss, rel=1e-5)
        assert training.before_and_after == (training.probe_losses[0][1], loss)

    def test_as_if_it_had_been_trained_no_further(self, trainer: Trainer) -> None:
        training = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS, seed=3, probe=Probe(tuple(_LEARNT), 0.5), learning_rate=_RATE
            )
        )

        no_further = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS[: training.adapter_sequences], seed=3, learning_rate=_RATE
            )
        )
        assert training.adapter is not None
        assert no_further.adapter is not None
        assert_close(weights_of(training), weights_of(no_further))
        assert training.adapter.losses == pytest.approx(no_further.adapter.losses, rel=1e-5)
        assert len(training.losses) == training.sequences_used > training.adapter_sequences

    def test_where_all_steps_are_taken(self, trainer: Trainer) -> None:
        # Its last steps hurt, and there are too few of them for a stop; the last one is no look's
        # turn.
        sequences = _GOING_ON_HURTS[:13]

        training = trainer.train(
            TrainingRequest(sequences, probe=Probe(tuple(_LEARNT), 0.5), learning_rate=_RATE)
        )

        assert training.stop == "steps"
        assert training.probe_losses[-1][0] == 13
        assert training.adapter_sequences == lowest(training)[0] < 13
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_where_the_time_is_up(self, trainer: Trainer) -> None:
        begun = threading.Event()

        def slow(progress: TrainingProgress) -> None:
            if progress.steps == 12:
                begun.wait(0.5)  # longer than there is time

        training = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS, seconds=0.4, probe=Probe(tuple(_LEARNT), 1e-9), learning_rate=_RATE
            ),
            on_step=slow,
        )

        assert training.stop == "seconds"
        assert training.probe_losses[-1][0] == training.sequences_used == 12
        assert training.adapter_sequences == lowest(training)[0]
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_where_training_diverges(self, trainer: Trainer) -> None:
        def explode(hidden: torch.Tensor) -> None:
            hidden.fill_(math.nan)

        with failing_on_poison(trainer, explode):
            training = trainer.train(
                TrainingRequest(
                    [*_GOING_ON_HURTS[:12], [POISON] * 12],
                    probe=Probe(tuple(_LEARNT), 0.5),
                    learning_rate=_RATE,
                )
            )

        assert (training.stop, training.sequences_used) == ("diverged", 12)
        assert training.adapter_sequences == lowest(training)[0] < 12
        assert loss_of(trainer, training) == pytest.approx(lowest(training)[1], rel=1e-5)

    def test_where_the_slot_was_given_up_meanwhile(self, tiny_llama: str) -> None:
        trainer = trainer_of(tiny_llama, slots=1)
        watch = Probe(tuple(_LEARNT), 0.5)
        alone = trainer.train(
            TrainingRequest(_GOING_ON_HURTS, seed=3, probe=watch, learning_rate=_RATE)
        )
        hurried = []

        def ask(progress: TrainingProgress) -> None:
            if progress.steps == alone.adapter_sequences + 1:  # the best is behind it
                hurried.append(
                    trainer.submit(TrainingRequest(SEQUENCES, seed=4, seconds=20.0, probe=watch))
                )

        overtaken = trainer.train(
            TrainingRequest(_GOING_ON_HURTS, seed=3, probe=watch, learning_rate=_RATE), on_step=ask
        )

        assert hurried[0].result(TIMEOUT).adapter is not None
        assert_same(overtaken, alone)
        assert overtaken.adapter_sequences == alone.adapter_sequences

    def test_of_an_adapter_that_is_trained_further(self, trainer: Trainer) -> None:
        earlier = trainer.train(TrainingRequest(_STEPS[:4], learning_rate=_RATE)).adapter
        assert earlier is not None

        training = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS,
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

    def test_to_nobody_who_has_left(self, trainer: Trainer) -> None:
        cancelled = threading.Event()

        def leave(progress: TrainingProgress) -> None:
            if progress.steps == 12:
                cancelled.set()

        training = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS, probe=Probe(tuple(_LEARNT), 1e-9), learning_rate=_RATE
            ),
            cancelled=cancelled,
            on_step=leave,
        )

        assert (training.adapter, training.stop, training.adapter_sequences) == (
            None,
            "cancelled",
            0,
        )


class TestWithoutAGain:
    """It is told whether it has helped; what is trained is what would be trained unwatched."""

    def test_there_is_one_look_before_and_one_after(self, trainer: Trainer) -> None:
        training = trainer.train(TrainingRequest(_STEPS, seed=3, probe=Probe(tuple(_LEARNT))))

        (none, before), (all_of_them, after) = training.probe_losses
        assert (none, all_of_them) == (0, 30)
        assert before == pytest.approx(trainer.nats(_LEARNT, 1) / (len(_LEARNT) - 1), rel=1e-5)
        assert after == pytest.approx(loss_of(trainer, training), rel=1e-5)
        assert training.before_and_after == (
            training.probe_losses[0][1],
            training.probe_losses[1][1],
        )

    def test_the_last_adapter_is_handed_over_even_where_going_on_hurts(
        self, trainer: Trainer
    ) -> None:
        training = trainer.train(
            TrainingRequest(
                _GOING_ON_HURTS, seed=3, probe=Probe(tuple(_LEARNT)), learning_rate=_RATE
            )
        )

        assert_same(
            training, trainer.train(TrainingRequest(_GOING_ON_HURTS, seed=3, learning_rate=_RATE))
        )
        assert training.adapter_sequences == training.sequences_used == len(_GOING_ON_HURTS)

    def test_the_last_look_shares_a_forward_pass_with_the_check_of_the_adapter(
        self, trainer: Trainer
    ) -> None:
        passes: list[int] = []
        hook = trainer.base.model.base_model.register_forward_pre_hook(
            lambda _, given: passes.append(len(given[0]))
        )
        try:
            trainer.train(TrainingRequest(_STEPS[:2], probe=Probe(tuple(_LEARNT))))
        finally:
            hook.remove()

        assert passes == [1, 1, 1, 2]  # the look before, two steps, and both at the end

    def test_a_look_that_there_is_no_time_for_is_left_out_rather_than_the_step(
        self, trainer: Trainer
    ) -> None:
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


def test_it_tells_what_the_adapter_makes_of_what_is_watched(trainer: Trainer) -> None:
    nats = {0: trainer.nats(_LEARNT, 1)}

    def score(progress: TrainingProgress) -> None:
        nats[progress.sequences_used] = trainer.nats(_LEARNT, 1, trainer.export(progress.slot))

    training = trainer.train(
        TrainingRequest(_STEPS, probe=Probe(tuple(_LEARNT), 1e-9)), on_step=score
    )

    assert len(training.probe_losses) > 2
    for used, loss in training.probe_losses:
        assert loss == pytest.approx(nats[used] / (len(_LEARNT) - 1), rel=1e-5)


def test_in_company_it_ends_as_it_does_alone(trainer: Trainer) -> None:
    options = [
        {"probe": Probe(tuple(_LEARNT), gain), "learning_rate": rate}
        for gain in (90.0, 1.5, 0.01, None)
        for rate in (3e-3, _RATE)
    ]
    alone = [trainer.train(TrainingRequest(_GOING_ON_HURTS, **each)) for each in options]  # type: ignore[arg-type]

    with paused(trainer):
        futures = [trainer.submit(TrainingRequest(_GOING_ON_HURTS, **each)) for each in options]  # type: ignore[arg-type]
    together = [future.result(TIMEOUT) for future in futures]

    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)
        assert one.adapter_sequences == other.adapter_sequences
        assert [used for used, _ in one.probe_losses] == [used for used, _ in other.probe_losses]


def test_a_look_that_fails_is_that_requests_end_alone(trainer: Trainer) -> None:
    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("no")

    alone = trainer.train(TrainingRequest(other_requests(1)[0], probe=Probe(tuple(_LEARNT), 1e-9)))

    with failing_on_poison(trainer, broken):
        with paused(trainer):
            poisoned = trainer.submit(TrainingRequest(_STEPS, probe=Probe((1, POISON, 2), 1.0)))
            healthy = trainer.submit(
                TrainingRequest(other_requests(1)[0], probe=Probe(tuple(_LEARNT), 1e-9))
            )
        with pytest.raises(RuntimeError, match="no"):
            poisoned.result(TIMEOUT)
        assert_same(healthy.result(TIMEOUT), alone)


def test_a_look_that_is_not_finite_is_a_divergence_and_never_told(trainer: Trainer) -> None:
    def explode(hidden: torch.Tensor) -> None:
        hidden.fill_(math.nan)

    with failing_on_poison(trainer, explode):
        training = trainer.train(TrainingRequest(_STEPS, probe=Probe((1, POISON, 2), 1.0)))

    assert (training.stop, training.adapter, training.probe_losses) == ("diverged", None, ())


def test_of_a_long_text_the_end_is_watched(trainer: Trainer) -> None:
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


def test_one_token_cannot_be_watched(trainer: Trainer) -> None:
    with pytest.raises(ValueError, match="tokens"):
        trainer.submit(TrainingRequest(_STEPS, probe=Probe((1,), 1.0)))


def test_adapters_are_equal_whether_or_not_they_are_watched(trainer: Trainer) -> None:
    probe_losses = trainer.train(TrainingRequest(_STEPS, seed=5, probe=Probe(tuple(_LEARNT), 1e-9)))

    assert_same(
        probe_losses, replace(trainer.train(TrainingRequest(_STEPS, seed=5)), adapter_sequences=30)
    )


@pytest.mark.parametrize("rate", [3e-3, _RATE])
@pytest.mark.parametrize("gain", [0.05, 0.5, 2.0])
def test_what_is_foretold_from_known_losses_is_what_is_done(
    trainer: Trainer, gain: float, rate: float
) -> None:
    losses = [trainer.nats(_LEARNT, 1)]

    def score(progress: TrainingProgress) -> None:
        losses.append(trainer.nats(_LEARNT, 1, trainer.export(progress.slot)))

    trainer.train(TrainingRequest(_GOING_ON_HURTS, seed=3, learning_rate=rate), on_step=score)

    training = trainer.train(
        TrainingRequest(
            _GOING_ON_HURTS, seed=3, learning_rate=rate, probe=Probe(tuple(_LEARNT), gain)
        )
    )

    assert (training.sequences_used, training.adapter_sequences) == simulate(losses, gain)
