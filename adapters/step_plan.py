"""Plans: how the sequences of a request become steps of Adam. A request's option, and an axis of
the benchmarks.

Pure: positions in, steps out. What there is:

- "sequential": a step for each sequence, in order. The default, and the paper's.
- "batched": a step for each five sequences, by the mean of their losses (Insight 12 of the paper:
  order matters little). The learning rate stays; fewer steps teach less and cost less.
- "reuse": as "sequential", but a sequence chosen again takes the step with the gradient it had
  before, and computes it anew every third time (HullFT, arXiv 2605.30337). Steps without a gradient
  of their own cost next to nothing.

Training the last linear layer alone (Insight 13) is a matter of `TrainerConfig.targets`:
("lm_head",). vLLM cannot load such adapters on a CPU, so the server does not offer it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from adapters.errors import TrainingOptionError

PLANS = ("sequential", "batched", "reuse")
BATCH = 5
REFRESH = 3


@dataclass(frozen=True)
class Step:
    """One step of Adam.

    Attributes:
        sequences: positions of the sequences whose mean loss is lowered.
        reused: position of the sequence whose gradient, computed in an earlier step, is taken
            again; else None.
        kept: whether a later step takes this one's gradient again.
    """

    sequences: tuple[int, ...]
    reused: int | None = None
    kept: bool = False


def steps_of(plan: str, sequences: Sequence[Hashable]) -> list[Step]:
    """The steps of a plan for these sequences.

    Raises:
        ValueError: there is no such plan.
    """
    if plan == "sequential":
        return [Step((position,)) for position in range(len(sequences))]
    if plan == "batched":
        positions = range(len(sequences))
        return [Step(tuple(positions[start : start + BATCH])) for start in positions[::BATCH]]
    if plan == "reuse":
        return _reusing(sequences)
    raise TrainingOptionError(f"unknown plan {plan!r}: one of {', '.join(PLANS)}")


def _reusing(sequences: Sequence[Hashable]) -> list[Step]:
    fresh: dict[Hashable, int] = {}  # where a sequence's gradient was last computed
    seen: dict[Hashable, int] = {}
    steps: list[Step] = []
    for position, sequence in enumerate(sequences):
        times = seen.get(sequence, 0)
        seen[sequence] = times + 1
        if times % REFRESH == 0:
            fresh[sequence] = position
            steps.append(Step((position,)))
        else:
            source = fresh[sequence]
            steps[source] = Step((source,), kept=True)
            steps.append(Step((position,), reused=source))
    return steps
