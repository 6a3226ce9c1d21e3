"""What the arms score: gains with intervals, next lines, `auto`, SIFT beside neighbours.

Intervals are of 90 %, over documents. A gain is how many points below the base model's 100 % the
bits per byte of an arm are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from benchmarks.corpus_adapters.arms import BASE, Arm
from benchmarks.proof_of_gain.arms import (
    AUTO,
    INSTANT_SHOWN,
    SINGLE,
    TOGETHER,
    arms,
    chooses,
    label,
)
from benchmarks.proof_of_gain.first_token import FirstToken
from benchmarks.quality.bootstrap import interval

Interval = tuple[float, float, float]
# Bounds of the shares of near copies among the nearest sequences, by which passages are grouped.
_COPIES = (0.0, 0.05, 0.25, 1.0)
# Seconds to the first token within which the best arm is named.
_WITHIN = (1.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Row:
    """What was measured on a passage.

    Attributes:
        domain: name of its domain.
        corpus: kind of the corpus.
        kernel: embedder of the corpus.
        document: its document.
        copies: share of near copies among the sequences nearest to it.
        arms: `bits` per byte, `seconds`, `tokens` of the prompt, whether the adapter `is_new`, and
            in code, of some, whether the `line` is exact and how similar it is; by name of the arm.
        key: identifies the passage among all.
    """

    domain: str
    corpus: str
    kernel: str
    document: str
    copies: float
    arms: Mapping[str, Mapping[str, Any]]
    key: str = ""

    def percent(self, arm: str) -> float:
        """Bits per byte in per cent of the base model's."""
        return float(100 * self.arms[arm]["bits"] / self.arms[BASE.name]["bits"])


def numbers(
    main: Sequence[Row],
    compared: Sequence[Row],
    choice: str,
    first_token: FirstToken | None,
) -> dict[str, Any]:
    """The numbers that a run ends with.

    Args:
        main: passages with all arms.
        compared: passages with strategies alone, by which these are compared if there are any.
        choice: name of the trainings.
        first_token: costs of the engine; None if they were not measured.
    """
    found = arms_of(main, choice)
    return {
        "percent_of_base": by_strategy(main, found) if main else None,
        "next_line_exact_match": _of_lines(main, 0),
        "next_line_similarity": _of_lines(main, 1),
        "together_ahead": ahead(main, found, _together(found)),
        "auto_ahead": ahead(main, found, AUTO),
        "auto": auto_shares(main, [arm.name for arm in found], first_token),
        "sift_minus_nn": sift_minus_nn(compared or main, choice),
    }


def arms_of(rows: Sequence[Row], choice: str) -> list[Arm]:
    """The arms of a choice of trainings that all passages have: a former run may lack some."""
    return [arm for arm in arms(choice) if all(arm.name in row.arms for row in rows)]


def by_strategy(rows: Sequence[Row], measured: Sequence[Arm]) -> dict[str, dict[str, Interval]]:
    """Per cent of base by strategy and arm; "none" is the strategy of arms without a choice."""
    found: dict[str, dict[str, Interval]] = {"none": {}, "sift": {}, "nn": {}}
    for arm in measured:
        strategy = arm.strategy if chooses(arm) else "none"
        found[strategy][label(arm)] = over(rows, lambda row: row.percent(arm.name))  # noqa: B023
    # Choices are those of the server, SIFT.
    found["sift"][AUTO] = over(rows, lambda row: row.percent(AUTO))
    return found


def by_arm(rows: Sequence[Row], first_token: FirstToken | None) -> dict[str, dict[str, Any]]:
    """Per cent of base, passages that end worse than with the base model, by how many points `auto`
    is better, mean seconds, and mean seconds to the first token, by name of the arm.
    """
    return {
        name: {
            "percent_of_base": over(rows, lambda row: row.percent(name)),  # noqa: B023
            "worse": sum(row.arms[name]["bits"] > row.arms[BASE.name]["bits"] for row in rows),
            "auto_ahead": over(rows, lambda row: row.percent(name) - row.percent(AUTO)),  # noqa: B023
            "seconds": mean(row.arms[name]["seconds"] for row in rows),
            "first_token": None
            if first_token is None
            else _mean_first_token(rows, name, first_token),
        }
        for name in rows[0].arms
        if all(name in row.arms for row in rows)
    }


def within_seconds(
    rows: Sequence[Row], choice: str, first_token: FirstToken | None
) -> dict[str, dict[str, Any]]:
    """The best arm of each strategy that takes no more than some seconds to the first token, on
    average; nothing if these were not measured.
    """
    found: dict[str, dict[str, Any]] = {}
    if first_token is None or not rows:
        return found
    for limit in _WITHIN:
        found[f"{limit:g}"] = {}
        for strategy in ("sift", "nn"):
            names = [
                arm.name
                for arm in arms_of(rows, choice)
                if (arm.strategy == strategy or not chooses(arm))
                and _mean_first_token(rows, arm.name, first_token) <= limit
            ]
            if names:
                best = min(names, key=lambda name: _mean_percent(rows, name))
                percent = over(rows, lambda row: row.percent(best))  # noqa: B023
                found[f"{limit:g}"][strategy] = {"arm": best, "percent_of_base": percent}
    return found


def by_domain(
    rows: Sequence[Row], choice: str, first_token: FirstToken | None
) -> dict[str, dict[str, Any]]:
    """Per cent of base by domain and arm, whether all together and `auto` are ahead, and shares of
    `auto`.
    """
    found = arms_of(rows, choice)
    names = [arm.name for arm in found]
    return {
        domain: {
            "passages": len(of_domain),
            "documents": len({row.document for row in of_domain}),
            "arms": {
                name: over(of_domain, lambda row: row.percent(name))  # noqa: B023
                for name in (*names, AUTO)
            },
            "together_ahead": ahead(of_domain, found, _together(found)),
            "auto_ahead": ahead(of_domain, found, AUTO),
            "auto": auto_shares(of_domain, names, first_token),
        }
        for domain, of_domain in _grouped(rows, lambda row: row.domain).items()
    }


