"""Quality: bits per byte by domain, strategy, steps, seconds and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import Plots, Result, interval_cell, table
from benchmarks.report.quality_diagnostics import diagnostics, settings

COLOURS = {
    "SIFT": "#c0392b",
    "NN": "#222222",
    "HullFT": "#2471a3",
    "random": "#999999",
    "NN-F": "#b9770e",
    "US": "#1e8449",
}


def quality(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """Everything that the quality benchmark measured."""
    result = results["quality"]
    names = list(result["percent_of_base"])
    by_domain, correlation = result["by_domain"], result["correlation"]

    def steps(axes: Any) -> None:
        for name, points in result["by_steps"].items():
            steps_taken = [0, *map(int, points)]
            axes.plot(
                steps_taken,
                [100, *(interval[0] for interval in points.values())],
                label=name,
                color=COLOURS.get(name),
            )
            if name in ("SIFT", "NN"):
                low, high = (
                    [100, *(interval[side] for interval in points.values())] for side in (1, 2)
                )
                axes.fill_between(
                    steps_taken, low, high, color=COLOURS[name], alpha=0.12, linewidth=0
                )
        axes.set(xlabel="steps", ylabel="bits per byte, % of base")
        axes.legend()

    def seconds(axes: Any) -> None:
        for name, points in result["at_equal_seconds"].items():
            axes.plot(
                [float(s) for s in points],
                [t[0] for t in points.values()],
                label=name,
                color=COLOURS.get(name),
            )
        axes.set(
            xscale="log",
            xlabel="seconds of selection and training",
            ylabel="bits per byte, % of base",
        )
        axes.legend()

    def density(axes: Any) -> None:
        points_of_all = [
            (point["sigma"][n], bits)
            for point in result["points"]
            if "sigma" in point
            for n, bits in point["bits"].items()
            if n != "0"
        ]
        bins = axes.hexbin(*zip(*points_of_all, strict=True), gridsize=30, cmap="Reds", mincnt=1)
        axes.figure.colorbar(bins, label="passages and steps")
        axes.set(xlabel="sigma_n", ylabel="bits per byte after n steps")

    rows = [
        [domain, str(domain_result["passages"]), f"{domain_result['base_bits_per_byte'][0]:.2f}"]
        + [f"{domain_result['percent_of_base'][name][0]:.1f}" for name in names]
        for domain, domain_result in by_domain.items()
    ]
    rows.append(
        ["**all**", str(result["passages"]), f"{result['base_bits_per_byte'][0]:.2f}"]
        + [interval_cell(result["percent_of_base"][name]) for name in names]
    )
    return [
        f"{result['passages']} held-out passages of {result['documents']} documents, a corpus of "
        f"{result['corpus_sequences']} sequences, model {result['model']}. Bits per byte of the "
        "suffix "
        "in % of those of the base model, after 50 sequences (90 % bootstrap intervals over "
        "documents); lower is better.",
        "",
        *table(["domain", "passages", "base, bits per byte", *names], rows),
        f"SIFT minus nearest neighbours: **{interval_cell(result['sift_minus_nn'])} points**.",
        "",
        plots.draw("steps", "Per cent of base against steps, by strategy", steps),
        "",
        "At equal wall-clock, each request alone (median seconds of all 50: "
        + ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
        + "):",
        "",
        plots.draw("seconds", "Per cent of base against seconds, by strategy", seconds),
        "",
        f"sigma_n and bits per byte after n steps correlate at {correlation['sigma']:.2f} (paper: "
        "about "
        "0.4), sigma_n times the base model's bits per byte at "
        f"{correlation['sigma_times_base']:.2f} "
        f"(the latter alone: {correlation['base']:.2f}).",
        "",
        plots.draw("density", "Density of sigma_n and bits per byte", density),
        "",
        *diagnostics(result, plots),
        *settings(result, plots),
    ]
