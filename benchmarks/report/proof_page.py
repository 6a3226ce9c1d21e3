"""Proof: what was measured on some passages, on one page: a table, a plot and five sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.thresholds import MAX_AUTO_SECONDS_SHARE, MIN_AUTO_GAIN_SHARE
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    median_cell,
    seconds_cell,
    share_cell,
    table,
)
from selection.config import DEFAULT

# Documents of a domain, or passages by which strategies are compared, that an interval needs.
MIN_DOCUMENTS = 5
# What the table shows, in the words of a reader.
_WORDS = {
    "base": "the base model",
    "base, NN shown": "the nearest text in the prompt",
    "base, shown": "text that SIFT chooses in the prompt",
    "SIFT 20": "an adapter for the request, 20 steps",
    "corpus": "an adapter for the corpus, trained ahead",
    "corpus, NN shown": "that of the corpus, and the nearest text in the prompt",
    "corpus, shown": "that of the corpus, and text that SIFT chooses in the prompt",
    "corpus if better + 10": "ten steps from that of the corpus, where it suits the prompt",
    "corpus if better + 10, shown": "the same, and text that SIFT chooses in the prompt",
    "auto": "what `auto` does",
}
_SECONDS = (
    "Seconds to the first token are computed from measured costs: of choosing and training, of "
    "loading an adapter, and of the tokens of the prompt at the speed of the base model."
)
_TICKS = [digit * 10**power for power in range(-2, 3) for digit in (1, 2, 5)]
# The arms by which SIFT and the nearest sequences are compared, and on which corpora.
_COMPARED = {
    "fresh + 20": "after 20 steps from scratch",
    "base, shown": "with the text in the prompt alone",
}
_CORPORA = {
    "as it is": "on corpora as they are",
    "releases side by side": "on corpora of several releases",
    "deduplicated": "on deduplicated corpora",
}


def page(
    found: Mapping[str, Any],
    part: Result,
    model: str,
    plots: Plots,
    plot: str,
    differences: Mapping[str, Any],
) -> list[str]:
    """The page of one part of the result.

    Args:
        found: what the part comes to.
        part: the part.
        model: name of the base model.
        plots: of the section.
        plot: name of the plot.
        differences: SIFT minus nearest neighbours, by kind of corpus, kernel and arm.
    """
    arms, lines = found["by_arm"], found["next_line_exact_match"]
    has_seconds = all(each["first_token"] is not None for each in arms.values())
    return [
        *table(
            [
                "",
                "arm",
                "bits per byte, % of base",
                "`auto` better by, points",
                "worse than base",
                "next line exact, %",
                "s to the first token",
            ],
            [
                [
                    words,
                    name,
                    interval_cell(arms[name]["percent_of_base"]),
                    "" if name == "auto" else interval_cell(arms[name]["auto_ahead"]),
                    "" if name == "base" else f"{arms[name]['worse']} of {len(part['rows'])}",
                    interval_cell(lines[name]) if name in lines else "",
                    seconds_cell(arms[name]["first_token"]),
                ]
                for name, words in _WORDS.items()
                if name in arms
            ],
        ),
        *_trained_ahead(part),
        *([_SECONDS, "", _gains(arms, plots, plot), ""] if has_seconds else []),
        *_sentences(found, part, model),
        _sift_sentence(differences),
        "",
    ]


def _trained_ahead(part: Result) -> list[str]:
    learnt = [each["corpus"] for each in part.get("learnt", {}).values() if each.get("corpus")]
    seconds = [each["seconds"] for each in learnt]
    megabytes = [each["bytes"] / 1e6 for each in part.get("corpora", {}).values()]
    if not seconds or not megabytes:
        return []
    least, most = (f"{find(megabytes):.2f}" for find in (min, max))
    sizes = least if least == most else f"{least} to {most}"
    return [
        f"Adapters of corpora, of {sizes} MB each, were trained ahead: {len(seconds)}, in "
        f"{median_cell(seconds, 0)} seconds (median, least and most).",
        "",
    ]


def _gains(arms: Mapping[str, Any], plots: Plots, plot: str) -> str:
    def draw(axes: Any) -> None:
        for name, found in arms.items():
            mean, low, high = found["percent_of_base"]
            axes.errorbar(
                [found["first_token"]],
                [100 - mean],
                [[high - mean], [mean - low]],
                marker="*" if name == "auto" else "o",
                color=_colour(name),
                elinewidth=0.5,
            )
            axes.annotate(
                name,
                (found["first_token"], 100 - mean),
                xytext=(4, 2),
                textcoords="offset points",
                fontsize=6,
            )
        axes.set(xscale="log", xlabel="seconds to the first token", ylabel="gain, % of base")
        seconds = [found["first_token"] for found in arms.values()]
        ticks = [each for each in _TICKS if min(seconds) <= each <= max(seconds)]
        axes.set_xticks(ticks, labels=[f"{each:g}" for each in ticks])
        axes.set_xticks([], minor=True)

    return plots.draw(plot, "Gain against seconds to the first token, by arm", draw)


def _sentences(found: Mapping[str, Any], part: Result, model: str) -> list[str]:
    """The first four sentences."""
    arms, rows, auto = found["by_arm"], part["rows"], found["auto"]
    best, together = found["together_ahead"]["best_single"], found["together_ahead"]["arm"]
    all_ways = "All together" if "+" in together else "The adapter and text in the prompt together"
    ways = {"together_ahead": f"{all_ways} (`{together}`) reach", "auto_ahead": "`auto` reaches"}
    return [
        f"1. On {len(rows)} passages of {len({row['document'] for row in rows})} documents in "
        f"{len(found['by_domain'])} domains of text that is younger than {model}, the best way "
        f"alone is {_WORDS[best]}, with {interval_cell(arms[best]['percent_of_base'])} % of the "
        "base model's bits per byte.",
        *(
            f"{number}. {words} {interval_cell(arms[found[key]['arm']]['percent_of_base'])} %, "
            f"better than that by {interval_cell(found[key]['points'])} points; "
            f"{_by_domain(found['by_domain'], key)}."
            for number, (key, words) in enumerate(ways.items(), start=2)
        ),
        f"4. `auto` has {share_cell(auto['gain_share'])} of the gain of the best arm "
        f"(`{auto['best_arm']}`; `auto` is better by {interval_cell(auto['ahead'])} points) at "
        f"{share_cell(auto['seconds_share'])} of its seconds to the first token; the goal, at "
        f"least {MIN_AUTO_GAIN_SHARE:.0%} at no more than {MAX_AUTO_SECONDS_SHARE:.0%}, "
        f"{holds_or_not(_auto_holds(auto))}{_hindsight(auto['gain_share_of_hindsight'])}.",
    ]


def _by_domain(domains: Mapping[str, Any], key: str) -> str:
    """In which domains an arm is ahead of the best single way there, and in which behind."""
    large = {
        name: each[key]["points"]
        for name, each in domains.items()
        if each["documents"] >= MIN_DOCUMENTS
    }
    if not large:
        return f"no domain has the {MIN_DOCUMENTS} documents that an interval by domain needs"
    ahead = [name for name, points in large.items() if points[1] > 0]
    behind = [name for name, points in large.items() if points[2] < 0]
    return (
        f"compared with the best way alone in each domain, the interval is above 0 in "
        f"{_listed(ahead)} and below 0 in {_listed(behind)} of the {len(large)} with "
        f"{MIN_DOCUMENTS} documents or more"
    )


def _sift_sentence(differences: Mapping[str, Any]) -> str:
    by_corpus = {
        _CORPORA[corpus]: by_kernel[DEFAULT]
        for corpus, by_kernel in differences.items()
        if DEFAULT in by_kernel
    }
    measured = [arm for arm in _COMPARED if any(arm in each for each in by_corpus.values())]
    if not measured:
        return "5. SIFT was not compared with nearest neighbours."
    return (
        "5. SIFT minus nearest neighbours, in points (below 0: SIFT is better), "
        + "; ".join(
            f"{_COMPARED[arm]}: "
            + ", ".join(
                f"{interval_cell(found[arm])} {where}"
                for where, found in by_corpus.items()
                if arm in found
            )
            for arm in measured
        )
        + "."
    )


def _colour(name: str) -> str:
    if name == "auto":
        return "#b9770e"
    if name.startswith("corpus"):
        return "#2471a3"
    return "#222222" if "NN" in name else "#c0392b"


def _hindsight(share: float | None) -> str:
    if share is None or share <= 0:
        return ""
    return (
        "; the best arm of each passage, which is known only afterwards, gains "
        f"{1 / share:.1f} times as much as `auto`"
    )


def _auto_holds(auto: Mapping[str, Any]) -> bool:
    gain, seconds = auto["gain_share"], auto["seconds_share"]
    return (
        gain is not None
        and seconds is not None
        and gain >= MIN_AUTO_GAIN_SHARE
        and seconds <= MAX_AUTO_SECONDS_SHARE
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({'; '.join(names)})" if names else "none"
