"""The strategies by name: SIFT, and the baselines it is compared with.

To add a strategy, write its rule in `selection.strategies.baselines` and name it in `_BASELINES`:
the request parser and its error messages follow `STRATEGIES`.

lambda' belongs to the embedder and the corpus; a calibrated corpus stores its own. The default was
chosen for all-MiniLM-L6-v2 on Python source (benchmarks/README.md); the paper's 0.01 belongs to its
own embedder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from selection.errors import SelectionOptionError
from selection.strategies.baselines import (
    Rule,
    choose_by,
    hull,
    nearest_neighbours,
    nearest_repeated,
    random_choice,
    uncertainty_sampling,
)
from selection.strategies.sift import Array, Choice, sift

REGULARISATION = 0.3
_BASELINES: Mapping[str, Rule] = {
    "nn": nearest_neighbours,
    "nn-f": nearest_repeated,
    "us": uncertainty_sampling,
    "random": random_choice,
    "hull": hull,
}
STRATEGIES = ("sift", *_BASELINES)


def choose(
    strategy: str,
    candidates_KD: Array,
    targets_TD: Array,
    steps: int,
    regularisation: float,
    *,
    alpha: float | None = None,
    seed: int = 0,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Choice:
    """The picks of a strategy among the candidates.

    Args:
        strategy: one of STRATEGIES.
        alpha: the stop of ADAPTIVE SIFT, for "sift" only.
        seed: seed of "random".
        candidates_KD, targets_TD, steps, regularisation, check_cancelled: as in
            `selection.strategies.sift.sift`.

    Raises:
        SelectionOptionError: an unknown strategy, or an alpha for a strategy without a stopping
            rule.
        ValueError: as `selection.strategies.sift.sift`.
    """
    if strategy == "sift":
        return sift(
            candidates_KD,
            targets_TD,
            steps=steps,
            regularisation=regularisation,
            alpha=alpha,
            check_cancelled=check_cancelled,
        )
    if strategy not in _BASELINES:
        raise SelectionOptionError(f"unknown strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
    if alpha is not None:
        raise SelectionOptionError(
            f"the strategy {strategy!r} has no stopping rule; leave alpha out"
        )
    return choose_by(
        _BASELINES[strategy],
        candidates_KD,
        targets_TD,
        steps=steps,
        regularisation=regularisation,
        seed=seed,
        check_cancelled=check_cancelled,
    )
