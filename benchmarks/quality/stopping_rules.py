"""Stopping: when should an adaptation end, and which adapter answers? Rules compared on curves that
were measured.

Every rule has one parameter; over its values it gives a curve of gain against steps: the share of
all steps that it takes, and the share it keeps of the gain that all steps bring, both of means over
passages. Rules that look at the prompt do so when a server does (`adapters.early_stopping`), and
most of them keep the best adapter of those looked at. Between measured steps bits per byte are
interpolated. The rule that knows the future is no rule but the bound for all of them: it spends the
same mean number of steps where they bring most. Pure: rows in, numbers out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from adapters.early_stopping import WINDOW, EarlyStopping, ProbeEvaluation
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.variants import Row
from selection.strategies.sift import should_stop
from serving.config import AUTO as BUDGET

Floats = npt.NDArray[np.float64]
# After how many steps a rule ends, and how many of them the adapter has learnt from.
Ended = tuple[int, int]
TARGET_STEPS, TARGET_GAIN = 1 / 3, 0.85  # shares
FIXED, ALPHA, KNOWING = "the same number for all", "alpha", "knowing the future"
AVERAGE = "the prompt's average gain"
AUTO = "the prompt's gain over the last looks"  # the rule of a server's `auto`


@dataclass(frozen=True)
class Rule:
    """When to end and which adapter to keep, by what is known then, and the parameters to try."""

    name: str
    ends: Callable[[Row, float], Ended]
    parameters: tuple[float, ...]


def _at_once(stops: Callable[[Row, int, float], bool]) -> Callable[[Row, float], Ended]:
    """The first number of steps at which it stops; the adapter is the last one."""

    def ends(row: Row, parameter: float) -> Ended:
        most = len(row.sigma) - 1
        n = next((n for n in range(most) if stops(row, n, parameter)), most)
        return n, n

    return ends


def _looking(
    stops: Callable[[Sequence[ProbeEvaluation], float], bool], row: Row, parameter: float
) -> Ended:
    """Stops by looks at the prompt, and keeps the best adapter of those looked at."""
    prompt, most = _by_steps(row.prompt), len(row.sigma) - 1
    looks = EarlyStopping(gain=1.0)  # which says when to look, and which look was the best
    for n in range(most + 1):
        if looks.probe_due(n) or n == most:
            looks.record(n, n, float(prompt[n]))
            if n and stops(looks.evaluations, parameter):
                break
    assert looks.best is not None
    return looks.evaluations[-1].sequences, looks.best.sequences


def _recent_gain(looks: Sequence[ProbeEvaluation], gain: float) -> bool:
    """As a server's `auto`."""
    return EarlyStopping(gain, list(looks)).has_stalled


def _average_gain(looks: Sequence[ProbeEvaluation], gain: float) -> bool:
    """The prompt has gained less than so many per cent of its loss a step, since the first."""
    return 100 * (looks[0].loss - looks[-1].loss) < gain * looks[-1].sequences * looks[0].loss


def _smoothed_gain(looks: Sequence[ProbeEvaluation], gain: float, steps: float = 8.0) -> bool:
    """The gains of steps weigh less the longer ago they are, by a factor e for each so many steps."""
    if len(looks) <= WINDOW:
        return False
    pairs = list(pairwise(looks))
    weights = np.exp([(after.sequences - looks[-1].sequences) / steps for _, after in pairs])
    gains = np.array([100 * (before.loss - after.loss) / looks[0].loss for before, after in pairs])
    return bool(
        weights @ gains
        < gain * (weights @ [after.sequences - before.sequences for before, after in pairs])
    )


def _patience(looks: Sequence[ProbeEvaluation], most: float) -> bool:
    """Stop after several looks in a row without a new best."""
    best = min(range(len(looks)), key=lambda i: looks[i].loss)
    return len(looks) - 1 - best >= most


def _fixed(row: Row, n: int, most: float) -> bool:
    return n >= most


def _alpha(row: Row, n: int, alpha: float) -> bool:
    """The paper's (section 6)."""
    return should_stop(row.sigma[n], n, alpha)


def _alpha_reducible(row: Row, n: int, alpha: float) -> bool:
    """The paper's, by what this corpus can still tell."""
    return should_stop((row.sigma[n] - row.irreducible) / max(1 - row.irreducible, 1e-9), n, alpha)


