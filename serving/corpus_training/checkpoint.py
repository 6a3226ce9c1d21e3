"""Checkpoint: a training of a corpus between two segments; and the corpus of it, as a protocol.

The corpus may be in this process or in another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from adapters.model.row import Row
from adapters.training import TrainingState
from selection.corpus.trained.plan import PlannedPart, TrainingPlan
from serving.corpus_training.course import Course, Decision, GoOn, Position
from serving.corpus_training.values import CorpusSummary, TrainingOptions


@dataclass(frozen=True)
class Checkpoint:
    """A training of a corpus between two segments; from it alone the training goes on.

    Attributes:
        plan: the parts to train, in order.
        rates: multiples of the trainer's learning rate that are tried, the highest first.
        names: names of the adapter's parts before the part in training.
        rate: multiple of the trainer's learning rate; None until it is chosen.
        passes: number of passes; None until it is chosen.
        number: the part that is in training.
        position: how far it has come.
        state: its adapter with Adam's moments; None to begin as the part does.
        kept: the adapter that is kept for a comparison.
        learnt: ids of the sequences that the part had learnt before this training.
        scale_numerator: LoRA alpha.
        fresh: whether this training began anew although there was an adapter.
    """

    plan: TrainingPlan
    rates: tuple[float, float]
    names: tuple[str, ...] = ()
    rate: float | None = None
    passes: int | None = None
    number: int = 0
    position: Position = field(default_factory=Position)
    state: TrainingState | None = None
    kept: TrainingState | None = None
    learnt: tuple[int, ...] = ()
    scale_numerator: float = 0.0
    fresh: bool = False

    def begun(self) -> Checkpoint:
        """The beginning of the part in training, if not all are trained."""
        return self if self.is_finished else replace(self, position=self.course.first())

    @property
    def is_finished(self) -> bool:
        """Whether all parts are trained."""
        return self.number == len(self.plan.parts)

    @property
    def part(self) -> PlannedPart:
        """The part that is in training."""
        return self.plan.parts[self.number]

    @property
    def course(self) -> Course:
        """How the part is learnt."""
        return self._course(self.part)

    @property
    def phase_ids(self) -> tuple[int, ...]:
        """Ids of the sequences of the phase."""
        return self.course.sequences(self.position.phase)

    @property
    def all_learnt(self) -> tuple[int, ...]:
        """Ids of all sequences that the adapter of the part was trained on."""
        return self.learnt + self.course.learnt(self.position)

    @property
    def needed(self) -> tuple[int, ...]:
        """Ids of the sequences without which the part must begin again: what it has learnt, and
        what it is judged on.
        """
        course = self.course
        return self.all_learnt + (course.held_out if course.is_judged(self.position) else ())

    @property
    def count(self) -> tuple[int, int]:
        """Number of sequences taken in all parts, repeats counted, and until the end."""
        done, total = self.course.count(self.position)
        for number, part in enumerate(self.plan.parts):
            if number != self.number:
                course = self._course(part)
                _, every = course.count(course.first())
                total += every
                done += every if number < self.number else 0
        return done, total

    def judged(self, loss: float) -> Checkpoint:
        """With the loss on the held-out documents before learning."""
        return replace(self, position=replace(self.position, losses=(loss,)))

    def taken(self, ids: Sequence[int], found: Mapping[int, Row]) -> Checkpoint:
        """After the next sequences of the phase, of which these were found."""
        missing = self.position.missing
        # What is missing at a repetition was learnt before, and deleted since.
        if not self.position.is_repetition:
            missing += tuple(each for each in ids if each not in found)
        done = self.position.done + len(ids)
        return replace(self, position=replace(self.position, done=done, missing=missing))

    def after(self, decision: Decision) -> Checkpoint:
        """What follows the end of a phase that does not end the part."""
        assert decision.position is not None, "the part is learnt"
        states = {GoOn.CURRENT: self.state, GoOn.KEPT: self.kept, GoOn.START: None}
        kept = self.state if decision.is_kept else self.kept
        return replace(
            self,
            position=decision.position,
            state=states[decision.adapter],
            kept=None if decision.position.kept_loss is None else kept,
        )

    def next_part(self, saved: str) -> Checkpoint:
        """The beginning of the next part, with the choices of this one, which was saved under a
        name.
        """
        rate, passes = self.position.rate, self.position.passes
        return Checkpoint(
            self.plan,
            self.rates,
            (*(name for name in self.names if name not in self.part.replaces), saved),
            self.rate or rate,
            self.passes or passes,
            self.number + 1,
            fresh=self.fresh,
        ).begun()

    def _course(self, part: PlannedPart) -> Course:
        return Course(part.ids, self.rates, part.held_out, self.rate, self.passes)


class CorpusSide(Protocol):
    """The corpus of a training. All methods raise CorpusError if it cannot be used any more."""

    async def begin(self, options: TrainingOptions) -> Checkpoint:
        """The beginning of a new training; finished if the adapter has learnt the corpus."""

    async def resume(self) -> Checkpoint | None:
        """The checkpoint of an interrupted training; None if there is none that this trainer can
        go on from.
        """

    async def rows(self, ids: Sequence[int]) -> Mapping[int, Row]:
        """The sequences of these ids, in this order, except for those that were deleted."""

    async def has_deleted(self, ids: Sequence[int]) -> bool:
        """Whether any of these sequences was deleted."""

    async def earlier(self, part: str) -> tuple[TrainingState, tuple[int, ...]]:
        """The adapter of a part with Adam's moments, to train it further, and what it has
        learnt.

        Raises:
            CorpusError: the part must be trained anew.
        """

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint, atomically."""

    async def clear_checkpoint(self) -> None:
        """Remove the checkpoint."""

    async def drop_invalid(self) -> None:
        """Remove the parts that have learnt what was deleted since, and damaged ones."""

    async def save(self, checkpoint: Checkpoint) -> str:
        """Save the adapter of the part in training, atomically; requests start from it at once.

        Returns:
            The name of the saved part.
        """

    async def summary(self) -> CorpusSummary:
        """What the adapter has learnt."""
