"""Training: the trainer against a plain PEFT loop, against the machine, and under load.

Five questions, in parts that can be asked for alone (`--only`). How many times the training tokens
a second of a plain loop does the trainer reach, by how many requests train at once (`peft`)? What
share of the machine's matrix-product rate is that, and where does the rest go (`gemm`)? How long
does a request take in company (`latency`)? How late is it, where it has a deadline (`deadlines`)?
What do thousands in a row leave behind (`memory`)? Every part runs in a process of its own, and
every model of the first two. On a GPU the same runs there, in bfloat16, with a model of a billion
parameters more.

    make bench-training
    python -m benchmarks.training.main [--json] [--out benchmarks/results/training.json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import provenance
from benchmarks.selection.growth import alone
from benchmarks.training.matmul_rate import KINDS, gemm
from benchmarks.training.peft_loop import ON_A_GPU, QUICK, STEPS, SUBJECTS, race
from benchmarks.training.under_load import deadlines, endurance, latency

PARTS = ("peft", "gemm", "latency", "deadlines", "memory")
_COLOURS = ("#b22", "#26b", "#282", "#855")
# Threads wait as the server lets them; libraries do not write among the results.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "KINETO_LOG_LEVEL": "99",
}


def main() -> None:
    """Measure, print tables, draw, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: does it work, rather than how well"
    )
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--requests", type=int, default=200, help="with deadlines")
    parser.add_argument("--adaptations", type=int, default=2000, help="in a row")
    parser.add_argument(
        "--plot", type=Path, help="draw tokens a second against requests at once here, as SVG"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    result = provenance()
    result["versions"]["peft"] = importlib.metadata.version("peft")
    result |= {
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for part in PARTS:
        if part in options.only:
            result |= measure(part, options)
    progress("")
    show(result, console)
    if options.plot and "peft" in result:
        options.plot.write_text(curves(result["peft"]))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """One part's results: what is asked of it in a line, and everything under its name."""
    subjects = (
        QUICK if options.quick else SUBJECTS + (ON_A_GPU if torch.cuda.is_available() else ())
    )
    threads, quick = options.threads, options.quick
    progress(part)
    if part == "deadlines":
        outcome = alone(
            threads, deadlines, min(options.requests, 40) if quick else options.requests
        )
        return {"deadline_overrun_steps": outcome["largest_overrun_steps"], part: outcome}
    if part == "memory":
        outcome = alone(
            threads, endurance, min(options.adaptations, 100) if quick else options.adaptations
        )
        return {"rss_growth": outcome["rss_growth"], part: outcome}
    by_model = {}
    if part == "latency":
        bundled = subjects[0]
        by_model[bundled.name] = alone(
            threads, latency, bundled, (1, 4, 8, 16), *((8, 10) if quick else (16, STEPS))
        )
        for subject in ON_A_GPU if torch.cuda.is_available() else ():
            by_model[subject.name] = alone(threads, latency, subject, (1, 8), 16, STEPS)
        return {part: by_model}
    for subject in subjects:
        progress(f"{part}: {subject.name}")
        by_model[subject.name] = alone(threads, race if part == "peft" else gemm, subject)
    chosen = {model: row["trainer"][row["chosen_precision"]] for model, row in by_model.items()}
    if part == "peft":
        speedups = {
            model: {n: cell["speedup"][0] for n, cell in row.items()}
            for model, row in chosen.items()
        }
        return {"speedup_vs_peft": speedups, part: by_model}
    return {
        "gemm_fraction": {model: row["fraction"][0] for model, row in chosen.items()},
        part: by_model,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The tables for people."""
    if "peft" in result:
        console.print(_speeds(result["peft"]))
    if "gemm" in result:
        console.print(_shares(result["gemm"]))
    if "latency" in result:
        table = Table(
            "model", "at once", "p50, s", "p99, s", "of", "tokens/s", box=None, pad_edge=False
        )
        for model, measured in result["latency"].items():
            for clients, row in measured["by_concurrency"].items():
                times = (f"{row[key]:.2f}" for key in ("p50_seconds", "p99_seconds"))
                table.add_row(
                    model, clients, *times, str(row["requests"]), f"{row['tokens_per_second']:,.0f}"
                )
        console.print(table)
    if "deadlines" in result:
        row = result["deadlines"]
        console.print(
            f"{row['with_deadline']} of {row['requests']} requests with a deadline: at most "
            f"{row['largest_overrun_steps']:.2f} steps late (p99 {row['p99_overrun_steps']:.2f}, "
            f"{1e3 * row['largest_overrun_seconds']:.1f} ms at most), {row['with_adapter']} of "
            "all got an adapter",
            highlight=False,
        )
    if "memory" in result:
        row = result["memory"]
        console.print(
            f"{row['adaptations']} adaptations in a row: memory {100 * row['rss_growth']:+.1f} %, "
            f"time of a step {100 * row['step_time_growth']:+.1f} %",
            highlight=False,
        )


def curves(raced: dict[str, Any]) -> str:
    """Training tokens a second by number of requests at once, and (dashed) the plain loop's, as an
    SVG drawing.
    """
    width, height, left, top = 420, 240, 60, 40
    series = {
        model: {
            int(n): cell["tokens_per_second"][0]
            for n, cell in row["trainer"][row["chosen_precision"]].items()
        }
        for model, row in raced.items()
    }
    plain = {model: row["plain_tokens_per_second"][0] for model, row in raced.items()}
    every = [*plain.values(), *(speed for points in series.values() for speed in points.values())]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)) + 1e-9)
    most = max(math.log2(max(n for points in series.values() for n in points)), 1)

    def at(requests: float, speed: float) -> str:
        across, up = math.log2(requests) / most, (math.log10(speed) - low) / (high - low)
        return f"{left + width * across:.1f} {top + height * (1 - up):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 80} {top + height + 45}" '
        'font-family="sans-serif" font-size="13">',
        '<text x="5" y="20">training tokens a second by requests at once (dashed: a plain PEFT loop)</text>',
    ]
    for power in range(low, high + 1):
        x, y = at(1, 10.0**power).split()
        parts.append(f'<path d="M{x} {y} h{width}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>'
        )
    for requests in sorted({n for points in series.values() for n in points}):
        x, _ = at(requests, 10.0**low).split()
        parts.append(
            f'<text x="{x}" y="{top + height + 20}" text-anchor="middle">{requests}</text>'
        )
    for (model, points), colour in zip(series.items(), _COLOURS, strict=False):
        line = " L".join(at(n, speed) for n, speed in points.items())
        flat = f"M{at(1, plain[model])} h{width}"
        x, y = at(*list(points.items())[-1]).split()
        parts.append(f'<path d="M{line}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts.append(f'<path d="{flat}" stroke="{colour}" stroke-dasharray="5 4"/>')
        parts.append(
            f'<text x="{float(x) + 6:.1f}" y="{float(y) + 4:.1f}" fill="{colour}">{model}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _speeds(raced: dict[str, Any]) -> Table:
    table = Table(
        "model", "precision", "at once", "tokens/s", "PEFT loop", "times as fast", "(least, most)",
        box=None, pad_edge=False,
    )  # fmt: skip
    for model, row in raced.items():
        for precision, cells in row["trainer"].items():
            for requests, cell in cells.items():
                ratio, least, most = cell["speedup"]
                speeds = (cell["tokens_per_second"][0], row["plain_tokens_per_second"][0])
                ratios = (f"{ratio:.2f}", f"{least:.2f}, {most:.2f}")
                table.add_row(
                    model, precision, requests, *(f"{speed:,.0f}" for speed in speeds), *ratios
                )
    return table


def _shares(measured: dict[str, Any]) -> Table:
    reference = next(iter(measured.values()))["reference_precision"]
    table = Table(
        "model", "precision", f"of {reference} rate", "of its own", *KINDS, box=None, pad_edge=False
    )
    for model, row in measured.items():
        for precision, cell in row["trainer"].items():
            shares = (cell["fraction"][0], cell["fraction_of_its_own_precision"][0])
            parts = (f"{100 * cell['profile_share'][kind]:.0f} %" for kind in KINDS)
            table.add_row(model, precision, *(f"{share:.2f}" for share in shares), *parts)
    return table


if __name__ == "__main__":
    main()
