"""Training: the trainer against a plain PEFT loop, against the machine, and under load.

Six parts, which `--only` selects. Training tokens per second over those of a plain loop, by number
of concurrent requests (`peft`); share of the machine's matrix-product rate, and a profile of the
rest (`gemm`); where the time of one request's step goes, also on other models than the bundled one
(`profile`); time of a request by concurrency (`latency`); lateness of requests with a deadline
(`deadlines`); growth over thousands of adaptations (`memory`). Every part runs in a process of its
own, and every model of the first three. On a GPU the same runs there, in bfloat16, with a further
model of a billion parameters.

    make bench-training
    python -m benchmarks.training.main [--json] [--out benchmarks/results/training.json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.processes import in_fresh_process
from benchmarks.harness.provenance import ROOT, provenance
from benchmarks.training.matmul_rate import gemm
from benchmarks.training.peft_loop import GPU_SUBJECTS, QUICK_SUBJECTS, STEPS, SUBJECTS, race
from benchmarks.training.step_profile import KINDS, step_profile
from benchmarks.training.under_load import deadlines, endurance, latency

PARTS = ("peft", "gemm", "profile", "latency", "deadlines", "memory")
_COLORS = ("#b22", "#26b", "#282", "#855")
# Threads wait as in the server, and libraries print nothing among the results.
_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "KINETO_LOG_LEVEL": "99",
}


def main() -> None:
    """Measure, print tables, plot, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help=f"parts to run: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the benchmark")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of every process (default: 1)"
    )
    parser.add_argument(
        "--requests", type=int, default=200, help="requests of `deadlines` (default: %(default)s)"
    )
    parser.add_argument(
        "--adaptations",
        type=int,
        default=2000,
        help="adaptations of `memory` (default: %(default)s)",
    )
    parser.add_argument(
        "--profile-models",
        nargs="+",
        type=Path,
        default=[ROOT / "deploy" / "nano"],
        metavar="FOLDER",
        help="models of `profile` (default: the bundled one)",
    )
    parser.add_argument(
        "--plot", type=Path, help="SVG file for a plot of tokens per second by concurrency"
    )
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
    write_result(options, result, result)


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part; its main number, and everything under the part's name."""
    subjects = (
        QUICK_SUBJECTS
        if options.quick
        else SUBJECTS + (GPU_SUBJECTS if torch.cuda.is_available() else ())
    )
    threads, quick = options.threads, options.quick
    progress(part)
    if part == "deadlines":
        outcome = in_fresh_process(
            threads, deadlines, min(options.requests, 40) if quick else options.requests
        )
        return {"deadline_overrun_steps": outcome["largest_overrun_steps"], part: outcome}
    if part == "memory":
        outcome = in_fresh_process(
            threads, endurance, min(options.adaptations, 100) if quick else options.adaptations
        )
        return {"rss_growth": outcome["rss_growth"], part: outcome}
    by_model = {}
    if part == "profile":
        for folder in options.profile_models:
            by_model[folder.name] = in_fresh_process(threads, step_profile, str(folder))
        return {part: by_model}
    if part == "latency":
        bundled = subjects[0]
        by_model[bundled.name] = in_fresh_process(
            threads, latency, bundled, (1, 4, 8, 16), *((8, 10) if quick else (16, STEPS))
        )
        for subject in GPU_SUBJECTS if torch.cuda.is_available() else ():
            by_model[subject.name] = in_fresh_process(threads, latency, subject, (1, 8), 16, STEPS)
        return {part: by_model}
    for subject in subjects:
        progress(f"{part}: {subject.name}")
        by_model[subject.name] = in_fresh_process(
            threads, race if part == "peft" else gemm, subject
        )
    default_rows = {
        model: row["trainer"][row["chosen_precision"]] for model, row in by_model.items()
    }
    if part == "peft":
        speedups = {
            model: {n: cell["speedup"][0] for n, cell in row.items()}
            for model, row in default_rows.items()
        }
        return {"speedup_vs_peft": speedups, part: by_model}
    return {
        "gemm_fraction": {model: row["fraction"][0] for model, row in default_rows.items()},
        part: by_model,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    if "peft" in result:
        console.print(_speed_table(result["peft"]))
    if "gemm" in result:
        console.print(_share_table(result["gemm"]))
    if "profile" in result:
        console.print(_profile_table(result["profile"]))
    if "latency" in result:
        table = Table(
            "model", "concurrency", "p50, s", "p99, s", "of", "tokens/s", box=None, pad_edge=False
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
            f"{1e3 * row['largest_overrun_seconds']:.1f} ms at most), "
            f"{row['with_adapter']} of all got an adapter",
            highlight=False,
        )
    if "memory" in result:
        row = result["memory"]
        console.print(
            f"{row['adaptations']} consecutive adaptations: memory "
            f"{100 * row['rss_growth']:+.1f} %, "
            f"time of a step {100 * row['step_time_growth']:+.1f} %",
            highlight=False,
        )


def curves(by_model_result: dict[str, Any]) -> str:
    """An SVG plot of training tokens per second by concurrency; the plain loop's are dashed."""
    width, height, left, top = 420, 240, 60, 40
    series = {
        model: {
            int(n): cell["tokens_per_second"][0]
            for n, cell in row["trainer"][row["chosen_precision"]].items()
        }
        for model, row in by_model_result.items()
    }
    plain = {model: row["plain_tokens_per_second"][0] for model, row in by_model_result.items()}
    speeds = [*plain.values(), *(speed for points in series.values() for speed in points.values())]
    low, high = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(speeds)) + 1e-9)
    log_max = max(math.log2(max(n for points in series.values() for n in points)), 1)

    def position(requests: float, speed: float) -> str:
        across, up = math.log2(requests) / log_max, (math.log10(speed) - low) / (high - low)
        return f"{left + width * across:.1f} {top + height * (1 - up):.1f}"

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {left + width + 80} {top + height + 45}" '
        'font-family="sans-serif" font-size="13">',
        '<text x="5" y="20">training tokens per second by concurrency '
        "(dashed: a plain PEFT loop)</text>",
    ]
    for power in range(low, high + 1):
        x, y = position(1, 10.0**power).split()
        parts.append(f'<path d="M{x} {y} h{width}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>'
        )
    for requests in sorted({n for points in series.values() for n in points}):
        x, _ = position(requests, 10.0**low).split()
        parts.append(
            f'<text x="{x}" y="{top + height + 20}" text-anchor="middle">{requests}</text>'
        )
    for (model, points), color in zip(series.items(), _COLORS, strict=False):
        line = " L".join(position(n, speed) for n, speed in points.items())
        flat = f"M{position(1, plain[model])} h{width}"
        x, y = position(*list(points.items())[-1]).split()
        parts.append(f'<path d="M{line}" stroke="{color}" stroke-width="2" fill="none"/>')
        parts.append(f'<path d="{flat}" stroke="{color}" stroke-dasharray="5 4"/>')
        parts.append(
            f'<text x="{float(x) + 6:.1f}" y="{float(y) + 4:.1f}" fill="{color}">{model}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _speed_table(by_model_result: dict[str, Any]) -> Table:
    table = Table(
        "model", "precision", "concurrency", "tokens/s", "PEFT loop", "speedup", "(least, most)",
        box=None, pad_edge=False,
    )  # fmt: skip
    for model, row in by_model_result.items():
        for precision, cells in row["trainer"].items():
            for requests, cell in cells.items():
                ratio, least, log_max = cell["speedup"]
                speeds = (cell["tokens_per_second"][0], row["plain_tokens_per_second"][0])
                ratios = (f"{ratio:.2f}", f"{least:.2f}, {log_max:.2f}")
                table.add_row(
                    model, precision, requests, *(f"{speed:,.0f}" for speed in speeds), *ratios
                )
    return table


def _share_table(measured: dict[str, Any]) -> Table:
    reference = next(iter(measured.values()))["reference_precision"]
    table = Table(
        "model",
        "precision",
        f"of {reference} rate",
        "of own rate",
        *KINDS,
        box=None,
        pad_edge=False,
    )
    for model, row in measured.items():
        for precision, cell in row["trainer"].items():
            shares = (cell["fraction"][0], cell["fraction_of_its_own_precision"][0])
            parts = (f"{100 * cell['profile_share'][kind]:.0f} %" for kind in KINDS)
            table.add_row(model, precision, *(f"{share:.2f}" for share in shares), *parts)
    return table


def _profile_table(measured: dict[str, Any]) -> Table:
    table = Table("model", "precision", "step, ms", *KINDS, box=None, pad_edge=False)
    for model, row in measured.items():
        values = (row["step_seconds"][0], *(row["part_seconds"][kind] for kind in KINDS))
        table.add_row(model, row["precision"], *(f"{1e3 * value:.1f}" for value in values))
    return table


if __name__ == "__main__":
    main()
