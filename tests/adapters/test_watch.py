"""Watched trainings: they end where what is watched gains too little, alone as in company, and never harm others."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from adapters.trainer import Trainer
from adapters.training import Progress, Watch
from tests.adapters.trainers import POISON, SEQUENCES, SOON, assert_same, held, others, trouble

_LEARNT = SEQUENCES[0]  # is watched, and trained on
_STEPS = [_LEARNT] * 30


def test_it_goes_on_as_long_as_it_pays(trainer: Trainer) -> None:
    training = trainer.train(_STEPS, watch=Watch(tuple(_LEARNT), 0.01))

    assert (training.stop, len(training.losses)) == ("steps", 30)


def test_it_ends_where_it_does_not(trainer: Trainer) -> None:
    training = trainer.train(_STEPS, watch=Watch(tuple(_LEARNT), 90.0))

    assert (training.stop, len(training.losses)) == ("gain", 2)
    assert training.adapter is not None
    assert_same(training, replace(trainer.train(_STEPS[:2]), stop="gain"))


def test_the_stop_is_the_first_look_that_brought_too_little(trainer: Trainer) -> None:
    gain = 1.8  # no loss falls by more than all of it, so 60 steps are too many

    training = trainer.train(_STEPS * 2, watch=Watch(tuple(_LEARNT), gain), learning_rate=2e-2)

    (none, before), *looks = training.watched
    brought = [100 * (before - loss) / before / used for used, loss in looks]
    assert none == 0
    assert len(looks) > 2
    assert training.stop == "gain"
    assert looks[-1][0] == len(training.losses)
    assert all(each >= gain for each in brought[:-1])
    assert brought[-1] < gain


def test_it_tells_what_the_adapter_makes_of_what_is_watched(trainer: Trainer) -> None:
    watched = _LEARNT
    nats = {0: trainer.nats(watched, 1)}

    def score(progress: Progress) -> None:
        nats[progress.used] = trainer.nats(watched, 1, trainer.export(progress.slot))

    training = trainer.train(_STEPS, watch=Watch(tuple(watched), 1e-9), on_step=score)

    assert len(training.watched) > 2
    for used, loss in training.watched:
        assert loss == pytest.approx(nats[used] / (len(watched) - 1), rel=1e-5)


def test_looks_grow_rare(trainer: Trainer) -> None:
    training = trainer.train([_LEARNT] * 60, watch=Watch(tuple(_LEARNT), 1e-9))

    used = [used for used, _ in training.watched]
    assert used[:5] == [0, 2, 4, 6, 8]
    assert all(later - earlier >= earlier // 4 for earlier, later in itertools.pairwise(used))


def test_in_company_it_ends_as_it_does_alone(trainer: Trainer) -> None:
    watches = [Watch(tuple(_LEARNT), gain) for gain in (90.0, 1.5, 0.01)]
    alone = [trainer.train(_STEPS, watch=watch) for watch in watches]

    with held(trainer):
        futures = [trainer.submit(_STEPS, watch=watch) for watch in watches]
    together = [future.result(SOON) for future in futures]

    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


def test_a_look_that_fails_is_that_requests_end_alone(trainer: Trainer) -> None:
    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("no")

    alone = trainer.train(others(1)[0], watch=Watch(tuple(_LEARNT), 1e-9))

    with trouble(trainer, broken):
        with held(trainer):
            poisoned = trainer.submit(_STEPS, watch=Watch((1, POISON, 2), 1.0))
            healthy = trainer.submit(others(1)[0], watch=Watch(tuple(_LEARNT), 1e-9))
        with pytest.raises(RuntimeError, match="no"):
            poisoned.result(SOON)
        assert_same(healthy.result(SOON), alone)


def test_of_a_long_text_the_end_is_watched(trainer: Trainer) -> None:
    long = tuple(_LEARNT) * 20

    training = trainer.train(_STEPS[:2], watch=Watch(long, 1e-9))

    end = long[-trainer.base.context :]
    assert training.watched[0][1] == pytest.approx(trainer.nats(end, 1) / (len(end) - 1), rel=1e-5)


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_a_gain_that_is_none_is_refused(trainer: Trainer, gain: float) -> None:
    with pytest.raises(ValueError, match="gain"):
        trainer.submit(_STEPS, watch=Watch(tuple(_LEARNT), gain))


def test_one_token_cannot_be_watched(trainer: Trainer) -> None:
    with pytest.raises(ValueError, match="tokens"):
        trainer.submit(_STEPS, watch=Watch((1,), 1.0))
