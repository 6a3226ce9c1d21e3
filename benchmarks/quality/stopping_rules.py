"""Stopping rules on measured curves: when should an adaptation end, and with which adapter?

Every rule has one parameter; over its values it gives a curve of gain against steps: the share of
all steps that it takes, and the share it keeps of the gain of all steps, both of means over
passages. Rules that probe the prompt do so at the server's steps (`adapters.early_stopping`), and
most of them keep the best adapter of those probed. Between measured steps bits per byte are
interpolated. The oracle is no rule but their upper bound: it spends the same mean number of steps
where they bring most. Pure: measurements in, numbers out.
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

from adapters.early_stopping import EarlyStopping, ProbeEvaluation
from benchmarks.quality.bootstrap import interval
from benchmarks.quality.measurements import Measurement
from selection.strategies.sift import should_stop
from serving.budget import AUTO as BUDGET

Floats = npt.NDArray[np.float64]
# Steps after which a rule ends the training, and steps of the adapter that it keeps.
Stop = tuple[int, int]
TARGET_STEPS, TARGET_GAIN = 1 / 3, 0.9  # shares of all
WINDOW = 3  # probes
FIXED, ALPHA, ORACLE = "fixed number of steps", "alpha", "oracle"
AVERAGE = "average gain on the prompt"
SMOOTHED = "smoothed gain on the prompt"
PATIENCE = "patience on the prompt"
LAST_PROBES = "gain on the prompt over the last probes"
# The rule of a server's `auto`.
AUTO = "smoothed gain on the prompt, or stagnation"


@dataclass(frozen=True)
class Rule:
    """A stopping rule.

    Attributes:
        name: name in tables.
        stop: where the rule stops, from a measurement and the rule's parameter.
        parameters: parameters to try.
    """

    name: str
    stop: Callable[[Measurement, float], Stop]
    parameters: tuple[float, ...]


def _stop_at_step(
    condition: Callable[[Measurement, int, float], bool],
) -> Callable[[Measurement, float], Stop]:
    """A rule that stops at the first step where `condition` holds, with the last adapter."""

    def stop(row: Measurement, parameter: float) -> Stop:
        max_steps = len(row.sigma) - 1
        n = next((n for n in range(max_steps) if condition(row, n, parameter)), max_steps)
        return n, n

    return stop


def _stop_at_probe(
    condition: Callable[[Sequence[ProbeEvaluation], float], bool],
    row: Measurement,
    parameter: float,
) -> Stop:
    """Stop by probes of the prompt, and keep the best adapter of those probed."""
    prompt, max_steps = _by_steps(row.prompt), len(row.sigma) - 1
    # It knows the steps of the probes, and the best of them.
    stopping = EarlyStopping(gain=1.0)
    for n in range(max_steps + 1):
        if stopping.probe_due(n) or n == max_steps:
            stopping.record(n, n, float(prompt[n]))
            if n and condition(stopping.evaluations, parameter):
                break
    assert stopping.best is not None
    return stopping.evaluations[-1].sequences, stopping.best.sequences


def _auto(probes: Sequence[ProbeEvaluation], gain: float) -> bool:
    """The rule of a server's `auto`."""
    return EarlyStopping(gain, list(probes)).has_stalled


def _windowed_gain(probes: Sequence[ProbeEvaluation], gain: float) -> bool:
    """The lowest loss fell by less than `gain` per step over the last WINDOW probes."""
    if len(probes) <= WINDOW:
        return False
    before, now = (min(probe.loss for probe in part) for part in (probes[:-WINDOW], probes))
    steps = probes[-1].sequences - probes[-WINDOW - 1].sequences
    return 100 * (before - now) < gain * steps * probes[0].loss


def _average_gain(probes: Sequence[ProbeEvaluation], gain: float) -> bool:
    """The average gain since the first step is below `gain` per cent of the first loss per step."""
    return 100 * (probes[0].loss - probes[-1].loss) < gain * probes[-1].sequences * probes[0].loss


def _smoothed_gain(probes: Sequence[ProbeEvaluation], gain: float, steps: float = 8.0) -> bool:
    """The mean gain per step is below `gain`, with weights that fall by a factor e per `steps`."""
    if len(probes) <= WINDOW:
        return False
    pairs = list(pairwise(probes))
    weights = np.exp([(after.sequences - probes[-1].sequences) / steps for _, after in pairs])
    gains = np.array([100 * (before.loss - after.loss) / probes[0].loss for before, after in pairs])
    return bool(
        weights @ gains
        < gain * (weights @ [after.sequences - before.sequences for before, after in pairs])
    )


