"""The attacks of a run, drawn by weight with a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from benchmarks.promises.attacks import bodies, protocol
from benchmarks.promises.attacks.attack import Attack

_LARGE_EVERY = 500  # attacks
_WEIGHTS: dict[Callable[[random.Random], Attack], int] = {
    bodies.broken_json: 10,
    bodies.invalid_field: 30,
    bodies.odd_field: 2,
    bodies.invalid_adaptation: 9,
    protocol.invalid_budget: 12,
    protocol.odd_header: 7,
    bodies.unicode_text: 8,
    protocol.odd_content_type: 4,
    bodies.long_field: 2,
    protocol.wrong_path: 9,
    protocol.wrong_method: 5,
    bodies.vector_store_request: 8,
    bodies.tokenize: 3,
    protocol.broken_framing: 7,
    protocol.slow_request: 1,
}


def draw_attacks(rng: random.Random, count: int) -> Iterator[Attack]:
    """Yield `count` attacks, drawn by weight."""
    builders = list(_WEIGHTS)
    drawn = rng.choices(builders, [_WEIGHTS[build] for build in builders], k=count)
    for number, build in enumerate(drawn):
        yield bodies.large_body(rng) if number % _LARGE_EVERY == _LARGE_EVERY // 2 else build(rng)
