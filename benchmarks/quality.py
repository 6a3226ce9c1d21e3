"""Quality: bits per byte of held-out text, base model against adaptation, SIFT against nearest neighbours.

For every passage its prefix is the prompt, the suffix is scored. Data is chosen by each strategy from the same
corpus, the same trainer takes the same number of steps, and the suffix is scored after each of STEPS steps, and
where the server's default `auto` budget stops. Selector and trainer are the server's own; the scoring runs in the
trainer's model in float32, which a test holds to vLLM's log-probabilities. All settings are the server's defaults,
which `benchmarks/calibrate.py` chose on other packages.

    python benchmarks/quality.py [--per-package 15] [--per-file 2] [--json] [--out benchmarks/results/quality.json]
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters import Trainer, TrainerConfig
from benchmarks.passages import (
    Passage,
    circumstances,
    curve,
    each,
    interval,
    make_set,
    open_scorer,
    open_selector,
    package_versions,
)
from selection.embedding import Prompt
from selection.selector import SelectorConfig
from serving.config import AUTO as DEFAULT_AUTO
from serving.config import bundled_model

# The first four were reported first; the others were then drawn by lot from twenty installed packages that neither the
# bundled model nor the calibration had seen, before anything was measured on them.
PACKAGES = ("networkx", "peft", "fastapi", "starlette", "opentelemetry", "pyarrow", "anthropic", "mistral_common")
STEPS = (0, 1, 2, 5, 10, 20, 35, 50)
AUTO = "auto"


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-package", type=int, default=15, help="held-out files of each package")
    parser.add_argument("--per-file", type=int, default=2, help="passages of each, where it is long enough")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="installed packages, by import name")
    parser.add_argument("--model", default=bundled_model(), help="base model, hub id or folder")
    parser.add_argument("--embedder", default=SelectorConfig.embedder)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, help="write the full result here")
    options = parser.parse_args()
    console = Console(stderr=options.json)

    auto = DEFAULT_AUTO
    selector = open_selector(SelectorConfig.regularisation, options.embedder, options.model)
    trainer = Trainer(TrainerConfig(options.model))
    scorer = open_scorer(trainer.config)
    selecting = threading.Lock()
    ground = make_set(
        "quality", options.packages, options.per_package, options.model, selector, per_file=options.per_file
    )
    limit = max(STEPS)

    def measure(passage: Passage) -> dict[str, Any]:
        row: dict[str, Any] = {"package": passage.package, "name": passage.name, "start": passage.start}
        prompt = Prompt(passage.prefix)
        for strategy in ("nn", "sift"):
            with selecting:
                selection = selector.select([prompt], ground.corpus, steps=limit, strategy=strategy)
                stopped = selector.select([prompt], ground.corpus, steps=auto.steps, alpha=auto.alpha)
            at = set(STEPS)
            if strategy == "sift":
                row["auto_steps"] = len(stopped.ids)
                row["sigma"] = selection.uncertainty
                at.add(row["auto_steps"])
            points = curve(trainer, scorer, selection, passage, sorted(at))
            row[strategy] = {steps: points[steps] for steps in STEPS}
            if strategy == "sift":
                row[AUTO] = points[row["auto_steps"]]
        return row

    rows = each(ground.passages, "adapting", measure)
    result = {
        **circumstances(),
        "model": Path(options.model).name,
        "packages": package_versions(options.packages),
        "passages": len(rows),
        "files": len({row["name"] for row in rows}),
        "corpus_sequences": ground.sequences,
        "settings": {
            "rank": trainer.config.rank,
            "precision": trainer.base.precision,
            "learning_rate": trainer.learning_rate,
            "regularisation": selector.config.regularisation,
            "candidates": selector.config.candidates,
            "embedder": selector.config.embedder,
            "auto_alpha": auto.alpha,
            "auto_steps_limit": auto.steps,
        },
        **summary(rows),
        "by_package": {
            package: summary([row for row in rows if row["package"] == package]) for package in options.packages
        },
        "rows": rows,
    }
    show(result, console)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps({key: value for key, value in result.items() if key not in ("rows", "by_package")}))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with 90 % bootstrap intervals over the files: bits per byte, per cent of base, SIFT minus NN."""
    files = [row["name"] for row in rows]
    base = [row["sift"][0] for row in rows]
    last = STEPS[-1]

    def mean(values: Sequence[float]) -> tuple[float, float, float]:
        return interval(values, files)

    def percent(values: Sequence[float]) -> tuple[float, float, float]:
        return mean([100 * value / b for value, b in zip(values, base, strict=True)])

    return {
        "base_bits_per_byte": mean(base),
        "nn_bits_per_byte": mean([row["nn"][last] for row in rows]),
        "sift_bits_per_byte": mean([row["sift"][last] for row in rows]),
        "auto_bits_per_byte": mean([row[AUTO] for row in rows]),
        "auto_steps": mean([row["auto_steps"] for row in rows]),
        "percent_of_base": {
            strategy: {str(steps): percent([row[strategy][steps] for row in rows]) for steps in STEPS[1:]}
            for strategy in ("nn", "sift")
        }
        | {AUTO: percent([row[AUTO] for row in rows])},
        "sift_minus_nn_percent_points": {
            str(steps): percent([row["sift"][steps] - row["nn"][steps] for row in rows]) for steps in STEPS[1:]
        },
        "sift_minus_nn_bits_per_byte": mean([row["sift"][last] - row["nn"][last] for row in rows]),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The table for people."""

    def cell(triple: Sequence[float], form: str = "{:.1f} ({:.1f} to {:.1f})") -> str:
        return form.format(*triple)

    console.print(
        f"{result['passages']} passages of {result['files']} files, corpus of {result['corpus_sequences']} sequences; "
        f"base model {cell(result['base_bits_per_byte'], '{:.3f} ({:.3f} to {:.3f})')} bits per byte",
        highlight=False,
    )
    table = Table("steps", "NN, % of base", "SIFT, % of base", "SIFT minus NN, points", box=None, pad_edge=False)
    for steps in map(str, STEPS[1:]):
        percent = result["percent_of_base"]
        table.add_row(
            steps,
            cell(percent["nn"][steps]),
            cell(percent["sift"][steps]),
            cell(result["sift_minus_nn_percent_points"][steps]),
        )
    table.add_row(f"auto, {result['auto_steps'][0]:.1f}", "", cell(result["percent_of_base"][AUTO]), "")
    console.print(table)
    table = Table("package", "base, bits per byte", "NN, % of base", "SIFT, % of base", box=None, pad_edge=False)
    for package, part in result["by_package"].items():
        table.add_row(
            package,
            cell(part["base_bits_per_byte"], "{:.3f}"),
            *(cell(part["percent_of_base"][strategy][str(STEPS[-1])]) for strategy in ("nn", "sift")),
        )
    console.print(table)
    console.print("in brackets: 90 % bootstrap intervals over files", highlight=False)


if __name__ == "__main__":
    main()
