"""Course: in which order a part of a corpus is learnt, and what its held-out documents decide.

A part is learnt in phases. Each learning rate is tried on the first sequences; the better one goes
on. Passes over the sequences follow, another one only while the last one has lowered the loss on
the held-out documents; these are learnt last. Pure: numbers in, positions out, so that a position
in a checkpoint is all that an interrupted training needs beside its adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

# Sequences on which each learning rate is tried.
TRIAL_SEQUENCES = 64
MAX_PASSES = 3
# A difference in the loss on the held-out documents that counts, as a share: another pass follows
# one that lowered it by that much, and of two rates the lower one goes on if it is not behind by
# more. A short trial flatters the higher one, which may do harm later.
MIN_FALL = 0.01


class Phase(StrEnum):
    """A phase of learning."""

    RATE = "choosing the learning rate"
    PASS = "learning"  # noqa: S105
    HELD_OUT = "learning the held-out documents"


@dataclass(frozen=True)
class Position:
    """How far the learning of a part has come.

    Attributes:
        phase: the phase.
        number: which learning rate is tried, or which pass this is, from 0 on.
        done: number of sequences of the phase that were taken.
        rate: multiple of the trainer's learning rate.
        passes: number of passes of the adapter so far.
        losses: loss on the held-out documents before learning and after each pass, in nats per
            token; empty without such documents.
        kept_loss: that loss of the adapter that is kept for a comparison; None if none is kept.
        missing: ids of sequences that had been deleted before they were learnt.
    """

    phase: Phase = Phase.PASS
    number: int = 0
    done: int = 0
    rate: float = 1.0
    passes: int = 0
    losses: tuple[float, ...] = ()
    kept_loss: float | None = None
    missing: tuple[int, ...] = ()

    @property
    def is_repetition(self) -> bool:
        """Whether the sequences of the phase were learnt before."""
        return self.phase is not Phase.HELD_OUT and self.number > 0

    def as_dict(self) -> dict[str, Any]:
        """The position for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Position:
        """The inverse of `as_dict`.

        Raises:
            KeyError, TypeError, ValueError: invalid fields.
        """
        phase, losses, missing = (fields[name] for name in ("phase", "losses", "missing"))
        values = {**fields, "phase": Phase(phase), "losses": tuple(losses)}
        return cls(**{**values, "missing": tuple(missing)})


class GoOn(StrEnum):
    """With which adapter the next phase begins."""

    CURRENT = "current"
    KEPT = "kept"
    START = "start"


class Decision(NamedTuple):
    """What follows a phase.

    Attributes:
        position: where the next phase begins; None if the part is learnt.
        adapter: with which adapter.
        is_kept: whether the adapter so far is kept for a comparison.
    """

    position: Position | None
    adapter: GoOn = GoOn.CURRENT
    is_kept: bool = False


