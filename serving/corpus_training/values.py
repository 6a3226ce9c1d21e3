"""The values of the training of a corpus: its options, its progress and its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from serving.corpus_training.course import Phase
from serving.errors import MayflyError


class CorpusTrainingError(MayflyError):
    """A corpus whose adapter cannot be trained; the message says why and what to do."""


class End(StrEnum):
    """How a training of a corpus ended."""

    UNCHANGED = "unchanged"
    """The adapter had learnt everything already."""
    LEARNT = "learnt"
    """The adapter has learnt everything."""
    SECONDS = "seconds"
    """The time was over; the next training goes on from there."""


@dataclass(frozen=True)
class TrainingOptions:
    """How the adapter of a corpus is trained.

    Attributes:
        seconds: time limit; None for none.
        passes: number of passes over the sequences; None chooses it.
        parts: number of parts of a corpus without an adapter; None follows from its size.
        fresh: whether to train anew what an adapter has learnt already.
    """

    seconds: float | None = None
    passes: int | None = None
    parts: int | None = None
    fresh: bool = False


@dataclass(frozen=True)
class CorpusTrainingProgress:
    """The state of a training.

    Attributes:
        phase: what is done now.
        part, parts: number of the part that is learnt now, from 1 on, and of those to learn.
        done: number of sequences taken, repeats counted, earlier runs included.
        total: that number at the end, if no further pass is chosen.
        loss: mean loss in nats per token of the last step, before it; None before the first.
        losses: loss on the held-out documents before learning and after each pass.
    """

    phase: Phase
    part: int
    parts: int
    done: int
    total: int
    loss: float | None = None
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class CorpusSummary:
    """What the adapter of a corpus has learnt.

    Attributes:
        sequences, documents: numbers that it has learnt.
        not_learnt: number of sequences of the corpus that it has not learnt.
        parts: number of its parts.
        learning_rate: Adam learning rate; None if there is no adapter.
        passes: number of passes over the sequences.
    """

    sequences: int = 0
    documents: int = 0
    not_learnt: int = 0
    parts: int = 0
    learning_rate: float | None = None
    passes: int = 0


@dataclass(frozen=True)
class CorpusTrainingOutcome:
    """The outcome of a training.

    Attributes:
        end: how it ended.
        adapter: what the adapter has learnt now.
        steps: number of steps of this run.
        seconds: of this run.
        losses: loss on the held-out documents, in nats per token, before learning and after each
            pass; empty if nothing was chosen.
        restarts: number of times that a part began again because of deletes.
        earlier_stays: whether `adapter` is the one before, since this one has not learnt as much.
    """

    end: End
    adapter: CorpusSummary
    steps: int
    seconds: float
    losses: tuple[float, ...] = ()
    restarts: int = 0
    earlier_stays: bool = False