def _alpha_surprise(row: Row, n: int, alpha: float) -> bool:
    """The paper's, with more patience where the base model is surprised by the prompt."""
    return should_stop(row.sigma[n] / row.surprise, n, alpha)


def _similarity(row: Row, n: int, patience: float) -> bool:
    """As many steps as the first sequence tells of the prompt."""
    return n >= patience * (1 - row.sigma[1])


def _losses(row: Row, n: int, least: float) -> bool:
    """The losses of the last steps are no lower than those of the first by so much a step."""
    if n < 6:
        return False
    return (statistics.fmean(row.losses[:3]) - statistics.fmean(row.losses[n - 3 : n])) / n < least


_PRICES = tuple(float(price) for price in np.geomspace(0.01, 10, 60))
_ALPHAS = tuple(float(alpha) for alpha in np.geomspace(0.01, 2, 60))
RULES = (
    Rule(FIXED, _at_once(_fixed), tuple(map(float, range(1, 51)))),
    Rule(ALPHA, _at_once(_alpha), _ALPHAS),
    Rule("alpha, reducible part of sigma", _at_once(_alpha_reducible), _ALPHAS),
    Rule("alpha, sigma over surprise", _at_once(_alpha_surprise), _ALPHAS),
    Rule(AVERAGE, partial(_looking, _average_gain), _PRICES),
    Rule(AUTO, partial(_looking, _recent_gain), _PRICES),
    Rule("the prompt's gain, smoothed", partial(_looking, _smoothed_gain), _PRICES),
    Rule("patience with the prompt", partial(_looking, _patience), tuple(map(float, range(1, 9)))),
    Rule(
        "first similarity",
        _at_once(_similarity),
        tuple(float(each) for each in np.geomspace(5, 1000, 60)),
    ),
    Rule("losses", _at_once(_losses), tuple(float(each) for each in np.geomspace(1e-3, 0.5, 60))),
)


def curve(row: Row) -> Floats:
    """Per cent of base after 0, 1, ..., n steps."""
    return _by_steps(row.bits)


def _by_steps(bits: Mapping[str, float]) -> Floats:
    at = sorted(bits, key=int)
    measured = [100 * bits[step] / bits["0"] for step in at]
    whole: Floats = np.interp(np.arange(int(at[-1]) + 1), [int(step) for step in at], measured)
    return whole


def shares(curves: Sequence[Floats], ended: Sequence[Ended]) -> tuple[float, float]:
    """Of all steps and of their gain."""
    kept = np.mean([100 - each[kept] for each, (_, kept) in zip(curves, ended, strict=True)])
    whole = np.mean([100 - each[-1] for each in curves])
    return float(np.mean([taken for taken, _ in ended])) / (len(curves[0]) - 1), float(kept / whole)


def compare(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float]]]:
    """By rule: parameter, share of steps, share of gain; ordered by steps. Last, the bound."""
    curves = [curve(row) for row in rows]
    found = {}
    for rule in RULES:
        points = [
            (parameter, *shares(curves, [rule.ends(row, parameter) for row in rows]))
            for parameter in rule.parameters
        ]
        found[rule.name] = sorted(points, key=lambda point: point[1])
    prices = [float(price) for price in np.geomspace(1e-3, 10, 60)]
    best = [[int(np.argmin(c + price * np.arange(len(c)))) for c in curves] for price in prices]
    knowing = [
        (price, *shares(curves, [(n, n) for n in each]))
        for price, each in zip(prices, best, strict=True)
    ]
    return found | {KNOWING: sorted(knowing, key=lambda point: point[1])}


