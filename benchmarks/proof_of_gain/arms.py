"""The arms of the proof: each way to use a corpus alone, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from benchmarks.corpus_adapters.arms import (
    BASE,
    COMBINED,
    FRESH,
    INSTANT,
    SHOWN_TOO,
    Arm,
    Training,
    arms_of,
)

Trainings: TypeAlias = tuple[Training, ...]

# What the server does by itself, beside the arms.
AUTO = "auto"
SHOWN_ALONE = replace(BASE, shown=True)
NEAREST_SHOWN = replace(SHOWN_ALONE, strategy="nn")
# All ways together, with steps for the request and without.
TOGETHER = replace(COMBINED, shown=True)
INSTANT_SHOWN = replace(INSTANT, shown=True)
INSTANT_NEAREST_SHOWN = replace(INSTANT_SHOWN, strategy="nn")
# Each way alone: text in the prompt, an adapter for the request, and one for the corpus.
SINGLE = (SHOWN_ALONE, NEAREST_SHOWN, FRESH, INSTANT)
# Those that are also measured with the nearest sequences in the prompt.
_NEAREST_TOO = tuple(replace(arm, shown=False) for arm in (NEAREST_SHOWN, INSTANT_NEAREST_SHOWN))
_FRESH_STEPS = {"full": (5, 10, 20), "short": (5, 10, 20)}


def _fresh(steps: tuple[int, ...]) -> Trainings:
    return Training("fresh", steps), Training("fresh", steps, strategy="nn")


# Trainings by the name of a choice, where the corpus has an adapter.
TRAININGS: Mapping[str, Trainings] = {
    "full": (
        *_fresh(_FRESH_STEPS["full"]),
        Training("corpus", (5, 10)),
        Training("corpus", (5, 10), strategy="nn"),
    ),
    "short": (*_fresh(_FRESH_STEPS["short"]), Training("corpus", (10,))),
    # What takes seconds for a passage, where the others take minutes.
    "none": (*_fresh(()), Training("corpus", ())),
}
# Those that compare strategies alone, on a corpus without one.
COMPARED_TRAININGS = {name: _fresh(steps) for name, steps in _FRESH_STEPS.items()}
COMPARED_SHOWN_TOO = (BASE, _NEAREST_TOO[0])
# Arms whose next line of code is generated.
LINE_ARMS = (
    BASE.name,
    *(arm.name for arm in (*SINGLE, INSTANT_SHOWN, INSTANT_NEAREST_SHOWN, COMBINED, TOGETHER)),
    AUTO,
)


def arms(choice: str) -> tuple[Arm, ...]:
    """All arms of a choice of trainings, but AUTO."""
    return arms_of(TRAININGS[choice], shown_too(choice))


def shown_too(choice: str) -> tuple[Arm, ...]:
    """Those that are also measured with sequences in the prompt, chosen or nearest."""
    return (*((BASE, INSTANT) if choice == "none" else SHOWN_TOO), *_NEAREST_TOO)


def chooses(arm: Arm) -> bool:
    """Whether an arm depends on what was chosen for the prompt."""
    return bool(arm.steps) or arm.shown


def label(arm: Arm) -> str:
    """The name of an arm without its strategy."""
    return replace(arm, strategy="sift").name.replace("SIFT", "fresh +")
