"""Latency: stages by budget and load beside plain vLLM, the cross-check, hot-loading, the naive
way, and growth.

Of what is written as one stage here, `choose`, the percentiles are the sums of those of its three.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.thresholds import MAX_HOT_LOAD_RATIO, MIN_P99_REQUESTS, MIN_SPEEDUP
from benchmarks.report.formatting import Plots, Result, cell, middle, milliseconds, table, whether
from benchmarks.report.latency_growth import growth

_CHOOSE = ("embed", "search", "select")
_COLUMNS = {
    "queue": ("queue",),
    "choose": _CHOOSE,
    "train": ("train",),
    "load": ("load",),
    "first token": ("first token",),
    "per token": ("per token",),
    "whole": ("whole",),
}
_BOTH = ("first token", "per token", "whole")  # what both harnesses measure
_OTHERS = {"vllm": "plain vLLM", "resident": "resident adapter"}
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
    """All that was asked of a server."""
    result = results["latency"]
    cells = list(result["cells"].values())
    opened = [each for each in cells if each["rate"] is not None]
    closed = [each for each in cells if each["rate"] is None]
    others = result["plan"]["lengths"]  # than the usual ones
    lengths = [each for each in closed if [each["prompt"], each["answer"]] in others]
    usual = [each for each in closed if [each["prompt"], each["answer"]] not in others]
    prompt, answer = usual[0]["prompt"], usual[0]["answer"]
    least = min(each["at_once"] for each in usual)
    alone = [each for each in usual if each["at_once"] == least]
    lines = [
        f"Prompts of {prompt} tokens and answers of {answer}; p50 / p95 / p99, in milliseconds. `choose` is embedding, "
        "search and selection, each percentile the sum of theirs; `load` is staging and loading; the first token, each "
        "further one and the whole answer are as a client sees them. An asterisk: fewer than "
        f"{MIN_P99_REQUESTS} requests, of which the p99 is little more than the largest. In all, {result['short']} "
        "requests were not answered as asked (an error, no adapter, or fewer steps than the budget's); times are of "
        "the others.",
        "",
        *table(
            ["budget", "at once", "requests", "a second", *_COLUMNS],
            [
                [who(each), str(each["at_once"]), *_asked(each), *_row(each, *_COLUMNS)]
                for each in usual
            ],
        ),
        plots.draw(
            "stages", f"Median seconds by stage and budget, {least} at once", _Stages(alone)
        ),
        "",
        plots.draw(
            "concurrency",
            "Seconds of a whole answer by how many ask at once",
            _Concurrency(usual),
            panels=2,
        ),
        "",
        agreement(cells),
        "",
    ]
    if lengths:
        steady = [each for each in alone if each["budget"] == lengths[0]["budget"]]
        every = sorted([*steady, *lengths], key=lambda each: (each["prompt"], each["answer"]))
        shown: tuple[str, ...] = ("train", "load", *_BOTH)
        lines += [
            "### Lengths of prompt and answer",
            "",
            f"`{lengths[0]['budget']}`, one at once.",
            "",
            *table(
                ["prompt", "answer", "requests", "a second", *shown],
                [
                    [str(each["prompt"]), str(each["answer"]), *_asked(each), *_row(each, *shown)]
                    for each in every
                ],
            ),
        ]
    if opened:
        shown = ("queue", "train", "first token", "whole")
        lines += [
            "### Open loop",
            "",
            "Requests at random moments (Poisson), at a share of the rate that the quickest closed loop reached.",
            "",
            *table(
                ["budget", "offered a second", "requests", "answered a second", *shown],
                [
                    [who(each), f"{each['rate']:.2f}", *_asked(each), *_row(each, *shown)]
                    for each in opened
                ],
            ),
        ]
    return [*lines, *_hot_load(result), *_naive(result["naive"]), *growth(result["growth"], plots)]


def who(each: Cell) -> str:
    """Who is asked: a budget of Mayfly's, or another server."""
    return _OTHERS.get(each["server"]) or f"`{each['budget']}`"


def times(stages: Mapping[str, Mapping[str, float]], *names: str) -> str:
    """Percentiles of a stage, or their sums over several; nothing where no request had it."""
    found = [stages[name] for name in names if name in stages]
    if not found:
        return ""
    few = "\\*" if min(each["n"] for each in found) < MIN_P99_REQUESTS else ""
    return (
        " / ".join(milliseconds(sum(each[p] for each in found)) for p in ("p50", "p95", "p99"))
        + few
    )


