"""Stopping: when should an adaptation end? Rules compared on curves that were measured to the last step.

Every rule has one parameter; over its values it gives a curve of gain against steps: the share of all steps that it
takes, and the share it keeps of the gain that all steps bring, both of means over passages. Between measured steps bits
per byte are interpolated. The rule that knows the future is no rule but the bound for all of them: it spends the same
mean number of steps where they bring most. Pure: rows in, numbers out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.variants import Row
from selection.sift import has_stalled

Floats = npt.NDArray[np.float64]
TARGET_STEPS, TARGET_GAIN = 1 / 3, 0.9  # shares
LEAST_STEPS = 2  # before the prompt is asked
FIXED, ALPHA = "the same number for all", "alpha"
AUTO = "what the prompt has gained"  # the rule of a server's `auto`


@dataclass(frozen=True)
class Rule:
    """Whether to stop after n steps, by what is known then, and the parameters to try."""

    name: str
    stops: Callable[[Row, int, float], bool]
    parameters: tuple[float, ...]


def _fixed(row: Row, n: int, most: float) -> bool:
    return n >= most


def _alpha(row: Row, n: int, alpha: float) -> bool:
    """The paper's (section 6)."""
    return has_stalled(row.sigma[n], n, alpha)


def _alpha_reducible(row: Row, n: int, alpha: float) -> bool:
    """The paper's, by what this corpus can still tell."""
    return has_stalled((row.sigma[n] - row.irreducible) / max(1 - row.irreducible, 1e-9), n, alpha)


def _alpha_surprise(row: Row, n: int, alpha: float) -> bool:
    """The paper's, with more patience where the base model is surprised by the prompt."""
    return has_stalled(row.sigma[n] / row.surprise, n, alpha)


def _prompt(row: Row, n: int, price: float) -> bool:
    """The prompt itself has gained less than so many per cent of its loss a step."""
    return n >= LEAST_STEPS and 100 - _by_steps(row.prompt)[n] < price * n


def _similarity(row: Row, n: int, patience: float) -> bool:
    """As many steps as the first sequence tells of the prompt."""
    return n >= patience * (1 - row.sigma[1])


def _losses(row: Row, n: int, least: float) -> bool:
    """The losses of the last steps are no lower than those of the first by so much a step."""
    if n < 6:
        return False
    return (statistics.fmean(row.losses[:3]) - statistics.fmean(row.losses[n - 3 : n])) / n < least


_PRICES = tuple(float(price) for price in np.geomspace(0.02, 10, 60))
_ALPHAS = tuple(float(alpha) for alpha in np.geomspace(0.01, 2, 60))
RULES = (
    Rule(FIXED, _fixed, tuple(map(float, range(1, 51)))),
    Rule(ALPHA, _alpha, _ALPHAS),
    Rule("alpha, reducible part of sigma", _alpha_reducible, _ALPHAS),
    Rule("alpha, sigma over surprise", _alpha_surprise, _ALPHAS),
    Rule(AUTO, _prompt, _PRICES),
    Rule("first similarity", _similarity, tuple(float(each) for each in np.geomspace(5, 1000, 60))),
    Rule("losses", _losses, tuple(float(each) for each in np.geomspace(1e-3, 0.5, 60))),
)


def stopped(rule: Rule, row: Row, parameter: float) -> int:
    """After how many steps the rule ends."""
    most = len(row.sigma) - 1
    return next((n for n in range(most) if rule.stops(row, n, parameter)), most)


def curve(row: Row) -> Floats:
    """Per cent of base after 0, 1, ..., n steps."""
    return _by_steps(row.bits)


def _by_steps(bits: Mapping[str, float]) -> Floats:
    at = sorted(bits, key=int)
    measured = [100 * bits[step] / bits["0"] for step in at]
    whole: Floats = np.interp(np.arange(int(at[-1]) + 1), [int(step) for step in at], measured)
    return whole


def shares(curves: Sequence[Floats], steps: Sequence[int]) -> tuple[float, float]:
    """Of all steps and of their gain."""
    kept = np.mean([100 - each[n] for each, n in zip(curves, steps, strict=True)])
    whole = np.mean([100 - each[-1] for each in curves])
    return float(np.mean(steps)) / (len(curves[0]) - 1), float(kept / whole)


def compare(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float]]]:
    """By rule: parameter, share of steps, share of gain; ordered by steps. Last, the bound."""
    curves = [curve(row) for row in rows]
    found = {}
    for rule in RULES:
        points = [
            (parameter, *shares(curves, [stopped(rule, row, parameter) for row in rows]))
            for parameter in rule.parameters
        ]
        found[rule.name] = sorted(points, key=lambda point: point[1])
    prices = [float(price) for price in np.geomspace(1e-3, 10, 60)]
    knowing = [
        (price, *shares(curves, [int(np.argmin(c + price * np.arange(len(c)))) for c in curves])) for price in prices
    ]
    return found | {"knowing the future": sorted(knowing, key=lambda point: point[1])}


def at_steps(points: Sequence[tuple[float, float, float]], share: float = TARGET_STEPS) -> float | None:
    """Gain share of a curve where it has taken that share of the steps; None where it never takes as many."""
    if not points[0][1] <= share <= points[-1][1]:
        return None
    return float(np.interp(share, [p[1] for p in points], [p[2] for p in points]))


def for_gain(points: Sequence[tuple[float, float, float]], gain: float = TARGET_GAIN) -> float | None:
    """Least share of steps at which a curve keeps that share of the gain; None if it never does."""
    return min((steps for _, steps, kept in points if kept >= gain), default=None)


def correlations(rows: Sequence[Row]) -> Mapping[str, float]:
    """Of sigma_n, and of sigma_n times the base model's bits per byte, with bits per byte after n steps (figure 8)."""
    pairs = [(row.sigma[int(n)], bits, row.base) for row in rows for n, bits in row.bits.items() if n != "0"]
    sigma, bits, base = np.array(pairs).T
    return {
        "sigma": float(np.corrcoef(sigma, bits)[0, 1]),
        "sigma_times_base": float(np.corrcoef(sigma * base, bits)[0, 1]),
        "base": float(np.corrcoef(base, bits)[0, 1]),
    }