def _patience(probes: Sequence[ProbeEvaluation], patience: float) -> bool:
    """Stop after several probes in a row without a new best."""
    best = min(range(len(probes)), key=lambda i: probes[i].loss)
    return len(probes) - 1 - best >= patience


def _fixed(row: Measurement, n: int, max_steps: float) -> bool:
    return n >= max_steps


def _alpha(row: Measurement, n: int, alpha: float) -> bool:
    """The rule of the paper's section 6."""
    return should_stop(row.sigma[n], n, alpha)


def _alpha_reducible(row: Measurement, n: int, alpha: float) -> bool:
    """The paper's rule, on the share of sigma that this corpus can still reduce."""
    return should_stop((row.sigma[n] - row.irreducible) / max(1 - row.irreducible, 1e-9), n, alpha)


def _alpha_surprise(row: Measurement, n: int, alpha: float) -> bool:
    """The paper's rule, with more steps where the base model predicts the prompt badly."""
    return should_stop(row.sigma[n] / row.surprise, n, alpha)


def _similarity(row: Measurement, n: int, steps: float) -> bool:
    """Steps in proportion to what the first sequence reduces sigma by."""
    return n >= steps * (1 - row.sigma[1])


def _losses(row: Measurement, n: int, least: float) -> bool:
    """The training loss has fallen by less than `least` per step."""
    if n < 6:
        return False
    return (statistics.fmean(row.losses[:3]) - statistics.fmean(row.losses[n - 3 : n])) / n < least


_GAINS = tuple(float(parameter) for parameter in np.geomspace(0.01, 10, 60))
_ALPHAS = tuple(float(alpha) for alpha in np.geomspace(0.01, 2, 60))
RULES = (
    Rule(FIXED, _stop_at_step(_fixed), tuple(map(float, range(1, 51)))),
    Rule(ALPHA, _stop_at_step(_alpha), _ALPHAS),
    Rule("alpha, reducible part of sigma", _stop_at_step(_alpha_reducible), _ALPHAS),
    Rule("alpha, sigma over surprise", _stop_at_step(_alpha_surprise), _ALPHAS),
    Rule(AVERAGE, partial(_stop_at_probe, _average_gain), _GAINS),
    Rule(AUTO, partial(_stop_at_probe, _auto), _GAINS),
    Rule(LAST_PROBES, partial(_stop_at_probe, _windowed_gain), _GAINS),
    Rule(SMOOTHED, partial(_stop_at_probe, _smoothed_gain), _GAINS),
    Rule(PATIENCE, partial(_stop_at_probe, _patience), tuple(map(float, range(1, 9)))),
    Rule(
        "similarity of the first sequence",
        _stop_at_step(_similarity),
        tuple(float(value) for value in np.geomspace(5, 1000, 60)),
    ),
    Rule(
        "training losses",
        _stop_at_step(_losses),
        tuple(float(value) for value in np.geomspace(1e-3, 0.5, 60)),
    ),
)


def curve(row: Measurement) -> Floats:
    """Per cent of base after 0, 1, ..., n steps."""
    return _by_steps(row.bits)


def _by_steps(bits: Mapping[str, float]) -> Floats:
    steps = sorted(bits, key=int)
    percent = [100 * bits[step] / bits["0"] for step in steps]
    interpolated: Floats = np.interp(
        np.arange(int(steps[-1]) + 1), [int(step) for step in steps], percent
    )
    return interpolated


def shares(curves: Sequence[Floats], stops: Sequence[Stop]) -> tuple[float, float]:
    """Shares of all steps, and of their gain, that stops take and keep."""
    gain = np.mean([100 - curve[used] for curve, (_, used) in zip(curves, stops, strict=True)])
    total_gain = np.mean([100 - curve[-1] for curve in curves])
    steps = float(np.mean([steps for steps, _ in stops])) / (len(curves[0]) - 1)
    return steps, float(gain / total_gain)


def compare(rows: Sequence[Measurement]) -> dict[str, list[tuple[float, float, float]]]:
    """Points by rule (parameter, share of steps, share of gain), by steps. Last is the oracle."""
    curves = [curve(row) for row in rows]
    result = {}
    for rule in RULES:
        points = [
            (parameter, *shares(curves, [rule.stop(row, parameter) for row in rows]))
            for parameter in rule.parameters
        ]
        result[rule.name] = sorted(points, key=lambda point: point[1])
    oracle = []
    for price in np.geomspace(1e-3, 10, 60):
        best = [int(np.argmin(curve + price * np.arange(len(curve)))) for curve in curves]
        oracle.append((float(price), *shares(curves, [(n, n) for n in best])))
    return result | {ORACLE: sorted(oracle, key=lambda point: point[1])}


