"""The format that the demonstration teaches: delivery notes in a notation that no model has seen.

The notation was invented and its questions were drawn before any model had answered one of them;
neither was chosen by its result. `benchmarks/few_shot` has more formats and more questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

EXAMPLES, QUESTIONS = 10, 8
_VERBS = ("Take", "Bring", "Carry", "Send")
_CONTAINERS = ("boxes", "crates", "sacks", "barrels")
_GOODS = ("nails", "apples", "candles", "ropes", "tiles", "lamps")
_PLACES = ("mill", "harbour", "chapel", "market", "tower", "bridge")
_TIMES = ("dawn", "noon", "dusk", "midnight")


@dataclass(frozen=True)
class Pair:
    """A question and its only right answer."""

    question: str
    answer: str


def draw_pairs() -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The examples and the held-out questions, all different and the same in every run."""
    rng = Random(0)  # noqa: S311  nothing here is secret
    pairs: list[Pair] = []
    while len(pairs) < EXAMPLES + QUESTIONS:
        pair = _draw_note(rng)
        if pair not in pairs:
            pairs.append(pair)
    return tuple(pairs[:EXAMPLES]), tuple(pairs[EXAMPLES:])


def _draw_note(rng: Random) -> Pair:
    verb, container, goods = rng.choice(_VERBS), rng.choice(_CONTAINERS), rng.choice(_GOODS)
    (start, end), time = rng.sample(_PLACES, 2), rng.choice(_TIMES)
    number = rng.randint(2, 20)
    return Pair(
        f"{verb} {number} {container} of {goods} from the {start} to the {end} before {time}.",
        f"{start}>{end} {number}*{goods} !{time}",
    )
