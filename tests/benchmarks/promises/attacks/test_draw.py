"""Malformed requests."""

from __future__ import annotations

import random

from benchmarks.promises.attacks.attack import ANSWERED, EITHER, REFUSED
from benchmarks.promises.attacks.draw import draw_attacks


def test_attacks_are_seeded_and_of_every_kind() -> None:
    drawn = list(draw_attacks(random.Random(3), 1001))

    assert drawn == list(draw_attacks(random.Random(3), 1001))
    assert {attack.category for attack in drawn} == {
        "17 MB", "adaptation", "broken JSON", "budgets", "content types", "fields", "framing",
        "headers", "methods", "odd fields", "paths", "sizes", "slow", "tokenize", "unicode",
        "vector stores",
    }  # fmt: skip
    assert {expected for attack in drawn for expected in attack.expected} == {
        ANSWERED,
        REFUSED,
        EITHER,
    }