def ahead(rows: Sequence[Row], measured: Sequence[Arm], name: str) -> dict[str, Any]:
    """How many points more an arm gains than the best single way, and which that is.

    Args:
        rows: the passages.
        measured: the arms that all of them have.
        name: name of the arm.
    """
    if not rows:
        return {"arm": None, "best_single": None, "points": None}
    single = [arm.name for arm in measured if arm in SINGLE]
    best = min(single, key=lambda each: _mean_percent(rows, each))
    points = over(rows, lambda row: row.percent(best) - row.percent(name))
    return {"arm": name, "best_single": best, "points": points}


def _together(measured: Sequence[Arm]) -> str:
    return (TOGETHER if TOGETHER in measured else INSTANT_SHOWN).name


def auto_shares(
    rows: Sequence[Row], names: Sequence[str], first_token: FirstToken | None
) -> dict[str, Any]:
    """The gain of `auto` and its seconds to the first token, as shares of those of the best arm,
    and of the arm that is best for each passage, which nobody knows before; and how many points
    more it gains than the best arm.

    Args:
        rows: the passages.
        names: names of the arms that it is compared with.
        first_token: costs of the engine; None if they were not measured.
    """
    if not rows:
        return dict.fromkeys(
            ("gain", "best_arm", "ahead", "gain_share", "seconds_share", "gain_share_of_hindsight")
        )
    best = min(names, key=lambda name: _mean_percent(rows, name))
    hindsight = [min(names, key=row.percent) for row in rows]
    gain, best_gain = (100 - _mean_percent(rows, name) for name in (AUTO, best))
    most_gain = mean(100 - row.percent(name) for row, name in zip(rows, hindsight, strict=True))
    shares = {
        "gain": gain,
        "best_arm": best,
        "ahead": over(rows, lambda row: row.percent(best) - row.percent(AUTO)),
        "gain_share": gain / best_gain if best_gain > 0 else None,
        "gain_share_of_hindsight": gain / most_gain if most_gain > 0 else None,
        "seconds_share": None,
        "seconds_share_of_hindsight": None,
    }
    if first_token is None:
        return shares
    seconds, best_seconds = (_mean_first_token(rows, name, first_token) for name in (AUTO, best))
    known = mean(
        first_token.seconds(row.arms[name]) for row, name in zip(rows, hindsight, strict=True)
    )
    return {
        **shares,
        "seconds_share": seconds / best_seconds,
        "seconds_share_of_hindsight": seconds / known,
    }


def sift_minus_nn(rows: Sequence[Row], choice: str) -> dict[str, dict[str, dict[str, Interval]]]:
    """Per cent of base of SIFT minus that of nearest neighbours, by kind of corpus, kernel and arm;
    less than 0 where SIFT is better.
    """
    found: dict[str, dict[str, dict[str, Interval]]] = {}
    for corpus, of_corpus in _grouped(rows, lambda row: row.corpus).items():
        for kernel, of_kernel in _grouped(of_corpus, lambda row: row.kernel).items():
            found.setdefault(corpus, {})[kernel] = _differences(of_kernel, choice)
    return found


def sift_minus_nn_by_copies(rows: Sequence[Row], choice: str) -> dict[str, dict[str, Any]]:
    """As `sift_minus_nn`, by the share of near copies among the nearest sequences."""
    found: dict[str, dict[str, Any]] = {}
    for low, high in pairwise(_COPIES):
        is_last = high == _COPIES[-1]
        of_share = [
            row for row in rows if low <= row.copies < high or (is_last and row.copies == high)
        ]
        if of_share:
            found[f"{100 * low:.0f} to {100 * high:.0f} %"] = {
                "passages": len(of_share),
                "arms": _differences(of_share, choice),
            }
    return found


def over(rows: Sequence[Row], value: Callable[[Row], float]) -> Interval:
    """Mean and 90 % interval of a value; passages of one document are drawn together."""
    return interval([value(row) for row in rows], [row.document for row in rows])


def _differences(rows: Sequence[Row], choice: str) -> dict[str, Interval]:
    """SIFT minus nearest neighbours of the arms that were measured with both."""
    by_strategy = {
        strategy: {
            label(arm): arm.name
            for arm in arms_of(rows, choice)
            if arm.strategy == strategy and chooses(arm)
        }
        for strategy in ("sift", "nn")
    }
    pairs = {
        name: (sift, by_strategy["nn"][name])
        for name, sift in by_strategy["sift"].items()
        if name in by_strategy["nn"]
    }
    return {
        name: over(rows, lambda row: row.percent(sift) - row.percent(nearest))  # noqa: B023
        for name, (sift, nearest) in pairs.items()
    }


def _of_lines(rows: Sequence[Row], which: int) -> dict[str, Interval]:
    """Per cent of the next lines that are exact (0), or their mean similarity in per cent (1)."""
    code = [row for row in rows if "line" in row.arms[BASE.name]]
    names = [
        name
        for name in (code[0].arms if code else ())
        if all("line" in row.arms.get(name, {}) for row in code)
    ]
    return {
        name: over(code, lambda row: 100.0 * row.arms[name]["line"][which])  # noqa: B023
        for name in names
    }


def _mean_percent(rows: Sequence[Row], name: str) -> float:
    return mean(row.percent(name) for row in rows)


def _mean_first_token(rows: Sequence[Row], name: str, first_token: FirstToken) -> float:
    return mean(first_token.seconds(row.arms[name]) for row in rows)


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
