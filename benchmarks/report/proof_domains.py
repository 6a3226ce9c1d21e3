"""Proof: what was measured on some passages, by domain, and all its arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import (
    Result,
    interval_cell,
    seconds_cell,
    share_cell,
    start_rate_note,
    titled_table,
)


def domains(
    found: Mapping[str, Any], part: Result, of: str, differences: Mapping[str, Any]
) -> list[str]:
    """Tables of one part of the result.

    Args:
        found: what the part comes to.
        part: the part.
        of: which arms these are, for the titles.
        differences: SIFT minus nearest neighbours, by kind of corpus, kernel and arm.
    """
    return [
        *_ahead(found["by_domain"], f"By domain, {of}"),
        *_arms(found, part, f"All arms by domain, {of}"),
        *_seconds(found, f"Seconds, {of}"),
        *_lines(found, part, f"The next line of code, {of}"),
        *titled_table(
            f"SIFT minus nearest neighbours, {of}",
            "Points of the base model's bits per byte, paired by passage, on the corpora of these "
            "arms; below 0 where SIFT is better.",
            ["corpus", "arm", "difference"],
            [
                [corpus, arm, interval_cell(difference)]
                for corpus, by_kernel in differences.items()
                for by_arm in by_kernel.values()
                for arm, difference in by_arm.items()
            ],
        ),
    ]


def _ahead(by_domain: Mapping[str, Any], title: str) -> list[str]:
    return titled_table(
        title,
        "By how many points all of them together and `auto` are better than the best way alone in "
        "each domain, which is chosen on the passages that it is reported on; and which shares of "
        "the best arm's gain and seconds `auto` has there.",
        [
            "domain",
            "passages",
            "documents",
            "best way alone",
            "together better by",
            "`auto` better by",
            "best arm",
            "`auto`: gain",
            "`auto`: seconds",
        ],
        [
            [
                domain,
                str(each["passages"]),
                str(each["documents"]),
                each["together_ahead"]["best_single"],
                interval_cell(each["together_ahead"]["points"]),
                interval_cell(each["auto_ahead"]["points"]),
                each["auto"]["best_arm"],
                share_cell(each["auto"]["gain_share"]),
                share_cell(each["auto"]["seconds_share"]),
            ]
            for domain, each in by_domain.items()
        ],
    )


def _arms(found: Mapping[str, Any], part: Result, title: str) -> list[str]:
    by_domain, by_arm = found["by_domain"], found["by_arm"]
    names = list(next(iter(by_domain.values()))["arms"]) if by_domain else []
    takes_steps = any("+" in name for name in names)
    return titled_table(
        title,
        "Bits per byte in per cent of the base model's, with 90 % intervals over documents. "
        + (start_rate_note(part) if takes_steps else "")
        + "`if better` starts afresh where the adapter does not lower the prompt's loss, as the "
        "server does; `NN` takes the nearest sequences instead of SIFT's picks; `shown` has the "
        "chosen text in the prompt.",
        ["arm", *by_domain, "**all**"],
        [
            [
                name,
                *(interval_cell(each["arms"][name]) for each in by_domain.values()),
                interval_cell(by_arm[name]["percent_of_base"]),
            ]
            for name in names
        ],
    )


def _seconds(found: Mapping[str, Any], title: str) -> list[str]:
    return titled_table(
        title,
        "Means of choosing and training, and to the first token of the answer.",
        ["arm", "choosing and training, s", "first token, s"],
        [
            [name, f"{each['seconds']:.3f}", seconds_cell(each["first_token"])]
            for name, each in found["by_arm"].items()
        ],
    )


def _lines(found: Mapping[str, Any], part: Result, title: str) -> list[str]:
    asked = sum("line" in row["arms"]["base"] for row in part["rows"])
    return titled_table(
        title,
        f"Of {asked} passages of code; greedy; per cent, with intervals. Similarity is 1 minus the "
        "Levenshtein distance over the length of the longer line.",
        ["arm", "exact", "similarity"],
        [
            [arm, interval_cell(exact), interval_cell(found["next_line_similarity"][arm])]
            for arm, exact in found["next_line_exact_match"].items()
        ],
    )
