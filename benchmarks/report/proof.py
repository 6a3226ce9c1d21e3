"""Proof: each way to use a corpus, on text younger than the model: one page first, then all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.thresholds import MAX_AUTO_SECONDS_SHARE, MIN_AUTO_GAIN_SHARE
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    seconds_cell,
    share_cell,
    start_rate_note,
    table,
    titled_table,
)
from benchmarks.report.proof_corpora import corpora_and_runs
from benchmarks.report.proof_without_steps import without_steps

# What the first table shows, in the words of a reader.
_FIRST = {
    "base": "the base model",
    "base, shown": "chosen text in the prompt",
    "SIFT 20": "an adapter for the request, 20 steps",
    "corpus": "an adapter for the corpus, trained ahead",
    "corpus, shown": "that of the corpus, and chosen text in the prompt",
    "corpus if better + 10": "ten steps from that of the corpus, where it suits the prompt",
    "corpus if better + 10, shown": "all together",
    "auto": "what `auto` does",
}
_TOGETHER, _STEPS = "corpus if better + 10, shown", "fresh + 20"


def proof(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """A table, a plot and five sentences; then everything by domain, strategy and arm."""
    result = results["proof"]
    return [
        *(_first_page(result, plots) if result["by_arm"] else []),
        *without_steps(result),
        *_domains(result),
        *_strategies(result),
        *_lines(result),
        *_facts(result),
        *corpora_and_runs(result),
    ]


def _first_page(result: Result, plots: Plots) -> list[str]:
    arms: Mapping[str, Any] = result["by_arm"]
    lines = result["next_line_exact_match"]

    def gains(axes: Any) -> None:
        for name, found in arms.items():
            mean, low, high = found["percent_of_base"]
            is_auto = name == "auto"
            axes.errorbar(
                [found["first_token"]],
                [100 - mean],
                [[high - mean], [mean - low]],
                marker="*" if is_auto else "o",
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

    has_seconds = all(found["first_token"] is not None for found in arms.values())
    return [
        *table(
            ["", "arm", "bits per byte, % of base", "next line exact, %", "s to the first token"],
            [
                [
                    words,
                    name,
                    interval_cell(arms[name]["percent_of_base"]),
                    interval_cell(lines[name]) if name in lines else "",
                    seconds_cell(arms[name]["first_token"]),
                ]
                for name, words in _FIRST.items()
            ],
        ),
        *(
            [plots.draw("gains", "Gain against seconds to the first token, by arm", gains), ""]
            if has_seconds
            else []
        ),
        *_sentences(result),
        "",
    ]


def _sentences(result: Result) -> list[str]:
    """Five sentences, each of its own numbers."""
    arms, together, auto = result["by_arm"], result["together_ahead"], result["auto"]
    domains, rows = result["by_domain"], result["parts"]["arms"]["rows"]
    best = together["best_single"]
    ahead = [name for name, found in domains.items() if found["together_ahead"]["points"][1] > 0]
    behind = [name for name, found in domains.items() if found["together_ahead"]["points"][2] < 0]
    sentences = [
        f"1. On {len(rows)} passages of {len({row['document'] for row in rows})} documents in "
        f"{len(domains)} domains of text that is younger than {result['model']}, the best single "
        f"way is {_FIRST[best]}, with {interval_cell(arms[best]['percent_of_base'])} % of the base "
        "model's bits per byte.",
        f"2. All together reach {interval_cell(arms[_TOGETHER]['percent_of_base'])} %, "
        f"{interval_cell(together['points'])} points ahead of that; the interval is above 0 in "
        f"{_listed(ahead)}, and below 0 in {_listed(behind)}.",
        f"3. `auto` has {share_cell(auto['gain_share'])} of the gain of the best arm "
        f"({auto['best_arm']}) at {share_cell(auto['seconds_share'])} of its seconds to the first "
        f"token; the goal, at least {MIN_AUTO_GAIN_SHARE:.0%} at no more than "
        f"{MAX_AUTO_SECONDS_SHARE:.0%}, "
        f"{holds_or_not(_auto_holds(auto))}; with the best arm of each passage, known afterwards, "
        f"it would have had {_inverse(auto['gain_share_of_hindsight'])} times that gain.",
        _line_sentence(result["next_line_exact_match"], best),
        "5. After 20 steps from scratch, SIFT minus nearest neighbours is "
        + "; ".join(
            f"{interval_cell(found[_STEPS])} points where the corpus is {_kind(corpus)}"
            for corpus, by_kernel in result["sift_minus_nn"].items()
            for found in [next(iter(by_kernel.values()))]
            if _STEPS in found
        )
        + " (below 0: SIFT is better).",
    ]
    return sentences


def _line_sentence(lines: Mapping[str, Sequence[float]], best: str) -> str:
    if not lines:
        return "4. No domain of code was measured, so there are no next lines."
    return (
        f"4. In code, {interval_cell(lines['base'])} % of next lines are exact with the base "
        f"model, {interval_cell(lines[best])} % with {_FIRST[best]}, and "
        f"{interval_cell(lines[_TOGETHER])} % with all together."
    )


def _domains(result: Result) -> list[str]:
    domains: Mapping[str, Any] = result["by_domain"]
    names = list(next(iter(domains.values()))["arms"]) if domains else []
    return [
        *titled_table(
            "By domain",
            "How many points all together are ahead of the best single way in each domain, and "
            "which shares of the best arm's gain and seconds `auto` has there.",
            [
                "domain",
                "passages",
                "documents",
                "best single way",
                "all together ahead",
                "best arm",
                "`auto`: gain",
                "`auto`: seconds",
            ],
            [
                [
                    domain,
                    str(found["passages"]),
                    str(found["documents"]),
                    found["together_ahead"]["best_single"],
                    interval_cell(found["together_ahead"]["points"]),
                    found["auto"]["best_arm"],
                    share_cell(found["auto"]["gain_share"]),
                    share_cell(found["auto"]["seconds_share"]),
                ]
                for domain, found in domains.items()
            ],
        ),
        *titled_table(
            "All arms by domain",
            "Bits per byte in per cent of the base model's, with 90 % intervals over documents. "
            + start_rate_note(result["parts"].get("arms", {}))
            + "`if better` starts afresh where the adapter does not lower the prompt's loss, as "
            "the server does; `NN` takes the nearest sequences instead of SIFT's picks; `shown` "
            "has the chosen text in the prompt.",
            ["arm", *domains, "**all**"],
            [
                [
                    name,
                    *(interval_cell(found["arms"][name]) for found in domains.values()),
                    interval_cell(result["by_arm"][name]["percent_of_base"]),
                ]
                for name in names
            ],
        ),
        *titled_table(
            "At equal seconds",
            "The best arm that takes no more than this many seconds to the first token, on "
            "average; it is chosen on the passages that it is reported on.",
            ["seconds", "chosen by", "arm", "% of base"],
            [
                [limit, strategy, found["arm"], interval_cell(found["percent_of_base"])]
                for limit, by_strategy in result["within_seconds"].items()
                for strategy, found in by_strategy.items()
            ],
        ),
        *titled_table(
            "Seconds",
            "Means of choosing and training, and to the first token of the answer.",
            ["arm", "choosing and training, s", "first token, s"],
            [
                [name, f"{found['seconds']:.3f}", seconds_cell(found["first_token"])]
                for name, found in result["by_arm"].items()
            ],
        ),
    ]


def _strategies(result: Result) -> list[str]:
    by_copies = result["sift_minus_nn_by_copies"]
    return [
        *titled_table(
            "SIFT minus nearest neighbours",
            "Points of the base model's bits per byte, paired by passage; below 0 where SIFT is "
            "better. A deduplicated corpus has no document of which half of the runs of eight "
            "words are in others, nor one that has half of those of what is scored.",
            ["corpus", "kernel", "arm", "difference"],
            [
                [corpus, kernel, arm, interval_cell(difference)]
                for corpus, by_kernel in result["sift_minus_nn"].items()
                for kernel, by_arm in by_kernel.items()
                for arm, difference in by_arm.items()
            ],
        ),
        *titled_table(
            "The same by near copies",
            "Passages by the share of near copies among the 200 sequences nearest to the prompt.",
            ["near copies", "passages", "arm", "difference"],
            [
                [share, str(found["passages"]), arm, interval_cell(difference)]
                for share, found in by_copies.items()
                for arm, difference in found["arms"].items()
            ],
        ),
    ]


def _lines(result: Result) -> list[str]:
    return titled_table(
        "The next line of code",
        "Greedy; per cent, with intervals. Similarity is 1 minus the Levenshtein distance over the "
        "length of the longer line.",
        ["arm", "exact", "similarity"],
        [
            [arm, interval_cell(exact), interval_cell(result["next_line_similarity"][arm])]
            for arm, exact in result["next_line_exact_match"].items()
        ],
    )


def _facts(result: Result) -> list[str]:
    if not (right := result["facts_right"]):
        return []
    part = result["parts"]["facts"]
    differences = {arm: interval_cell(each) for arm, each in result["facts_minus_shown"].items()}
    return titled_table(
        "Questions on a handbook of invented facts",
        f"Per cent of {len(part['rows'])} questions that are answered right, in a chat, and how "
        "many points that is above the chosen text in the prompt alone. What is chosen of the "
        f"{part['handbook']['sequences']} sequences, eight of them, has the answer to "
        f"{interval_cell(result['facts_in_shown'])} % of the questions.",
        ["arm", "right, %", "minus `base, shown`"],
        [[arm, interval_cell(found), differences.get(arm, "")] for arm, found in right.items()],
    )


def _colour(name: str) -> str:
    if name == "auto":
        return "#b9770e"
    if name.startswith("corpus"):
        return "#2471a3"
    return "#222222" if "NN" in name else "#c0392b"


def _kind(corpus: str) -> str:
    return "of " + corpus if corpus.startswith("releases") else corpus


def _inverse(value: float | None) -> str:
    return f"{1 / value:.1f}" if value else "an unknown number of"


def _auto_holds(auto: Mapping[str, Any]) -> bool:
    gain, seconds = auto["gain_share"], auto["seconds_share"]
    return (
        gain is not None
        and seconds is not None
        and gain >= MIN_AUTO_GAIN_SHARE
        and seconds <= MAX_AUTO_SECONDS_SHARE
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"
