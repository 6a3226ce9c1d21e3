"""EarlyStopping: whether more training pays, and after which step it was best, by the loss of a
text not trained on.

The text is looked at before the first step and then more and more rarely. Training stops where the
last looks have brought too little: less than `gain` per cent of the first loss for each sequence
learnt since then, by the lowest loss seen so far. So a loss that stands still or rises ends it
after WINDOW looks, and one that still falls does not. The paper's stop (section 6) asks the same of
what was foreseen; this asks it of what was gained.

Pure numbers: no tensors, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW = 3  # looks over which the gain is judged
FIRST_LOOK = 2  # sequences, and between one look and the next at first


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        used: sequences learnt from until then.
        steps: steps taken until then.
        loss: of the text, mean nats a token.
    """

    used: int
    steps: int
    loss: float


@dataclass
class EarlyStopping:
    """The looks of one training.

    Attributes:
        gain: per cent of the first loss that each sequence must bring; None never stops, looks only
            at both ends, and takes the last adapter for the best.
        looks: in order; the first is before any step.
    """

    gain: float | None
    looks: list[Look] = field(default_factory=list)

    def is_due(self, used: int) -> bool:
        """Whether to look after so many sequences, unless it is the end."""
        if not self.looks:
            return True
        last = self.looks[-1].used
        return self.gain is not None and used - last >= max(FIRST_LOOK, last // 4)

    def see(self, used: int, steps: int, loss: float) -> bool:
        """Remember a look; whether it is the best of those after a step, so that its adapter is
        worth keeping.
        """
        self.looks.append(Look(used, steps, loss))
        return self.best is self.looks[-1]

    @property
    def best(self) -> Look | None:
        """The look with the lowest loss of those after a step; the first of several."""
        after = [look for look in self.looks if look.steps]
        if self.gain is None:
            return after[-1] if after else None
        return min(after, key=lambda look: look.loss, default=None)

    @property
    def has_stalled(self) -> bool:
        """Whether the last looks have brought too little."""
        return self.gain is not None and has_stalled(
            [(look.used, look.loss) for look in self.looks], self.gain
        )


def has_stalled(looks: Sequence[tuple[int, float]], gain: float) -> bool:
    """Whether the last WINDOW looks, each sequences learnt and loss, have brought less than `gain`
    asks for.
    """
    if len(looks) <= WINDOW:
        return False
    first = looks[0][1]
    before = min(loss for _, loss in looks[:-WINDOW])
    now = min(loss for _, loss in looks)
    used = looks[-1][0] - looks[-WINDOW - 1][0]
    return 100 * (before - now) < gain * used * first


def foretold(losses: Sequence[float], gain: float) -> tuple[int, int]:
    """What a training would do of which the text's loss after 0, 1, ... sequences is known, a step
    for each.

    Returns:
        How many sequences it takes, and how many of them the adapter it hands over has learnt from.
    """
    stopping, last = EarlyStopping(gain), len(losses) - 1
    for used, loss in enumerate(losses):
        if stopping.is_due(used) or used == last:
            stopping.see(used, used, loss)
            if stopping.has_stalled:
                break
    best = stopping.best
    return stopping.looks[-1].used, 0 if best is None else best.used
