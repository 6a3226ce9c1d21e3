"""A task: questions with one right answer each, in a format that was invented from a seed.

The instructions are in no prompt: the format can only be learnt from the demonstrations. Words,
order and separators of a format are drawn, so that no model has seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

DEMONSTRATIONS, QUERIES = 10, 40
_SEPARATORS = ("|", "~", "::", "/", ">", "#", "=>", "^", "%", "@", " & ", " ! ")
_BRACKETS = (("", ""), ("<", ">"), ("[", "]"), ("(", ")"), ("", ";"))
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Pair:
    """A question and its only right answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """Demonstrations and queries of one format; no question occurs twice."""

    name: str
    demonstrations: tuple[Pair, ...]
    queries: tuple[Pair, ...]


# Draws a pair. The number counts the pairs: what must be shown to be known, such as the words of a
# command language, is taken in turn by it, so that the demonstrations have all of it.
Draw: TypeAlias = Callable[[Random, int], Pair]
# Invents a format.
Invention: TypeAlias = Callable[[Random], Draw]


def make_tasks(inventions: Mapping[str, Invention], seed: int) -> list[Task]:
    """One task of each format; the same seed gives the same tasks."""
    return [_make_task(name, invent, seed) for name, invent in inventions.items()]


def _make_task(name: str, invent: Invention, seed: int) -> Task:
    rng = Random(f"{name} {seed}")  # noqa: S311
    draw = invent(rng)
    pairs: dict[str, Pair] = {}
    while len(pairs) < DEMONSTRATIONS + QUERIES:
        pair = draw(rng, len(pairs))
        pairs.setdefault(pair.question, pair)
    demonstrations, queries = (
        list(pairs.values())[:DEMONSTRATIONS],
        list(pairs.values())[DEMONSTRATIONS:],
    )
    rng.shuffle(demonstrations)
    return Task(name, tuple(demonstrations), tuple(queries))


def words(rng: Random, count: int) -> list[str]:
    """Distinct invented words."""
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = (
            rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2)))
        )
        found["".join(syllables) + rng.choice(_CONSONANTS)] = None
    return list(found)


def renaming(rng: Random, terms: Sequence[str]) -> dict[str, str]:
    """An invented word for each term."""
    return dict(zip(terms, words(rng, len(terms)), strict=True))


def notation(rng: Random, parts: Sequence[str]) -> str:
    """A format string with the named parts in an invented order, with invented separators."""
    order = rng.sample(list(parts), len(parts))
    separators = ["", *rng.sample(_SEPARATORS, len(parts) - 1)]
    opening, closing = rng.choice(_BRACKETS)
    body = "".join(f"{before}{{{part}}}" for before, part in zip(separators, order, strict=True))
    return opening + body + closing