def judged(choosing: Sequence[Row], reporting: Sequence[Row]) -> dict[str, Any]:
    """Each rule with the parameter that takes the fewest steps for TARGET_GAIN of the gain of the
    passages that choose.

    Returns:
        "auto": what a server's `auto` does on the passages that report; "rules": by name, the
        parameter, or None where none keeps as much, the shares on both, those of "reporting" with
        intervals, and the share of passages that ended worse than the base model's;
        "stopping_rules": as `compare`, of the passages that report.
    """
    chosen, told = compare(choosing), compare(reporting)
    found: dict[str, Any] = {}
    for rule in RULES:
        enough = [point for point in chosen[rule.name] if point[2] >= TARGET_GAIN]
        best = min(enough, key=lambda point: point[1], default=None)
        found[rule.name] = {
            "parameter": None if best is None else best[0],
            "choosing": None if best is None else best[1:],
            "reporting": None if best is None else reported(reporting, rule, best[0]),
            "gain_share_at_a_third": at_steps(told[rule.name]),
        }
    assert BUDGET.gain is not None
    auto = next(rule for rule in RULES if rule.name == AUTO)
    return {
        "passages": {"choosing": len(choosing), "reporting": len(reporting)},
        "target": TARGET_GAIN,
        "auto": {"gain": BUDGET.gain, **reported(reporting, auto, BUDGET.gain)},
        "rules": found,
        "gain_share_at_a_third_knowing": at_steps(told[KNOWING]),
        "steps_share_for_target_knowing": for_gain(told[KNOWING]),
        "stopping_rules": told,
    }


def reported(rows: Sequence[Row], rule: Rule, parameter: float) -> dict[str, Any]:
    """What a rule does on these passages: shares with 90 % intervals, steps, per cent of base, and
    the share harmed.
    """
    curves, ended = [curve(row) for row in rows], [rule.ends(row, parameter) for row in rows]
    at_end = [float(each[kept]) for each, (_, kept) in zip(curves, ended, strict=True)]
    documents = [row.document for row in rows]
    steps = interval([taken for taken, _ in ended], documents)
    most = len(curves[0]) - 1
    drawn = np.random.default_rng(0).integers(0, len(rows), (1000, len(rows)))
    gains, whole = 100 - np.array(at_end), np.array([100 - each[-1] for each in curves])
    low, high = np.quantile(gains[drawn].sum(axis=1) / whole[drawn].sum(axis=1), [0.05, 0.95])
    return {
        "steps": steps,
        "steps_share": tuple(each / most for each in steps),
        "gain_share": (float(gains.sum() / whole.sum()), float(low), float(high)),
        "percent_of_base": interval(at_end, documents),
        "harmed": float(np.mean(np.array(at_end) > 100)),
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """The rules as a table for people."""
    table = Table(
        "rule",
        "parameter",
        "steps",
        "gain",
        "worse than base",
        "gain at 1/3",
        box=None,
        pad_edge=False,
    )
    for name, each in result["rules"].items():
        told, third = each["reporting"], each["gain_share_at_a_third"]
        cells = (
            ["never", "", "", ""]
            if told is None
            else [
                f"{each['parameter']:.3g}",
                "{:.2f} ({:.2f} to {:.2f})".format(*told["steps_share"]),
                "{:.2f} ({:.2f} to {:.2f})".format(*told["gain_share"]),
                f"{told['harmed']:.2f}",
            ]
        )
        table.add_row(name, *cells, "never" if third is None else f"{third:.2f}")
    console.print(table)
    auto = result["auto"]
    console.print(
        f"auto (gain {auto['gain']:g}): {auto['steps_share'][0]:.2f} of the steps, {auto['gain_share'][0]:.2f} of the "
        f"gain, {auto['percent_of_base'][0]:.1f} % of base",
        highlight=False,
    )


def at_steps(
    points: Sequence[tuple[float, float, float]], share: float = TARGET_STEPS
) -> float | None:
    """Gain share of a curve where it has taken that share of the steps; None where it never takes
    as many.
    """
    if not points[0][1] <= share <= points[-1][1]:
        return None
    return float(np.interp(share, [p[1] for p in points], [p[2] for p in points]))


def for_gain(
    points: Sequence[tuple[float, float, float]], gain: float = TARGET_GAIN
) -> float | None:
    """Least share of steps at which a curve keeps that share of the gain; None if it never does."""
    return min((steps for _, steps, kept in points if kept >= gain), default=None)


def correlations(rows: Sequence[Row]) -> Mapping[str, float]:
    """Of sigma_n, and of sigma_n times the base model's bits per byte, with bits per byte after n
    steps (figure 8).
    """
    pairs = [
        (row.sigma[int(n)], bits, row.base)
        for row in rows
        for n, bits in row.bits.items()
        if n != "0"
    ]
    sigma, bits, base = np.array(pairs).T
    return {
        "sigma": float(np.corrcoef(sigma, bits)[0, 1]),
        "sigma_times_base": float(np.corrcoef(sigma * base, bits)[0, 1]),
        "base": float(np.corrcoef(base, bits)[0, 1]),
    }
