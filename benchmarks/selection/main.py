"""Selection: SIFT against activeft and nearest neighbours, and the cost of corpora by size.

Three parts. The picks and the speed of activeft's exact path, the library of the paper's authors
(`against_activeft.py`). The time that SIFT adds to nearest neighbours alone, with embedding and
search (paper, figure 4). The cost of an index over N sequences (`growth.py`). Embeddings of
candidates and corpora are synthetic, which does not change the times. Every part runs in processes
of its own: the first two with one thread, growth with one per core.

activeft is not a dependency. `make bench-selection` installs it into a folder of its own; by hand:

    pip install --no-deps --target .cache/activeft activeft==0.1.1
    PYTHONPATH=.cache/activeft python -m benchmarks.selection.main [--json]
    [--out benchmarks/results/selection.json]

Shapes: N sequences, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.processes import in_fresh_process
from benchmarks.harness.provenance import provenance
from benchmarks.report.selection import format_number, growth_rows, without_bounds
from benchmarks.selection.against_activeft import compare_picks, compare_speed_by_candidates
from benchmarks.selection.growth import (
    REGULARISATION,
    STEPS,
    draw_embeddings,
    grow,
    read_store,
)
from selection.corpus.index.faiss_index import Index
from selection.embedding import Prompt, load_embedder
from selection.strategies.sift import irreducible, sift

# Few, so that the time of search does not hide that of SIFT.
CORPUS_SEQUENCES = 10_000
REPEATS = 100
# 124 tokens of all-MiniLM-L6-v2.
PROMPT = """\
# statistics of sensor readings
def moving_average(values, window):
    \"\"\"Average of each `window` consecutive values; the first ones are averages of fewer.\"\"\"
    if window < 1:
        raise ValueError(f"the window must hold at least one value, got {window}")
    total, averages = 0.0, []
    for position, value in enumerate(values):
        total += value
        if position >= window:
            total -= values[position - window]
        averages.append(total / min(position + 1, window))
    return averages
