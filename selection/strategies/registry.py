"""Strategies by name: SIFT, and the baselines it is compared with.

lambda' belongs to the embedder and the corpus, which keeps one of its own once it has been
calibrated. The default was chosen for all-MiniLM-L6-v2 on Python source (benchmarks/README.md); the
paper's 0.01 belongs to its own embedder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selection.errors import SelectionOptionError
from selection.strategies.baselines import (
    hull,
    nearest_neighbours,
    nearest_repeated,
    random_choice,
    uncertainty_sampling,
)
from selection.strategies.sift import Choice, Floats, sift

REGULARISATION = 0.3
STRATEGIES = ("sift", "nn", "nn-f", "us", "random", "hull")
_WITHOUT_OPTIONS = {
    "nn": nearest_neighbours,
    "nn-f": nearest_repeated,
    "us": uncertainty_sampling,
    "hull": hull,
}


def choose(
    strategy: str,
    candidates_KD: Floats,
    targets_TD: Floats,
    steps: int,
    regularisation: float,
    *,
    alpha: float | None = None,
    seed: int = 0,
    between: Callable[[], None] = lambda: None,
) -> Choice:
    """What a strategy picks of the candidates; `between` is called between parts of the work, and
    may raise.

    Raises:
        SelectionOptionError: an unknown strategy, or an alpha with one that has no stopping rule.
    """
    if strategy not in STRATEGIES:
        raise SelectionOptionError(f"unknown strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
    if strategy == "sift":
        return sift(
            candidates_KD,
            targets_TD,
            steps=steps,
            regularisation=regularisation,
            alpha=alpha,
            between=between,
        )
    if alpha is not None:
        raise SelectionOptionError(
            f"the strategy {strategy!r} has no stopping rule; leave alpha out"
        )
    given: dict[str, Any] = {"steps": steps, "regularisation": regularisation, "between": between}
    if strategy == "random":
        return random_choice(candidates_KD, targets_TD, seed=seed, **given)
    return _WITHOUT_OPTIONS[strategy](candidates_KD, targets_TD, **given)
