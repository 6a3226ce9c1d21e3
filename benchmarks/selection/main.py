"""Selection: SIFT against its authors' library and against nearest neighbours, and what corpora
cost as they grow.

Three questions. Does SIFT pick what activeft's exact path picks, and how much faster (`exact`)? How
much longer does a prompt take with SIFT than with nearest neighbours alone, embedding and search
included (paper, figure 4)? What does an index over N sequences cost (`growth`)? Embeddings of
candidates and corpora are synthetic; the times do not depend on what they are. Every part runs in
processes of its own: the first two on one thread, growth on all.

activeft is not a dependency. `make bench-selection` puts it into a folder of its own; by hand:

    pip install --no-deps --target .cache/activeft activeft==0.1.1
    PYTHONPATH=.cache/activeft python -m benchmarks.selection.main [--json] [--out
    benchmarks/results/selection.json]

Shapes: N sequences, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import provenance
from benchmarks.selection.against_activeft import identical, races
from benchmarks.selection.growth import REGULARISATION, STEPS, alone, draw, grow, read_store
from selection.corpus.faiss_index import Index
from selection.embedding import Prompt, load_embedder
from selection.strategies.sift import irreducible, sift

CORPUS = 10_000  # sequences that the overhead is measured over: few, so that search hides nothing
REPEATS = 100
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
"""  # 124 tokens of all-MiniLM-L6-v2


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--problems", type=int, default=1000, help="how many are given to SIFT and to activeft"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="sequences"
    )
    parser.add_argument(
        "--patience", type=float, default=120, help="seconds that activeft may take for one choice"
    )
    parser.add_argument(
        "--plot", type=Path, help="draw the overhead over nearest neighbours here, as SVG"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
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
    same = alone(1, identical, options.problems)
    progress("activeft: time")
    raced = alone(1, races, options.patience)
    progress("nearest neighbours")
    over = alone(1, overhead, (50, 200, 1000))
    progress("growth")
    growth = grow(options.sizes, threads)
    embed = next(iter(over.values()))["embed_milliseconds"]
    result = provenance()
    result["versions"]["activeft"] = importlib.metadata.version("activeft")
    result |= {
        "threads": {"activeft": 1, "overhead": 1, "growth": threads},
        "speedup_vs_activeft": {k: _first(row.get("retriever_ratio")) for k, row in raced.items()},
        "speedup_vs_activeft_greedy": {
            k: _first(row.get("greedy_ratio")) for k, row in raced.items()
        },
        "identical_picks": same["up_to_ties"],
        "identical_picks_strictly": same["strictly"],
        "overhead_vs_nn": {k: row["ratio"] for k, row in over.items()},
        "growth": {
            size: row | {"select_with_embedding_milliseconds": row["select_milliseconds"] + embed}
            for size, row in growth.items()
        },
        "store_read_seconds": {"100000": alone(threads, read_store)},
        "problems": options.problems,
        "races": raced,
        "overhead": over,
    }
    progress("")
    show(result, console)
    if options.plot:
        options.plot.write_text(bars(result["overhead_vs_nn"]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(
            json.dumps(
                {key: value for key, value in result.items() if key not in ("races", "overhead")}
            )
        )


def overhead(candidates: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """By K, what SIFT adds to embedding a prompt and searching for its K nearest; each repetition
    does all in a row.
    """
    embedder = load_embedder()
    vectors_ND, _ = draw(CORPUS, 0)
    index = Index.build(np.arange(CORPUS), vectors_ND)

    def once(k: int) -> list[float]:
        """Milliseconds until the prompt is embedded, NN has answered, SIFT has, and sigma_infinity
        is there.
        """
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
        rows = [once(k) for _ in range(REPEATS + 5)][5:]
        embed, nn, with_sift, with_both = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        result[str(k)] = {
            "embed_milliseconds": embed,
            "nn_milliseconds": nn,
            "sift_milliseconds": with_sift,
            "sift_and_irreducible_milliseconds": with_both,
            "ratio": with_sift / nn,
            "ratio_with_irreducible": with_both / nn,
        }
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """The tables for people."""
    console.print(
        f"the same picks as activeft on {100 * result['identical_picks']:.1f} % of "
        f"{result['problems']} problems "
        f"({100 * result['identical_picks_strictly']:.1f} % without counting ties)",
        highlight=False,
    )
    table = Table(
        "K",
        "Mayfly, ms",
        "activeft: greedy, ms",
        "Retriever, ms",
        "times as fast",
        box=None,
        pad_edge=False,
    )
    for k, row in result["races"].items():
        ratios = ", ".join(
            _number(_first(row.get(f"{way}_ratio")), 0) for way in ("greedy", "retriever")
        )
        times = (
            _number(row.get(f"{who}_milliseconds")) for who in ("mayfly", "greedy", "retriever")
        )
        table.add_row(k, *times, ratios)
    console.print(table)
    table = Table(
        "K", "NN, ms", "with SIFT, ms", "ratio", "and sigma_infinity", box=None, pad_edge=False
    )
    for k, row in result["overhead"].items():
        table.add_row(
            k,
            _number(row["nn_milliseconds"]),
            _number(row["sift_milliseconds"]),
            _number(row["ratio"], 3),
            _number(row["ratio_with_irreducible"], 3),
        )
    console.print(table)
    table = Table(
        "N", "build, s", "open, s", "disk, MB", "memory, MB", "select, ms", "+ embedding", "recall",
        box=None, pad_edge=False,
    )  # fmt: skip
    for size, row in result["growth"].items():
        table.add_row(
            f"{int(size):,}",
            _number(row["build_seconds"]),
            _number(row["open_seconds"], 2),
            _number(row["bytes"] / 1e6, 0),
            _number(row["resident_bytes"] / 1e6, 0),
            _number(row["select_milliseconds"]),
            _number(row["select_with_embedding_milliseconds"]),
            _number(row["recall"], 3),
        )
    console.print(table)


def bars(ratios: dict[str, float]) -> str:
    """The overhead over nearest neighbours by K, as an SVG drawing."""
    step, height, top = 120, 160, 1.0 + max(0.06, *(ratio - 1.0 for ratio in ratios.values()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {step * len(ratios) + 60} {height + 70}" '
        'font-family="sans-serif" font-size="13">',
        '<text x="5" y="20">time with SIFT / with nearest neighbours alone, by K</text>',
    ]
    for number, (k, ratio) in enumerate(ratios.items()):
        x, length = 60 + step * number, height * (ratio - 1.0) / (top - 1.0)
        parts.append(
            f'<rect x="{x}" y="{height + 45 - length:.1f}" width="50" height="{length:.1f}" fill="#b22"/>'
        )
        parts.append(
            f'<text x="{x + 25}" y="{height + 40 - length:.1f}" text-anchor="middle">{ratio:.3f}</text>'
        )
        parts.append(f'<text x="{x + 25}" y="{height + 62}" text-anchor="middle">{k}</text>')
    parts.append(f'<path d="M25 {height + 45} H{step * len(ratios) + 40}" stroke="black"/>')
    parts.append(f'<text x="5" y="{height + 49}">1</text></svg>\n')
    return "\n".join(parts)


def _first(triple: tuple[float, float, float] | None) -> float | None:
    return None if triple is None else triple[0]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    main()
