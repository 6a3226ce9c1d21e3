"""AdaptationReport: what was spent, chosen and gained, and how the answer says it.

In the body as `adaptation`, in short as the headers Compute-Spent and Server-Timing.
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
    CORPUS = "corpus"  # no corpus, or no document to learn from
    NONE = "none"  # the budget has no step
    FAILED = "failed"


class Stage(StrEnum):
    """Where a request spends its time."""

    EMBED = "embed"
    SEARCH = "search"
    SELECT = "select"
    QUEUE = "queue"  # before the first training step
    TRAIN = "train"
    LOAD = "load"
    ANSWER = "answer"


@dataclass(frozen=True)
class AdaptationReport:
    """One request's adaptation, told.

    Attributes:
        adapted: whether an adapter answered.
        reason: why the base model answered instead; None when adapted.
        budget: what was allowed, after the server's limits.
        cut: names of the limits that were cut to the server's.
        calibrated: whether the corpus brought settings of its own: lambda', learning rate, and of
            `auto` gain.
        degraded: what a busy server took off the budget, told; None for nothing.
        targets: how much of the request's prompts data was chosen for, where that is not all: the
            number of prompts or windows (`unit`) that were `used`, `of` all; None for all.
        corpus: the corpus chosen from.
        seed: of the adapter.
        reused: the adapter of an earlier turn that was trained further: its name, turns and steps;
            None if fresh.
        stop: what ended the adaptation.
        uncertainty: sigma_0 .. sigma_n of the n sequences learnt from.
        irreducible: sigma_infinity, what no further step over the same candidates could explain.
        losses: nats a token of each step's sequences, before that step; of all steps taken.
        prompt_losses: each look at the prompt: sequences learnt from so far, and the prompt's own
            nats a token then.
        kept: of how many sequences the adapter that answers has learnt: fewer than were tried where
            the prompt's loss was lowest before the last step.
        sources: these sequences: document id and name, start (characters), and times.
        seconds: per stage, up to the loaded adapter.
        spent_seconds: wall-clock from arrival to the loaded adapter, waiting included.
        adapter: the name of the adapter that answered.
    """

    adapted: bool
    reason: str | None
    budget: Budget
    cut: tuple[str, ...]
    calibrated: bool
    degraded: str | None
    targets: dict[str, int | str] | None
    corpus: str | None
    seed: int
    reused: dict[str, Any] | None
    stop: StopReason
    uncertainty: tuple[float, ...]
    irreducible: float | None
    losses: tuple[float, ...]
    prompt_losses: tuple[tuple[int, float], ...]
    kept: int
    sources: tuple[dict[str, Any], ...]
    seconds: dict[Stage, float]
    spent_seconds: float
    adapter: str | None

    @property
    def prompt_loss(self) -> dict[str, float] | None:
        """The prompt's own loss before any step and with the adapter that answers; None where there
        are not both.
        """
        looks = dict(self.prompt_losses)
        if not self.adapted or self.kept == 0 or not {0, self.kept} <= looks.keys():
            return None
        return {"before": round(looks[0], 6), "after": round(looks[self.kept], 6), "at": self.kept}

    def as_dict(self) -> dict[str, Any]:
        """The `adaptation` object of a response body."""
        return {
            "adapted": self.adapted,
            "reason": self.reason,
            "prompt_loss": self.prompt_loss,
            "budget": {**self.budget.as_dict(), "cut": list(self.cut)},
            "calibrated": self.calibrated,
            "degraded": self.degraded,
            "targets": self.targets,
            "spent": {"steps": len(self.losses), "seconds": round(self.spent_seconds, 4)},
            "stop": self.stop,
            "uncertainty": [round(sigma, 6) for sigma in self.uncertainty],
            "irreducible": None if self.irreducible is None else round(self.irreducible, 6),
            "losses": [round(loss, 6) for loss in self.losses],
            "prompt_losses": [[used, round(loss, 6)] for used, loss in self.prompt_losses],
            "sources": list(self.sources),
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "corpus": self.corpus,
            "seed": self.seed,
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
    """Those of the sources whose sequences were learnt from, as a report says them."""
    return tuple(
        {
            "document": source.document,
            "name": source.name,
            "start": source.start,
            "times": used.count(source.sequence),
        }
        for source in sources
        if source.sequence in used
    )