def evaluate(choosing: Sequence[Measurement], reporting: Sequence[Measurement]) -> dict[str, Any]:
    """Choose each rule's parameter on some passages, and evaluate the rule on others.

    The parameter is that which takes the fewest steps for TARGET_GAIN of the gain.

    Returns:
        "auto": the outcome of a server's `auto` on the reporting passages. "rules": by name, the
        parameter, or None if none keeps TARGET_GAIN, the shares on the choosing passages, and the
        outcome on the reporting ones. "stopping_rules": `compare` of the reporting passages.
    """
    choosing_curves, reporting_curves = compare(choosing), compare(reporting)
    result: dict[str, Any] = {}
    for rule in RULES:
        candidates = [point for point in choosing_curves[rule.name] if point[2] >= TARGET_GAIN]
        best = min(candidates, key=lambda point: point[1], default=None)
        result[rule.name] = {
            "parameter": None if best is None else best[0],
            "choosing": None if best is None else best[1:],
            "reporting": None if best is None else outcome(reporting, rule, best[0]),
            "gain_share_at_a_third": gain_at_steps(reporting_curves[rule.name]),
        }
    assert BUDGET.gain is not None
    auto = next(rule for rule in RULES if rule.name == AUTO)
    return {
        "passages": {"choosing": len(choosing), "reporting": len(reporting)},
        "target": TARGET_GAIN,
        "auto": {"gain": BUDGET.gain, **outcome(reporting, auto, BUDGET.gain)},
        "rules": result,
        "gain_share_at_a_third_knowing": gain_at_steps(reporting_curves[ORACLE]),
        "steps_share_for_target_knowing": steps_for_gain(reporting_curves[ORACLE]),
        "stopping_rules": reporting_curves,
    }


def outcome(rows: Sequence[Measurement], rule: Rule, parameter: float) -> dict[str, Any]:
    """What a rule does: steps, shares and per cent of base with 90 % intervals, and harm.

    "harmed" is the share of passages that end worse than with the base model.
    """
    curves, stops = [curve(row) for row in rows], [rule.stop(row, parameter) for row in rows]
    percent = np.array([each[used] for each, (_, used) in zip(curves, stops, strict=True)])
    documents = [row.document for row in rows]
    steps = interval([steps for steps, _ in stops], documents)
    max_steps = len(curves[0]) - 1
    samples = np.random.default_rng(0).integers(0, len(rows), (1000, len(rows)))
    gains, totals = 100 - percent, np.array([100 - each[-1] for each in curves])
    low, high = np.quantile(gains[samples].sum(axis=1) / totals[samples].sum(axis=1), [0.05, 0.95])
    return {
        "steps": steps,
        "steps_share": tuple(value / max_steps for value in steps),
        "gain_share": (float(gains.sum() / totals.sum()), float(low), float(high)),
        "percent_of_base": interval(percent.tolist(), documents),
        "harmed": float(np.mean(percent > 100)),
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the rules as a table."""
    table = Table(
        *("rule", "parameter", "steps", "gain", "worse than base", "gain at 1/3"),
        box=None,
        pad_edge=False,
    )
    for name, rule in result["rules"].items():
        found, third = rule["reporting"], rule["gain_share_at_a_third"]
        cells = ["never", "", "", ""]
        if found is not None:
            cells = [
                f"{rule['parameter']:.3g}",
                "{:.2f} ({:.2f} to {:.2f})".format(*found["steps_share"]),
                "{:.2f} ({:.2f} to {:.2f})".format(*found["gain_share"]),
                f"{found['harmed']:.2f}",
            ]
        table.add_row(name, *cells, "never" if third is None else f"{third:.2f}")
    console.print(table)
    auto = result["auto"]
    console.print(
        f"auto (gain {auto['gain']:g}): {auto['steps_share'][0]:.2f} of the steps, "
        f"{auto['gain_share'][0]:.2f} of the gain, {auto['percent_of_base'][0]:.1f} % of base",
        highlight=False,
    )


def gain_at_steps(
    points: Sequence[tuple[float, float, float]], share: float = TARGET_STEPS
) -> float | None:
    """Gain share of a curve at a share of the steps; None where the curve does not reach it."""
    if not points[0][1] <= share <= points[-1][1]:
        return None
    return float(np.interp(share, [p[1] for p in points], [p[2] for p in points]))


def steps_for_gain(
    points: Sequence[tuple[float, float, float]], gain: float = TARGET_GAIN
) -> float | None:
    """Least share of steps at which a curve keeps a share of the gain; None if it never does."""
    return min((steps for _, steps, used in points if used >= gain), default=None)


def correlations(rows: Sequence[Measurement]) -> Mapping[str, float]:
    """Correlations with bits per byte after n steps (paper, figure 8).

    They are of sigma_n, of sigma_n times the base model's bits per byte, and of the latter alone.
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
