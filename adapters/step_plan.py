"""Training plans: how the sequences of a request become steps of Adam.

A plan is an option of a request and an axis of the benchmarks. Pure: positions in, steps out.

- "sequential": one step per sequence, in order. The default, and the paper's.
- "batched": one step per five sequences, on the mean of their losses (Insight 12 of the paper,
  arXiv 2410.08020: order matters little). The learning rate is the same; fewer steps teach less and
      cost less.
- "reuse": as "sequential", but a repeated sequence reuses its earlier gradient, which is computed
  anew every third time (HullFT, arXiv 2605.30337). A step with a reused gradient costs next to
  nothing.

To train the last linear layer alone (Insight 13), set `TrainerConfig.targets` to ("lm_head",). vLLM
cannot load such adapters on a CPU, so the server does not offer it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from adapters.errors import TrainingOptionError

PLANS = ("sequential", "batched", "reuse")
# Sequences in a step of "batched".
BATCH = 5
# "reuse" computes the gradient of a sequence at its first, fourth, seventh, ... occurrence.
REFRESH = 3


@dataclass(frozen=True)
class Step:
    """One step of Adam.

    Attributes:
        sequences: Positions of the sequences whose mean loss is lowered.
        gradient_of: Position of the earlier step whose gradient is used again; None to compute one.
        gradient_is_kept: Whether a later step uses this step's gradient again.
    """

    sequences: tuple[int, ...]
    gradient_of: int | None = None
    gradient_is_kept: bool = False


def steps_of(plan: str, sequences: Sequence[Hashable]) -> list[Step]:
    """The steps of a plan for these sequences.

    Raises:
        TrainingOptionError: unknown plan.
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
    # The position at which a sequence's gradient was last computed.
    computed: dict[Hashable, int] = {}
    occurrences: Counter[Hashable] = Counter()
    steps: list[Step] = []
    for position, sequence in enumerate(sequences):
        if occurrences[sequence] % REFRESH == 0:
            computed[sequence] = position
            steps.append(Step((position,)))
        else:
            source = computed[sequence]
            steps[source] = Step((source,), gradient_is_kept=True)
            steps.append(Step((position,), gradient_of=source))
        occurrences[sequence] += 1
    return steps