def agreement(cells: Sequence[Cell]) -> str:
    """How well our client and `vllm bench serve` agree, in a line."""
    checked = [each for each in cells if each["vllm_bench_serve"]]
    if not checked:
        return "Cross-check: `vllm bench serve` was asked for no cell."
    ratios = {
        stage: [each["agreement"][stage] for each in checked if stage in each["agreement"]]
        for stage in _BOTH
    }
    told = "; ".join(f"{stage} {middle(found)}" for stage, found in ratios.items() if found)
    failed = sum(each["vllm_bench_serve"]["failed"] for each in checked)
    missing = sum(each["vllm_bench_serve"]["steps_missing"] or 0 for each in checked)
    return (
        f"Cross-check: `vllm bench serve` asked the same in {len(checked)} of {len(cells)} cells. Our median over its, "
        f"median over cells and range: {told or 'none'}. Of its requests {failed} failed, and {missing} steps that "
        "they had asked for were not taken."
    )


def _asked(each: Cell) -> list[str]:
    short = f", {each['short']} not as asked" if each["short"] else ""
    return [f"{each['requests']}{short}", f"{each['per_second']:.2f}"]


def _row(each: Cell, *columns: str) -> list[str]:
    return [times(each["stages"], *_COLUMNS[column]) for column in columns]


class _Stages:
    """Bars of the medians of stages, on top of each other."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells

    def __call__(self, axes: Any) -> None:
        bars = [_layers(each["stages"]) for each in self._cells]
        below = [0.0] * len(bars)
        for layer, colour in _LAYERS.items():
            heights = [bar[layer] for bar in bars]
            axes.bar(range(len(bars)), heights, bottom=below, label=layer, color=colour)
            below = [start + height for start, height in zip(below, heights, strict=True)]
        names = [who(each).strip("`") for each in self._cells]
        axes.set_xticks(range(len(bars)), names, rotation=40, ha="right")
        axes.set(ylabel="seconds, sum of medians")
        axes.legend(fontsize=7)


def _layers(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Medians of what one whole answer is made of; of an answer without an adapter, all before its
    first token.
    """
    medians = {stage: found["p50"] for stage, found in stages.items()}
    first, whole = medians.get("first token", 0.0), medians.get("whole", 0.0)
    return {layer: medians.get(layer, 0.0) for layer in _LAYERS} | {
        "to the first token": medians.get("loaded to first token", first),
        "further tokens": max(0.0, whole - first),
    }


class _Concurrency:
    """Lines of two percentiles of whole answers, a panel for each."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = [each for each in cells if "whole" in each["stages"]]

    def __call__(self, left: Any, right: Any) -> None:
        right.sharey(left)
        for axes, p in ((left, "p50"), (right, "p99")):
            limits = {False: 0, True: 0}  # how many budgets there are of steps, and of seconds
            for name in dict.fromkeys(map(who, self._cells)):
                found = [each for each in self._cells if who(each) == name]
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
                xlabel="requests at once",
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
        rows.append([*counts, cell(hot["ratios"], 2), *map(milliseconds, medians)])
    return [
        "### Hot-loading",
        "",
        "From the trained adapter to the first token, times the first token of an adapter that vLLM holds anyway: "
        f"**{ratio:.2f}**; at most {MAX_HOT_LOAD_RATIO} is wanted: {whether(ratio <= MAX_HOT_LOAD_RATIO)}. Ratios are of pairs "
        "(median, least and most), times are medians in milliseconds.",
        "",
        *table(
            [
                "prompt tokens",
                "pairs",
                "not as asked",
                "ratio",
                "ready to first token",
                "of it, load",
                "resident",
            ],
            rows,
        ),
    ]


def _naive(raced: Mapping[str, Any]) -> list[str]:
    load, ours = raced["load"], statistics.median(raced["per_second"]["mayfly"])
    rows, told = [], []
    for name, ratios in raced["ratios"].items():
        processes, threads = raced["processes_and_threads"][name]
        parts = ", ".join(f"{stage} {value:.2f}" for stage, value in raced["seconds"][name].items())
        speed, ratio = statistics.median(raced["per_second"][name]), statistics.median(ratios)
        rows.append(
            [name, f"{processes} x {threads}", f"{ours:.2f}", f"{speed:.2f}", middle(ratios), parts]
        )
        told.append(f"**{ratio:.2f}** times the {name} way's ({whether(ratio >= MIN_SPEEDUP)})")
    short = ", ".join(f"{count} of {name}" for name, count in raced["short"].items())
    return [
        "### The naive way",
        "",
        "A new PEFT adapter for each request, trained by a plain loop, loaded into vLLM and unloaded again. Requests "
        f"that Mayfly answers a second: {' and '.join(told)}; at least {MIN_SPEEDUP:.0f} is wanted. "
        f"`{load['budget']}`, {load['at_once']} at once, {load['requests']} requests a round; ratios are of rounds "
        f"(median, least and most), and the seconds medians of a request's. Not as asked: {short}.",
        "",
        *table(
            [
                "way",
                "processes x threads",
                "Mayfly, a second",
                "naive, a second",
                "ratio",
                "seconds",
            ],
            rows,
        ),
    ]
