"""EarlyStopping: when to end a training, and which of its adapters is the best, by the loss of a
probe text that is not trained on.

In a server the probe is the end of the request's prompt. It is evaluated before the first step, and
then at growing intervals. After more than PATIENCE evaluations training stops in one of two cases:

- Stagnation or harm: over the last PATIENCE evaluations the lowest loss has fallen by less than
  half of what the gain asks for.
- Too little gain: the loss falls by less than gain / 100 x first loss per sequence trained on. This
  is a mean over all intervals between evaluations, in which an interval that is MEMORY sequences
  older counts a factor of e less: a single evaluation is too noisy to judge the last intervals
  alone, and what was gained long ago says little about the next step.

The paper's stopping rule (section 6) applies the second criterion to the predicted gain; this one
applies it to the measured gain. It was chosen on curves of benchmarks/results/stopping.json.
Weights are saved and compared in `adapters.loop.evaluation`.

Pure numbers: no tensors, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# Evaluations over which stagnation is judged.
PATIENCE = 4
# Sequences after which an interval counts a factor of e less.
MEMORY = 12.0
# Sequences from one evaluation to the next, until the interval grows.
FIRST_INTERVAL = 2


@dataclass(frozen=True)
class ProbeEvaluation:
    """One evaluation of the probe.

    Attributes:
        sequences: Number of sequences trained on so far.
        steps: Number of steps taken so far.
        loss: Mean loss of the probe in nats per token.
    """

    sequences: int
    steps: int
    loss: float


@dataclass
class EarlyStopping:
    """The probe evaluations of one training.

    Attributes:
        gain: Per cent of the first loss that each sequence must gain. None never stops, evaluates
            only at both ends, and takes the last adapter for the best.
        evaluations: In order; the first one is before any step.
    """

    gain: float | None
    evaluations: list[ProbeEvaluation] = field(default_factory=list)

    def probe_due(self, sequences: int) -> bool:
        """Whether to evaluate after `sequences` sequences, if more follow."""
        if not self.evaluations:
            return True
        last = self.evaluations[-1].sequences
        return self.gain is not None and sequences - last >= max(FIRST_INTERVAL, last // 4)

    def record(self, sequences: int, steps: int, loss: float) -> bool:
        """Add an evaluation.

        Returns:
            Whether it is the best after a step so far, so that its adapter is worth saving.
        """
        self.evaluations.append(ProbeEvaluation(sequences, steps, loss))
        return self.best is self.evaluations[-1]

    @property
    def best(self) -> ProbeEvaluation | None:
        """The first evaluation with the lowest loss after a step; the last one without a gain."""
        after = [evaluation for evaluation in self.evaluations if evaluation.steps]
        if self.gain is None:
            return after[-1] if after else None
        return min(after, key=lambda evaluation: evaluation.loss, default=None)

    @property
    def has_stalled(self) -> bool:
        """Whether the last evaluations show too little gain to go on."""
        return self.gain is not None and has_stalled(
            [(evaluation.sequences, evaluation.loss) for evaluation in self.evaluations], self.gain
        )


def has_stalled(evaluations: Sequence[tuple[int, float]], gain: float) -> bool:
    """Whether the evaluations show stagnation, harm or less than `gain`.

    Args:
        evaluations: Sequences trained on, and loss of the probe, in order.
        gain: Per cent of the first loss per sequence.
    """
    if len(evaluations) <= PATIENCE:
        return False
    first, last = evaluations[0][1], evaluations[-1][0]
    before = min(loss for _, loss in evaluations[:-PATIENCE])
    lowest = min(loss for _, loss in evaluations)
    recent = last - evaluations[-PATIENCE - 1][0]
    if 100 * (before - lowest) <= 0.5 * gain * recent * first:
        return True
    gained, sequences = 0.0, 0.0
    for (start, loss), (end, next_loss) in pairwise(evaluations):
        weight = math.exp((end - last) / MEMORY)
        gained += weight * (loss - next_loss)
        sequences += weight * (end - start)
    return 100 * gained < gain * sequences * first


def simulate(losses: Sequence[float], gain: float) -> tuple[int, int]:
    """Apply early stopping to a training whose probe losses are known.

    Args:
        losses: Loss of the probe after 0, 1, ... sequences, with one step per sequence.
        gain: As in `EarlyStopping`.

    Returns:
        The number of sequences after which training stops, and the number that the best adapter was
        trained on.
    """
    stopping, last = EarlyStopping(gain), len(losses) - 1
    for sequences, loss in enumerate(losses):
        if stopping.probe_due(sequences) or sequences == last:
            stopping.record(sequences, sequences, loss)
            if stopping.has_stalled:
                break
    best = stopping.best
    return stopping.evaluations[-1].sequences, 0 if best is None else best.sequences
