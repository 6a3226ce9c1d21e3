"""The arms that are compared: what a request shows, and what is trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.few_shot.task import Pair, Task


@dataclass(frozen=True)
class Arm:
    """A way to answer the queries of a task.

    Attributes:
        name: name in the results.
        steps: steps of training on the demonstrations; 0 for the base model.
        examples_as: form of a training sequence, as in a request.
        shown: whether the prompt has the demonstrations as earlier turns.
        seed: seed of the adapter. Arms that train alike differ in it, so that each trains its own.
    """

    name: str
    steps: int = 0
    examples_as: Literal["single", "leave-one-out"] = "single"
    shown: bool = False
    seed: int = 0

    @property
    def budget(self) -> str:
        """Value of the header Compute-Budget."""
        return f"steps={self.steps}" if self.steps else "none"

    def fields(self, task: Task, question: str) -> dict[str, Any]:
        """Messages and options of a chat request for a question."""
        demonstrations = task.demonstrations
        asked = {"role": "user", "content": question}
        if not self.steps:
            # What a client does without Mayfly.
            return {"messages": [*(turns(demonstrations) if self.shown else ()), asked]}
        adaptation = {
            "corpus": None,
            "examples": [
                {"prompt": each.question, "completion": each.answer} for each in demonstrations
            ],
            "examples_as": self.examples_as,
            "show": len(demonstrations) if self.shown else 0,
            "reuse": "examples",
            "seed": self.seed,
            "required": True,
        }
        return {"messages": [asked], "adaptation": adaptation}


# Chosen on the formats of `choosing_formats` (benchmarks/README.md).
CHOSEN = Arm("leave-one-out 30, shown", 30, "leave-one-out", shown=True)
ZERO_SHOT, IN_CONTEXT = Arm("zero-shot"), Arm("in context", shown=True)
TRAINED = (
    Arm("trained 10", 10),
    Arm("trained 30", 30),
    Arm("trained 30, shown", 30, shown=True, seed=1),
    Arm("leave-one-out 10, shown", 10, "leave-one-out", shown=True),
    CHOSEN,
)
ARMS = (ZERO_SHOT, IN_CONTEXT, *TRAINED)


def turns(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Pairs as turns of a chat."""
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in (("user", pair.question), ("assistant", pair.answer))
    ]