"""


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--problems",
        type=int,
        default=1000,
        help="problems for SIFT and activeft (default: %(default)s)",
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],
        help="corpus sizes, in sequences (default: 10000 100000 1000000)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=120,
        help="time limit of one selection by activeft, in seconds (default: %(default)g)",
    )
    parser.add_argument("--plot", type=Path, help="SVG file for a plot of SIFT's overhead")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    if importlib.util.find_spec("activeft") is None:
        parser.error(
            "activeft is missing: run `make bench-selection`, or "
            "`pip install --no-deps --target .cache/activeft activeft==0.1.1` and put that folder "
            "on PYTHONPATH"
        )

    threads = os.cpu_count() or 1
    progress(f"activeft: {options.problems} problems")
    identical = in_fresh_process(1, compare_picks, options.problems)
    progress("activeft: time")
    speeds = in_fresh_process(1, compare_speed_by_candidates, options.patience)
    progress("nearest neighbours")
    overheads = in_fresh_process(1, overhead, (50, 200, 1000))
    progress("growth")
    growth = grow(options.sizes, threads)
    embed = next(iter(overheads.values()))["embed_milliseconds"]
    result = provenance()
    result["versions"]["activeft"] = importlib.metadata.version("activeft")
    result |= {
        "threads": {"activeft": 1, "overhead": 1, "growth": threads},
        "speedup_vs_activeft": {
            k: without_bounds(row.get("retriever_ratio")) for k, row in speeds.items()
        },
        "speedup_vs_activeft_greedy": {
            k: without_bounds(row.get("greedy_ratio")) for k, row in speeds.items()
        },
        "identical_picks": identical["up_to_ties"],
        "identical_picks_strictly": identical["strictly"],
        "overhead_vs_nn": {k: row["ratio"] for k, row in overheads.items()},
        "growth": {
            size: row | {"select_with_embedding_milliseconds": row["select_milliseconds"] + embed}
            for size, row in growth.items()
        },
        "store_read_seconds": {"100000": in_fresh_process(threads, read_store)},
        "problems": options.problems,
        "races": speeds,
        "overhead": overheads,
    }
    progress("")
    show(result, console)
    if options.plot:
        options.plot.write_text(bars(result["overhead_vs_nn"]))
    last_line = {key: value for key, value in result.items() if key not in ("races", "overhead")}
    write_result(options, result, last_line)


def overhead(candidates: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """By K, the time that SIFT adds to embedding a prompt and searching for its K nearest."""
    embedder = load_embedder()
    vectors_ND, _ = draw_embeddings(CORPUS_SEQUENCES, 0)
    index = Index.build(np.arange(CORPUS_SEQUENCES), vectors_ND)

    def measure_once(k: int) -> list[float]:
        """Milliseconds until the end of embedding, search, SIFT and sigma_infinity."""
        marks = [time.perf_counter()]
        targets_TD = embedder.embed(embedder.windows(Prompt(PROMPT)))
        marks.append(time.perf_counter())
        _, candidates_KD, _ = index.nearest(targets_TD, k)
        marks.append(time.perf_counter())
        sift(candidates_KD, targets_TD, steps=STEPS, regularisation=REGULARISATION)
        marks.append(time.perf_counter())
        irreducible(candidates_KD, targets_TD)
        marks.append(time.perf_counter())
        return [1e3 * (mark - marks[0]) for mark in marks[1:]]

    result = {}
    for k in candidates:
        rows = [measure_once(k) for _ in range(REPEATS + 5)][5:]
        embed, nn, with_sift, with_irreducible = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        result[str(k)] = {
            "embed_milliseconds": embed,
            "nn_milliseconds": nn,
            "sift_milliseconds": with_sift,
            "sift_and_irreducible_milliseconds": with_irreducible,
            "ratio": with_sift / nn,
            "ratio_with_irreducible": with_irreducible / nn,
        }
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    console.print(
        f"the same picks as activeft on {100 * result['identical_picks']:.1f} % of "
        f"{result['problems']} problems ({100 * result['identical_picks_strictly']:.1f} % if ties "
        "count as different)",
        highlight=False,
    )
    table = Table(
        "K",
        "Mayfly, ms",
        "activeft: greedy, ms",
        "Retriever, ms",
        "speedups",
        box=None,
        pad_edge=False,
    )
    for k, row in result["races"].items():
        ratios = ", ".join(
            format_number(without_bounds(row.get(f"{method}_ratio")), 0)
            for method in ("greedy", "retriever")
        )
        times = (
            format_number(row.get(f"{method}_milliseconds"))
            for method in ("mayfly", "greedy", "retriever")
        )
        table.add_row(k, *times, ratios)
    console.print(table)
    table = Table(
        "K", "NN, ms", "with SIFT, ms", "ratio", "and sigma_infinity", box=None, pad_edge=False
    )
    for k, row in result["overhead"].items():
        table.add_row(
            k,
            format_number(row["nn_milliseconds"]),
            format_number(row["sift_milliseconds"]),
            format_number(row["ratio"], 3),
            format_number(row["ratio_with_irreducible"], 3),
        )
    console.print(table)
    table = Table(
        "N", "build, s", "open, s", "disk, MB", "memory, MB", "select, ms", "+ embedding", "recall",
        box=None, pad_edge=False,
    )  # fmt: skip
    for cells in growth_rows(result["growth"]):
        table.add_row(*cells)
    console.print(table)


def bars(ratios: dict[str, float]) -> str:
    """An SVG plot of the time with SIFT over nearest neighbours alone, by K."""
    step, height, top = 120, 160, 1.0 + max(0.06, *(ratio - 1.0 for ratio in ratios.values()))
    width, baseline = step * len(ratios), height + 45
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width + 60} {height + 70}" font-family="sans-serif" font-size="13">',
        '<text x="5" y="20">time with SIFT / with nearest neighbours alone, by K</text>',
    ]
    for number, (k, ratio) in enumerate(ratios.items()):
        x, length = 60 + step * number, height * (ratio - 1.0) / (top - 1.0)
        y, middle = baseline - length, f'x="{x + 25}" text-anchor="middle"'
        parts += [
            f'<rect x="{x}" y="{y:.1f}" width="50" height="{length:.1f}" fill="#b22"/>',
            f'<text {middle} y="{y - 5:.1f}">{ratio:.3f}</text>',
            f'<text {middle} y="{height + 62}">{k}</text>',
        ]
    parts.append(f'<path d="M25 {baseline} H{width + 40}" stroke="black"/>')
    parts.append(f'<text x="5" y="{height + 49}">1</text></svg>\n')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
