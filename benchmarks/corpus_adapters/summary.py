"""What the arms score: per cent of base with intervals, seconds, and what is better than what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from benchmarks.corpus_adapters.arms import BASE, COMBINED, FRESH, INSTANT, Arm, Start
from benchmarks.quality.bootstrap import interval

Interval = tuple[float, float, float]


PARTS = Arm("parts")


@dataclass(frozen=True)
class Row:
    """The scores of a passage.

    Attributes:
        corpus: the corpus that it was held out of.
        document: its document.
        scores: bits per byte and seconds by arm, as `quality.Scores`.
        key: identifies the passage among all.
    """

    corpus: str
    document: str
    scores: Mapping[str, Sequence[float]]
    key: str = ""

    def percent(self, arm: Arm) -> float:
        """Bits per byte in per cent of the base model's."""
        return 100 * self.scores[arm.name][0] / self.scores[BASE.name][0]

    def seconds(self, arm: Arm) -> float:
        """Seconds at the time of the request."""
        return self.scores[arm.name][1]


def quality_summary(
    rows: Sequence[Row], arms: Sequence[Arm], start: Start = "corpus"
) -> dict[str, Any]:
    """What the rows come to, and the rows.

    Args:
        rows: the passages.
        arms: the arms.
        start: the adapter that the corpora have by default: in one part, or in several.
    """
    return {
        "passages": len(rows),
        "passages_of": Counter(row.corpus for row in rows),
        "arms": by_arm(rows, arms),
        "by_corpus": by_corpus(rows, arms),
        **({"parts_minus_one": parts_minus_one(rows)} if PARTS in arms else {}),
        "instant": instant_shares(rows, arms, start),
        "sift_from_corpus_minus_best_single": combined_gain(rows, arms, start),
        "steps_from_corpus_minus_corpus": steps_gain(rows, start),
        "rows": [vars(row) for row in rows],
    }


def by_arm(rows: Sequence[Row], arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Per cent of base, its difference to 20 steps from scratch, and mean seconds of each arm."""
    return {
        arm.name: {
            "percent_of_base": _interval(rows, [row.percent(arm) for row in rows]),
            "minus_fresh": _interval(rows, [row.percent(arm) - row.percent(FRESH) for row in rows]),
            "seconds": mean(row.seconds(arm) for row in rows),
        }
        for arm in arms
    }


def by_corpus(rows: Sequence[Row], arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """Mean per cent of base by corpus and arm."""
    return {
        corpus: {
            arm.name: mean(row.percent(arm) for row in rows if row.corpus == corpus) for arm in arms
        }
        for corpus in dict.fromkeys(row.corpus for row in rows)
    }


def parts_minus_one(rows: Sequence[Row]) -> dict[str, Interval]:
    """Per cent of base with an adapter in parts minus that with one adapter, by corpus."""
    differences = {}
    for corpus in dict.fromkeys(row.corpus for row in rows):
        own = [row for row in rows if row.corpus == corpus]
        points = [row.percent(PARTS) - row.percent(INSTANT) for row in own]
        differences[corpus] = _interval(own, points)
    return differences


def instant_shares(
    rows: Sequence[Row], arms: Sequence[Arm], start: Start = "corpus"
) -> dict[str, Any]:
    """What the corpus's adapter keeps of the best arm's gain, of all arms and of those without
    shown text, and its share of the seconds of SIFT's longest arm.
    """
    instant = replace(INSTANT, start=start)
    longest = max((arm for arm in arms if arm.start == "fresh"), key=lambda arm: arm.steps)
    best, gain_share = _share(rows, arms, instant)
    _, unshown = _share(rows, [arm for arm in arms if not arm.shown], instant)
    seconds = [mean(row.seconds(arm) for row in rows) for arm in (instant, longest)]
    return {
        "best_arm": best,
        "gain_share": gain_share,
        "gain_share_without_shown": unshown,
        "seconds_share": seconds[0] / seconds[1],
        "seconds_share_of": longest.name,
    }


def combined_gain(rows: Sequence[Row], arms: Sequence[Arm], start: Start = "corpus") -> Interval:
    """How many points more SIFT from the corpus's adapter gains than the better of both alone."""
    instant, combined = (replace(arm, start=start) for arm in (INSTANT, COMBINED))
    single = [arm for arm in arms if not arm.shown and (arm.start == "fresh" or arm == instant)]
    best = min(single, key=lambda arm: mean(row.percent(arm) for row in rows))
    return _interval(rows, [row.percent(best) - row.percent(combined) for row in rows])


def steps_gain(rows: Sequence[Row], start: Start = "corpus") -> Interval:
    """How many points more the adapter of the corpus gains with the steps of COMBINED after it, on
    all passages: what the steps bring, without the comparison before them.
    """
    instant = replace(INSTANT, start=start)
    stepped = replace(COMBINED, start=start, compared=False)
    return _interval(rows, [row.percent(instant) - row.percent(stepped) for row in rows])


def _share(rows: Sequence[Row], arms: Sequence[Arm], instant: Arm) -> tuple[str, float | None]:
    """The best arm, and the part of its gain that the corpus's adapter has alone."""
    gains = {arm: 100 - mean(row.percent(arm) for row in rows) for arm in arms}
    best = max(gains, key=lambda arm: gains[arm])
    return best.name, gains[instant] / gains[best] if gains[best] > 0 else None


def _interval(rows: Sequence[Row], values: Sequence[float]) -> Interval:
    """Mean and 90 % interval; passages of one document are drawn together."""
    return interval(values, [row.document for row in rows])
