"""Proof: each way to use a corpus, on text younger than the model: one page first, then all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.formatting import Plots, Result, interval_cell, titled_table
from benchmarks.report.proof_corpora import corpora_and_runs
from benchmarks.report.proof_domains import domains
from benchmarks.report.proof_page import MIN_DOCUMENTS, page
from selection.config import DEFAULT

_INTRODUCTION = (
    "How well a model predicts text that follows a prompt, of documents that it has never seen, in "
    "bits per byte: fewer are better. In parentheses are 90 % intervals over documents. SIFT "
    "chooses text that is relevant to the prompt and not redundant."
)
# Heading and text of each part where it is not the first page, and the name of its plot.
_PARTS = {
    "arms": (
        "With steps",
        "All arms on passages of their own. Those with steps take minutes for a passage, so there "
        "are fewer.",
        "gains",
    ),
    "arms without steps": (
        "Without a step",
        "What takes no step at the request, and what `auto` does, on passages of their own.",
        "gains-without-steps",
    ),
}


def proof(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """The part with the most passages on one page and by domain, then the other; then the rest."""
    result = results["proof"]
    parts = {name: result["parts"][name] for name in _PARTS if name in result["parts"]}
    lines = [_INTRODUCTION, ""]
    in_order = sorted(parts, key=lambda each: -len(parts[each]["rows"]))
    for name in in_order:
        found = result if name == "arms" else result["without_steps"]
        title, words, plot = _PARTS[name]
        if name != in_order[0]:
            lines += [f"### {title}", "", f"{words} The runs are [below](#runs).", ""]
        own = result["sift_minus_nn_with_steps"] if name == "arms" else found["sift_minus_nn"]
        compared = _with_intervals(result) if "strategies" in result["parts"] else own
        lines += page(found, parts[name], result["model"], plots, plot, compared)
        lines += domains(found, parts[name], title.lower(), own)
    return [
        *lines,
        *_equal_seconds(result),
        *_strategies(result),
        *_facts(result),
        *corpora_and_runs(result),
    ]


def _equal_seconds(result: Result) -> list[str]:
    return titled_table(
        "At equal seconds",
        "The best of all arms, with steps and without, that takes no more than this many seconds "
        "to the first token, on average; it is chosen on the passages that it is reported on.",
        ["seconds", "chosen by", "arm", "% of base"],
        [
            [limit, strategy, found["arm"], interval_cell(found["percent_of_base"])]
            for limit, by_strategy in result["within_seconds"].items()
            for strategy, found in by_strategy.items()
        ],
    )


def _strategies(result: Result) -> list[str]:
    if "strategies" not in result["parts"]:
        return []
    passages, by_copies = _passages(result), result["sift_minus_nn_by_copies"]
    return [
        *titled_table(
            "SIFT minus nearest neighbours",
            "On corpora of their own, without an adapter (sizes [below](#the-corpora)): points of "
            "the base model's bits per byte, paired by passage; below 0 where SIFT is better. A "
            "deduplicated corpus has no document of which half of the runs of eight words are in "
            "documents kept before it, nor one that has half of those of what is scored. The rows "
            "are of different domains and passages: each is to be compared with 0, not with the "
            "others.",
            ["corpus", "kernel", "passages", "arm", "difference"],
            [
                [
                    corpus,
                    kernel,
                    str(passages[corpus, kernel]),
                    arm,
                    _difference_cell(difference, passages[corpus, kernel]),
                ]
                for corpus, by_kernel in result["sift_minus_nn"].items()
                for kernel, by_arm in by_kernel.items()
                for arm, difference in by_arm.items()
            ],
        ),
        *titled_table(
            "The same by near copies",
            "By the share of near copies among the 200 sequences nearest to the prompt, with "
            f"{DEFAULT}. A passage counts once with each corpus.",
            ["near copies", "passages", "arm", "difference"],
            [
                [
                    share,
                    str(found["passages"]),
                    arm,
                    _difference_cell(difference, found["passages"]),
                ]
                for share, found in by_copies.items()
                for arm, difference in found["arms"].items()
            ],
        ),
    ]


def _passages(result: Result) -> Counter[tuple[str, str]]:
    """Passages by which strategies were compared, by kind of corpus and kernel."""
    rows = result["parts"]["strategies"]["rows"]
    return Counter((row["corpus"], row["kernel"]) for row in rows)


def _with_intervals(result: Result) -> dict[str, dict[str, Any]]:
    """SIFT minus nearest neighbours where there are enough passages for an interval."""
    passages = _passages(result)
    return {
        corpus: {
            kernel: by_arm
            for kernel, by_arm in by_kernel.items()
            if passages[corpus, kernel] >= MIN_DOCUMENTS
        }
        for corpus, by_kernel in result["sift_minus_nn"].items()
    }


def _difference_cell(difference: Sequence[float], passages: int) -> str:
    if passages < MIN_DOCUMENTS:
        return f"{difference[0]:.1f} (too few for an interval)"
    return interval_cell(difference)


def _facts(result: Result) -> list[str]:
    if not (right := result["facts_right"]):
        return []
    part = result["parts"]["facts"]
    differences = {arm: interval_cell(each) for arm, each in result["facts_minus_shown"].items()}
    learnt = part["learnt"]
    best = max((arm for arm in right if "shown" not in arm), key=lambda arm: right[arm][0])
    return titled_table(
        "Questions on a handbook of invented facts",
        f"Per cent of {len(part['rows'])} questions that are answered right, in a chat, and how "
        "many points that is above the chosen text in the prompt alone. What is chosen of the "
        f"{part['handbook']['sequences']} sequences, eight of them, has the answer to "
        f"{interval_cell(result['facts_in_shown'])} % of the questions. The adapter of the corpus "
        f"was trained in {learnt['seconds']:.0f} seconds. The best way without text in the prompt, "
        f"trained or not, has {right[best][0]:.1f} % right; minus the chosen text in the prompt "
        f"alone, that is {differences[best]} points.",
        ["arm", "right, %", "minus `base, shown`"],
        [[arm, interval_cell(found), differences.get(arm, "")] for arm, found in right.items()],
    )
