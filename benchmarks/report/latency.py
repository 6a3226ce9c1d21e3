"""Latency: stages by budget and load, cross-check, hot-loading, a PEFT loop per request, growth.

The percentiles of `select`, which is one stage here, are the sums of those of embedding, search and
selection.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.thresholds import MAX_HOT_LOAD_RATIO, MIN_P99_REQUESTS, MIN_SPEEDUP
from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    interval_cell,
    median_cell,
    milliseconds,
    table,
)
from benchmarks.report.latency_growth import growth

_SELECT = ("embed", "search", "select")
_COLUMNS = {
    "queue": ("queue",),
    "select": _SELECT,
    "train": ("train",),
    "load": ("load",),
    "first token": ("first token",),
    "per token": ("per token",),
    "whole": ("whole",),
}
_CROSS_CHECKED = ("first token", "per token", "whole")  # measured by both clients
_OTHER_SERVERS = {"vllm": "plain vLLM", "resident": "resident adapter"}
_COLOURS = {"plain vLLM": "#222222", "resident adapter": "#999999", "`none`": "C8", "`auto`": "C9"}
_LAYERS = {
    "queue": "#bbbbbb",
    "embed": "#aed6f1",
    "search": "#5dade2",
    "select": "#2471a3",
    "train": "#c0392b",
    "load": "#e59866",
    "to the first token": "#7dcea0",
    "further tokens": "#1e8449",
}
Cell = Mapping[str, Any]


def latency(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """Everything that the latency benchmark measured."""
    result = results["latency"]
    cells = list(result["cells"].values())
    open_loops = [each for each in cells if each["rate"] is not None]
    closed_loops = [each for each in cells if each["rate"] is None]
    other_lengths = result["plan"]["lengths"]
    lengths = [each for each in closed_loops if [each["prompt"], each["answer"]] in other_lengths]
    default_lengths = [
        each for each in closed_loops if [each["prompt"], each["answer"]] not in other_lengths
    ]
    prompt, answer = default_lengths[0]["prompt"], default_lengths[0]["answer"]
    least_concurrency = min(each["at_once"] for each in default_lengths)
    single = [each for each in default_lengths if each["at_once"] == least_concurrency]
    lines = [
        f"Prompts of {prompt} tokens and answers of {answer}; p50 / p95 / p99, in milliseconds. "
        "`select` is embedding, search and selection, each percentile the sum of theirs; `load` is "
        "staging and loading; first token, further tokens and the whole answer are as a client "
        "sees "
        f"them. An asterisk marks fewer than {MIN_P99_REQUESTS} requests, whose p99 is close to "
        "the "
        f"maximum. In all, {result['short']} requests failed or fell short (an error, no adapter, "
        "or "
        "fewer steps than the budget's); the times are of the others.",
        "",
        *table(
            ["budget", "concurrency", "requests", "per second", *_COLUMNS],
            [
                [label(each), str(each["at_once"]), *_request_counts(each), *_row(each, *_COLUMNS)]
                for each in default_lengths
            ],
        ),
        plots.draw(
            "stages",
            f"Median seconds by stage and budget, concurrency {least_concurrency}",
            _Stages(single),
        ),
        "",
        plots.draw(
            "concurrency",
            "Seconds of a whole answer by concurrency",
            _Concurrency(default_lengths),
            panels=2,
        ),
        "",
        cross_check(cells),
        "",
    ]
    if lengths:
        steady = [each for each in single if each["budget"] == lengths[0]["budget"]]
        all_lengths = sorted([*steady, *lengths], key=lambda each: (each["prompt"], each["answer"]))
        columns: tuple[str, ...] = ("train", "load", *_CROSS_CHECKED)
        lines += [
            "### Lengths of prompt and answer",
            "",
            f"`{lengths[0]['budget']}`, one request at a time.",
            "",
            *table(
                ["prompt", "answer", "requests", "per second", *columns],
                [
                    [
                        str(each["prompt"]),
                        str(each["answer"]),
                        *_request_counts(each),
                        *_row(each, *columns),
                    ]
                    for each in all_lengths
                ],
            ),
        ]
    if open_loops:
        columns = ("queue", "train", "first token", "whole")
        lines += [
            "### Open loop",
            "",
            "Requests at random moments (Poisson), at a share of the rate of the fastest closed "
            "loop.",
            "",
            *table(
                ["budget", "offered per second", "requests", "answered per second", *columns],
                [
                    [
                        label(each),
                        f"{each['rate']:.2f}",
                        *_request_counts(each),
                        *_row(each, *columns),
                    ]
                    for each in open_loops
                ],
            ),
        ]
    return [
        *lines,
        *_hot_load(result),
        *_per_request_peft(result["naive"]),
        *growth(result["growth"], plots),
    ]


def label(each: Cell) -> str:
    """A budget of Mayfly, or another server."""
    return _OTHER_SERVERS.get(each["server"]) or f"`{each['budget']}`"


def times(stages: Mapping[str, Mapping[str, float]], *names: str) -> str:
    """Percentiles of a stage, or their sums over several; empty where no request has it."""
    found = [stages[name] for name in names if name in stages]
    if not found:
        return ""
    mark = "\\*" if min(each["n"] for each in found) < MIN_P99_REQUESTS else ""
    return (
        " / ".join(milliseconds(sum(each[p] for each in found)) for p in ("p50", "p95", "p99"))
        + mark
    )


def cross_check(cells: Sequence[Cell]) -> str:
    """How well our client and `vllm bench serve` agree."""
    checked = [each for each in cells if each["vllm_bench_serve"]]
    if not checked:
        return "Cross-check: `vllm bench serve` measured no cell."
    ratios = {
        stage: [each["agreement"][stage] for each in checked if stage in each["agreement"]]
        for stage in _CROSS_CHECKED
    }
    texts = "; ".join(f"{stage} {median_cell(found)}" for stage, found in ratios.items() if found)
    failed = sum(each["vllm_bench_serve"]["failed"] for each in checked)
    missing = sum(each["vllm_bench_serve"]["steps_missing"] or 0 for each in checked)
    return (
        f"Cross-check: `vllm bench serve` measured the same in {len(checked)} of {len(cells)} "
        "cells. "
        f"Our median over its, median over cells and range: {texts or 'none'}. Of its requests "
        f"{failed} failed, and {missing} steps of their budgets were not taken."
    )


def _request_counts(each: Cell) -> list[str]:
    short = f", {each['short']} short" if each["short"] else ""
    return [f"{each['requests']}{short}", f"{each['per_second']:.2f}"]


def _row(each: Cell, *columns: str) -> list[str]:
    return [times(each["stages"], *_COLUMNS[column]) for column in columns]


class _Stages:
    """Stacked bars of the medians of stages."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells

    def __call__(self, axes: Any) -> None:
        bars = [_layers(each["stages"]) for each in self._cells]
        below = [0.0] * len(bars)
        for layer, colour in _LAYERS.items():
            heights = [bar[layer] for bar in bars]
            axes.bar(range(len(bars)), heights, bottom=below, label=layer, color=colour)
            below = [start + height for start, height in zip(below, heights, strict=True)]
        names = [label(each).strip("`") for each in self._cells]
        axes.set_xticks(range(len(bars)), names, rotation=40, ha="right")
        axes.set(ylabel="seconds, sum of medians")
        axes.legend(fontsize=7)


