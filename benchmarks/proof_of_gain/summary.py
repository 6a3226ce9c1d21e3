"""What the arms score: gains with intervals, next lines, facts, `auto`, SIFT beside neighbours.

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
from benchmarks.proof_of_gain.arms import AUTO, SHOWN_ALONE, SINGLE, TOGETHER, arms, chooses, label
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


@dataclass(frozen=True)
class FactsRow:
    """What was answered to a question.

    Attributes:
        document: the document that has the answer.
        question: the question.
        answer: the right answer.
        is_shown: whether the chosen text, where it is shown alone, has the answer.
        arms: whether the answer is `right`, and its `line`, by name of the arm.
    """

    document: str
    question: str
    answer: str
    is_shown: bool
    arms: Mapping[str, Mapping[str, Any]]

    def right(self, arm: str) -> float:
        """100 if the answer of an arm is right, otherwise 0."""
        return float(100 * self.arms[arm]["right"])


def numbers(
    main: Sequence[Row],
    compared: Sequence[Row],
    choice: str,
    first_token: FirstToken | None,
) -> dict[str, Any]:
    """The numbers that a run ends with.

    Args:
        main: passages with all arms.
        compared: passages with strategies alone, on changed corpora.
        choice: name of the trainings.
        first_token: costs of the engine; None if they were not measured.
    """
    return {
        "percent_of_base": by_strategy(main, arms(choice)) if main else None,
        "next_line_exact_match": _of_lines(main, 0),
        "next_line_similarity": _of_lines(main, 1),
        "together_ahead": together_ahead(main),
        "auto": auto_shares(main, [arm.name for arm in arms(choice)], first_token),
        "sift_minus_nn": sift_minus_nn([*main, *compared], choice),
    }


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
    """Per cent of base, mean seconds, and mean seconds to the first token, by name of the arm."""
    return {
        name: {
            "percent_of_base": over(rows, lambda row: row.percent(name)),  # noqa: B023
            "seconds": mean(row.arms[name]["seconds"] for row in rows),
            "first_token": None
            if first_token is None
            else _mean_first_token(rows, name, first_token),
        }
        for name in rows[0].arms
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
                for arm in arms(choice)
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
    """Per cent of base by domain and arm, whether all together are ahead, and shares of `auto`."""
    names = [arm.name for arm in arms(choice)]
    return {
        domain: {
            "passages": len(of_domain),
            "documents": len({row.document for row in of_domain}),
            "arms": {
                name: over(of_domain, lambda row: row.percent(name))  # noqa: B023
                for name in (*names, AUTO)
            },
            "together_ahead": together_ahead(of_domain) if choice != "none" else None,
            "auto": auto_shares(of_domain, names, first_token),
        }
        for domain, of_domain in _grouped(rows, lambda row: row.domain).items()
    }


def together_ahead(rows: Sequence[Row]) -> dict[str, Any]:
    """How many points more all together gain than the best single way, and which that is."""
    if not rows:
        return {"best_single": None, "points": None}
    best = min((arm.name for arm in SINGLE), key=lambda name: _mean_percent(rows, name))
    points = over(rows, lambda row: row.percent(best) - row.percent(TOGETHER.name))
    return {"best_single": best, "points": points}


def auto_shares(
    rows: Sequence[Row], names: Sequence[str], first_token: FirstToken | None
) -> dict[str, Any]:
    """The gain of `auto` and its seconds to the first token, as shares of those of the best arm,
    and of the arm that is best for each passage, which nobody knows before.

    Args:
        rows: the passages.
        names: names of the arms that it is compared with.
        first_token: costs of the engine; None if they were not measured.
    """
    if not rows:
        return dict.fromkeys(
            ("gain", "best_arm", "gain_share", "seconds_share", "gain_share_of_hindsight"), None
        )
    best = min(names, key=lambda name: _mean_percent(rows, name))
    hindsight = [min(names, key=row.percent) for row in rows]
    gain, best_gain = (100 - _mean_percent(rows, name) for name in (AUTO, best))
    most_gain = mean(100 - row.percent(name) for row, name in zip(rows, hindsight, strict=True))
    shares = {
        "gain": gain,
        "best_arm": best,
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


def facts_summary(rows: Sequence[FactsRow]) -> dict[str, Any]:
    """Per cent of right answers by arm, how many points these are above those of the chosen text
    shown alone, and of how many questions that text has the answer; None without questions.
    """
    if not rows:
        return dict.fromkeys(("facts_right", "facts_minus_shown", "facts_in_shown"))
    documents, shown = [row.document for row in rows], SHOWN_ALONE.name
    return {
        "facts_right": {
            arm: interval([row.right(arm) for row in rows], documents) for arm in rows[0].arms
        },
        "facts_minus_shown": {
            arm: interval([row.right(arm) - row.right(shown) for row in rows], documents)
            for arm in rows[0].arms
            if arm != shown
        },
        "facts_in_shown": interval([100.0 * row.is_shown for row in rows], documents),
    }


def over(rows: Sequence[Row], value: Callable[[Row], float]) -> Interval:
    """Mean and 90 % interval of a value; passages of one document are drawn together."""
    return interval([value(row) for row in rows], [row.document for row in rows])


def _differences(rows: Sequence[Row], choice: str) -> dict[str, Interval]:
    """SIFT minus nearest neighbours of the arms that all rows have with both."""
    by_strategy = {
        strategy: {
            label(arm): arm.name
            for arm in arms(choice)
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
        if all({sift, nearest} <= row.arms.keys() for row in rows)
    }


def _of_lines(rows: Sequence[Row], which: int) -> dict[str, Interval]:
    """Per cent of the next lines that are exact (0), or their mean similarity in per cent (1)."""
    code = [row for row in rows if "line" in row.arms[BASE.name]]
    names = [name for name, arm in code[0].arms.items() if "line" in arm] if code else []
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
