"""Calibrate: choose learning rate, rank, lambda' and alpha on packages that no benchmark reports.

One axis after another, from the defaults: each setting adapts to every passage with 50 SIFT steps, and the
lowest mean per cent of base wins. Then alpha is read off the winner's curves: how many steps ADAPTIVE SIFT would
take, and how much of the gain it would keep. It prints what it finds and changes nothing.

    python benchmarks/calibrate.py [--per-package 6] [--json] [--out benchmarks/results/calibrate.json]
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from adapters import Trainer, TrainerConfig
from benchmarks.passages import (
    Passage,
    PassageSet,
    circumstances,
    curve,
    each,
    interval,
    make_set,
    open_scorer,
    open_selector,
    package_documents,
    package_versions,
)
from selection.embedding import Prompt
from selection.selector import SelectorConfig
from selection.sift import has_stalled
from serving.config import bundled_model

PACKAGES = (
    "typer",
    "hypothesis",
    "huggingface_hub",
    "openai",
    "sentence_transformers",
    "dns",
    "mcp",
    "mpmath",
    "sentry_sdk",
    "opencensus",
    "compressed_tensors",
    "virtualenv",
)
STEPS = 50
AXES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("learning_rate", (1e-3, 2e-3, 3e-3, 5e-3)),
    ("regularisation", (0.03, 0.1, 0.3, 1.0)),
    ("rank", (8, 16, 32)),
)
ALPHAS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15)


@dataclass(frozen=True)
class Setting:
    """One point of the search; LoRA's own alpha is the rank, so that its scale is 1."""

    regularisation: float
    learning_rate: float
    rank: int


def main() -> None:
    """Search, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-package", type=int, default=6, help="held-out passages of each package")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="installed packages, by import name")
    parser.add_argument("--axis", choices=sorted({axis for axis, _ in AXES}), help="search along this axis only")
    parser.add_argument("--model", default=bundled_model(), help="base model, hub id or folder")
    parser.add_argument("--embedder", default=SelectorConfig.embedder)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, help="write the full result here")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    selector = open_selector(1.0, options.embedder, options.model)
    groups = {package: package_documents(package) for package in options.packages}
    ground = make_set("calibrate", groups, options.per_package, options.model, selector)
    console.print(f"{len(ground.passages)} passages, corpus of {ground.sequences} sequences", highlight=False)

    best = Setting(SelectorConfig.regularisation, 3e-3, TrainerConfig.rank)
    tried: dict[Setting, list[dict[str, Any]]] = {}
    for axis, values in AXES:
        if options.axis not in (None, axis):
            continue
        for value in values:
            setting = replace(best, **{axis: type(getattr(best, axis))(value)})
            if setting not in tried:
                tried[setting] = adapt(setting, ground, options.embedder, options.model)
                console.print(f"{setting}: {_percent(tried[setting]):.2f} % of base", highlight=False)
        best = min(tried, key=lambda s: _percent(tried[s]))
    stops = [stopping(tried[best], alpha) for alpha in ALPHAS]
    for stop in stops:
        console.print(
            "alpha {alpha}: {steps:.1f} steps, {percent_of_base:.2f} % of base, {gain_share:.2f} of the gain".format(
                **stop
            )
        )
    result = {
        **circumstances(),
        "packages": package_versions(options.packages),
        "passages": len(ground.passages),
        "best": asdict(best),
        "tried": [
            {**asdict(setting), "percent_of_base": interval([100 * r["curve"][STEPS] / r["curve"][0] for r in rows])}
            for setting, rows in tried.items()
        ],
        "alpha": stops,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


def adapt(setting: Setting, ground: PassageSet, embedder: str, model: str) -> list[dict[str, Any]]:
    """Every passage's curve, step by step at a few points, and its uncertainties."""
    selector = open_selector(setting.regularisation, embedder, model)
    trainer = Trainer(
        TrainerConfig(model, rank=setting.rank, scale_numerator=setting.rank, learning_rate=setting.learning_rate)
    )
    scorer, selecting = open_scorer(trainer.config), threading.Lock()
    at = [0, *range(2, STEPS + 1, 4)]

    def one(passage: Passage) -> dict[str, Any]:
        with selecting:
            selection = selector.select([Prompt(passage.prefix)], ground.corpus, steps=STEPS)
        return {"curve": curve(trainer, scorer, selection, passage, at), "sigma": selection.uncertainty}

    return each(ground.passages, str(setting), one)


def stopping(rows: Sequence[dict[str, Any]], alpha: float) -> dict[str, float]:
    """What ADAPTIVE SIFT with this alpha would have taken and kept, to the nearest measured step."""
    steps, kept, full = [], [], []
    for row in rows:
        n = next((n for n in range(STEPS) if has_stalled(row["sigma"][n], n, alpha)), STEPS)
        nearest = min((s for s in row["curve"] if s > 0), key=lambda s: abs(s - n))
        steps.append(n)
        kept.append(100 * row["curve"][nearest] / row["curve"][0])
        full.append(100 * row["curve"][STEPS] / row["curve"][0])
    mean, mean_full = sum(kept) / len(kept), sum(full) / len(full)
    return {
        "alpha": alpha,
        "steps": sum(steps) / len(steps),
        "percent_of_base": mean,
        "gain_share": (100 - mean) / (100 - mean_full),
    }


def _percent(rows: Sequence[dict[str, Any]]) -> float:
    return interval([100 * row["curve"][STEPS] / row["curve"][0] for row in rows])[0]


if __name__ == "__main__":
    main()