@dataclass(frozen=True)
class Course:
    """The sequences of a part, and how they are learnt.

    Attributes:
        learn: ids of the sequences of the passes, in order.
        rates: multiples of the trainer's learning rate that are tried, the highest first.
        held_out: ids of the sequences that are learnt last.
        rate: multiple of the trainer's learning rate; None to choose it.
        passes: number of passes; None to choose it.
    """

    learn: tuple[int, ...]
    rates: tuple[float, float]
    held_out: tuple[int, ...] = ()
    rate: float | None = None
    passes: int | None = None

    @property
    def chooses_rate(self) -> bool:
        """Whether learning rates are tried first."""
        return self.rate is None and bool(self.held_out)

    @property
    def chooses(self) -> bool:
        """Whether anything is chosen, so that the held-out documents are evaluated."""
        return bool(self.held_out) and (self.rate is None or self.passes is None)

    def first(self, losses: tuple[float, ...] = ()) -> Position:
        """The position before the first sequence, for this loss on the held-out documents."""
        phase = Phase.RATE if self.chooses_rate else Phase.PASS
        return Position(
            phase, rate=self.rates[0] if self.rate is None else self.rate, losses=losses
        )

    def sequences(self, phase: Phase) -> tuple[int, ...]:
        """The ids of a phase's sequences, in order."""
        if phase is Phase.HELD_OUT:
            return self.held_out
        return self.learn[:TRIAL_SEQUENCES] if phase is Phase.RATE else self.learn

    def is_judged(self, position: Position) -> bool:
        """Whether the end of a phase needs the loss on the held-out documents."""
        return self.chooses and position.phase is not Phase.HELD_OUT

    def after(self, position: Position, loss: float | None) -> Decision:
        """What follows the end of a phase.

        Args:
            position: the end of the phase.
            loss: loss on the held-out documents then; None where it is not judged, infinite if the
                adapter has diverged.
        """
        match position.phase:
            case Phase.RATE:
                assert loss is not None, "a trial is judged"
                return self._after_trial(position, loss)
            case Phase.PASS:
                return self._after_pass(position, loss)
            case Phase.HELD_OUT:
                return Decision(None)

    def _after_trial(self, position: Position, loss: float) -> Decision:
        number, best = position.number, position.kept_loss
        is_best = best is None or (1 - MIN_FALL) * loss < best
        best_loss = loss if is_best else best
        if number + 1 < len(self.rates):
            following = replace(position, number=number + 1, done=0, kept_loss=best_loss)
            return Decision(replace(following, rate=self.rates[number + 1]), GoOn.START, is_best)
        # With two rates the kept adapter is that of the first one.
        rate = position.rate if is_best else self.rates[0]
        passing = replace(position, phase=Phase.PASS, number=0, rate=rate, kept_loss=None)
        return Decision(passing, GoOn.CURRENT if is_best else GoOn.KEPT)

    def _after_pass(self, position: Position, loss: float | None) -> Decision:
        taken = position.number + 1
        judged = replace(
            position,
            done=0,
            passes=taken,
            losses=position.losses if loss is None else (*position.losses, loss),
            kept_loss=None,
        )
        again = replace(judged, number=taken)
        last = replace(judged, phase=Phase.HELD_OUT, number=0)
        if self.passes is not None or loss is None:
            return Decision(last if taken >= (self.passes or 1) else again)
        before = position.losses[-1] if position.losses else math.inf
        if position.kept_loss is not None and loss >= position.kept_loss:
            return Decision(replace(last, passes=position.number), GoOn.KEPT)
        if taken == MAX_PASSES or loss > (1 - MIN_FALL) * before:
            return Decision(last)
        return Decision(replace(again, kept_loss=loss), is_kept=True)

    def learnt(self, position: Position) -> tuple[int, ...]:
        """The ids of all sequences that the adapter at a position, or the one that is kept, was
        trained on.
        """
        if position.phase is Phase.HELD_OUT:
            ids = self.learn + self.held_out[: position.done]
        elif position.is_repetition:
            ids = self.sequences(position.phase)
        else:
            ids = self.learn[: position.done]
        missing = set(position.missing)
        return tuple(each for each in ids if each not in missing)

    def count(self, position: Position) -> tuple[int, int]:
        """Number of sequences taken until a position, repeats counted, and until the end if no
        further pass is chosen.
        """
        trial = len(self.sequences(Phase.RATE)) if self.chooses_rate else 0
        extra, every = (len(self.rates) - 1) * trial, len(self.learn)
        if position.phase is Phase.RATE:
            done, passes = position.number * trial + position.done, 1
        elif position.phase is Phase.PASS:
            done, passes = extra + position.number * every + position.done, position.number + 1
        else:
            # One that was taken back was taken all the same.
            passes = max(position.passes, len(position.losses) - 1)
            done = extra + passes * every + position.done
        return done, extra + max(passes, self.passes or 1) * every + len(self.held_out)