def _layers(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Medians of the layers of a whole answer.

    Without an adapter, everything before the first token is one layer.
    """
    medians = {stage: found["p50"] for stage, found in stages.items()}
    first, whole = medians.get("first token", 0.0), medians.get("whole", 0.0)
    return {layer: medians.get(layer, 0.0) for layer in _LAYERS} | {
        "to the first token": medians.get("loaded to first token", first),
        "further tokens": max(0.0, whole - first),
    }


class _Concurrency:
    """Two percentiles of whole answers by concurrency, a panel for each."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = [each for each in cells if "whole" in each["stages"]]

    def __call__(self, left: Any, right: Any) -> None:
        right.sharey(left)
        for axes, p in ((left, "p50"), (right, "p99")):
            limits = {False: 0, True: 0}  # number of budgets of steps, and of seconds
            for name in dict.fromkeys(map(label, self._cells)):
                found = [each for each in self._cells if label(each) == name]
                timed = "seconds" in name
                axes.plot(
                    [each["at_once"] for each in found],
                    [each["stages"]["whole"][p] for each in found],
                    color=_COLOURS.get(name, f"C{limits[timed]}"),
                    linestyle="--" if timed else "-",
                    marker=".",
                    label=name.strip("`"),
                )
                limits[timed] += name not in _COLOURS
            counts = sorted({each["at_once"] for each in self._cells})
            axes.set(
                xscale="log",
                yscale="log",
                xlabel="concurrency",
                ylabel=f"seconds of an answer, {p}",
            )
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
        right.legend(fontsize=7, handlelength=3, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _hot_load(result: Result) -> list[str]:
    ratio, rows = result["hot_load_ratio"], []
    for hot in result["hot_load"].values():
        medians = [
            hot[f"{what}_seconds"][0] for what in ("ready_to_first", "load", "resident_first")
        ]
        counts = [str(hot[what]) for what in ("prompt_tokens", "pairs", "short")]
        rows.append([*counts, interval_cell(hot["ratios"], 2), *map(milliseconds, medians)])
    return [
        "### Hot-loading",
        "",
        "Time from the trained adapter to the first token, over that of a resident adapter: "
        f"**{ratio:.2f}**; threshold {MAX_HOT_LOAD_RATIO}: "
        f"{holds_or_not(ratio <= MAX_HOT_LOAD_RATIO)}. "
        "Ratios are of pairs (median, least and most); times are medians in milliseconds.",
        "",
        *table(
            [
                "prompt tokens",
                "pairs",
                "short",
                "ratio",
                "ready to first token",
                "of it, load",
                "resident",
            ],
            rows,
        ),
    ]


def _per_request_peft(peft: Mapping[str, Any]) -> list[str]:
    load, mayfly = peft["load"], statistics.median(peft["per_second"]["mayfly"])
    rows, texts = [], []
    for name, ratios in peft["ratios"].items():
        processes, threads = peft["processes_and_threads"][name]
        stages = ", ".join(
            f"{stage} {seconds:.2f}" for stage, seconds in peft["seconds"][name].items()
        )
        speed, ratio = statistics.median(peft["per_second"][name]), statistics.median(ratios)
        label = f"{processes} x {threads}"
        rows.append([label, f"{mayfly:.2f}", f"{speed:.2f}", median_cell(ratios), stages])
        texts.append(
            f"**{ratio:.2f}** times those of {label} ({holds_or_not(ratio >= MIN_SPEEDUP)})"
        )
    short = sum(peft["short"].values())
    return [
        "### A PEFT loop per request",
        "",
        "Mayfly against a new PEFT adapter for each request, trained by a plain loop, loaded into "
        "vLLM "
        "and unloaded again, in processes x threads. Mayfly's requests per second are "
        f"{' and '.join(texts)}; threshold {MIN_SPEEDUP:.0f}. `{load['budget']}`, concurrency "
        f"{load['at_once']}, {load['requests']} requests per round; ratios are of rounds (median, "
        "least "
        f"and most), seconds are medians over requests. {short} requests failed or fell short.",
        "",
        *table(
            [
                "processes x threads",
                "Mayfly, per second",
                "PEFT loop, per second",
                "ratio",
                "seconds",
            ],
            rows,
        ),
    ]
