"""AdaptationReport: what was spent, chosen and gained, as the `adaptation` object of a body and as
the headers Compute-Spent and Server-Timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from serving.budget import Budget

if TYPE_CHECKING:
    from selection.corpus.sqlite_store import Source


class StopReason(StrEnum):
    """What ended an adaptation."""

    STEPS = "steps"
    GAIN = "gain"
    ALPHA = "alpha"
    SECONDS = "seconds"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out-of-memory"
    CANCELLED = "cancelled"
    # The budget has the adapter of the corpus answer, without a step.
    INSTANT = "instant"
    # `auto` has found that what is there already answers best, without a step.
    AUTO = "auto"
    # The adapter of the same examples answered again.
    REUSED = "reused"
    # There is no corpus, or no document to train on.
    CORPUS = "corpus"
    # The budget has no step.
    NONE = "none"
    FAILED = "failed"


class Stage(StrEnum):
    """Where a request spends its time."""

    EMBED = "embed"
    SEARCH = "search"
    SELECT = "select"
    # `auto` compares what could answer.
    COMPARE = "compare"
    # Waiting for the first training step.
    QUEUE = "queue"
    TRAIN = "train"
    LOAD = "load"
    ANSWER = "answer"


@dataclass(frozen=True)
class AdaptationReport:
    """The report of one request's adaptation.

    Attributes:
        adapted: whether an adapter answered.
        reason: why the base model answered instead, or why the corpus's adapter was not trained
            further; None otherwise.
        budget: budget within the server's limits.
        clamped: names of the limits that the request exceeded.
        calibrated: whether the corpus brought settings of its own: lambda', the strategy, the
            learning rate, and the gain of `auto`.
        strategy: strategy that chose what was trained on or shown; None if nothing was.
        shed: what a busy server took off the budget, in words; None for nothing.
        targets: how much of the request's prompts data was chosen for: `used`, `of` and `unit`
            ("prompts" or "windows"); None for all.
        corpus: corpus chosen from; None without one.
        auto: what `auto` has decided, and by which losses of the prompt, as
            `serving.adaptation.auto.AutoChoice.as_dict`; None where it decided nothing.
        shown: what was put into the prompt, as `serving.adaptation.shown.Shown.as_dict`; None if
            nothing was to be shown.
        seed: seed of the adapter.
        start: what the adapter that answered started from, as
            `serving.adaptation.starts.StartingPoint.as_dict`; None for the base model.
        reused: name, turns and steps of the earlier turn's adapter that was trained further; or
            name and steps of the adapter of the same examples; None for a fresh one.
        stop: what ended the adaptation.
        uncertainty: sigma_0 .. sigma_n of the n sequences trained on.
        irreducible: sigma_infinity, which no further step over the same candidates could reduce.
        losses: nats a token of each step's sequences, before that step; of all steps taken.
        prompt_losses: number of sequences trained on, and the prompt's own nats a token then.
        learnt: number of sequences in the adapter that answers; fewer than were tried where the
            prompt's loss was lowest before the last step.
        sources: the documents of these sequences: id (None for what the request brought), name,
            start (characters), and times.
        seconds: seconds per stage, up to the loaded adapter.
        spent_seconds: seconds from arrival to the loaded adapter, waiting included.
        adapter: name of the adapter that answered.
    """

    adapted: bool
    reason: str | None
    budget: Budget
    clamped: tuple[str, ...]
    calibrated: bool
    strategy: str | None
    shed: str | None
    targets: dict[str, int | str] | None
    corpus: str | None
    auto: dict[str, Any] | None
    shown: dict[str, Any] | None
    seed: int
    start: dict[str, Any] | None
    reused: dict[str, Any] | None
    stop: StopReason
    uncertainty: tuple[float, ...]
    irreducible: float | None
    losses: tuple[float, ...]
    prompt_losses: tuple[tuple[int, float], ...]
    learnt: int
    sources: tuple[dict[str, Any], ...]
    seconds: dict[Stage, float]
    spent_seconds: float
    adapter: str | None

    @property
    def prompt_loss(self) -> dict[str, float] | None:
        """The prompt's own loss before any step and with the adapter that answers; None unless both
        were measured.
        """
        losses, learnt = dict(self.prompt_losses), self.learnt
        if not self.adapted or learnt == 0 or not {0, learnt} <= losses.keys():
            return None
        return {"before": round(losses[0], 6), "after": round(losses[learnt], 6), "at": learnt}

    def as_dict(self) -> dict[str, Any]:
        """The `adaptation` object of a response body."""
        return {
            "adapted": self.adapted,
            "reason": self.reason,
            "prompt_loss": self.prompt_loss,
            "budget": {**self.budget.as_dict(), "cut": list(self.clamped)},
            "calibrated": self.calibrated,
            "strategy": self.strategy,
            "degraded": self.shed,
            "targets": self.targets,
            "spent": {"steps": len(self.losses), "seconds": round(self.spent_seconds, 4)},
            "stop": self.stop,
            "uncertainty": [round(sigma, 6) for sigma in self.uncertainty],
            "irreducible": None if self.irreducible is None else round(self.irreducible, 6),
            "losses": [round(loss, 6) for loss in self.losses],
            "prompt_losses": [[used, round(loss, 6)] for used, loss in self.prompt_losses],
            "sources": list(self.sources),
            "auto": self.auto,
            "shown": self.shown,
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "corpus": self.corpus,
            "seed": self.seed,
            "start": self.start,
            "reused": self.reused,
            "adapter": self.adapter,
        }

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Compute-Spent and Server-Timing (milliseconds)."""
        spent = f"steps={len(self.losses)}, seconds={self.spent_seconds:.3f}"
        if self.uncertainty:
            spent += f", sigma={self.uncertainty[-1]:.3f}"
        spent += f", stop={self.stop}"
        headers = [(b"compute-spent", spent.encode())]
        if self.seconds:
            timing = ", ".join(
                f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in self.seconds.items()
            )
            headers.append((b"server-timing", timing.encode()))
        return headers


def used_sources(sources: Sequence[Source], used: Sequence[int]) -> tuple[dict[str, Any], ...]:
    """The sources whose sequences were trained on, as the report shows them.

    Args:
        sources: one source for each sequence.
        used: ids of the sequences trained on, repeats included.
    """
    return tuple(
        {
            "document": source.document if source.sequence >= 0 else None,
            "name": source.name,
            "start": source.start,
            "times": used.count(source.sequence),
        }
        for source in sources
        if source.sequence in used
    )
