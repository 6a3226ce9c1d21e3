"""Diagnostics of quality: distinct sequences, reliability, compute in proportion, settings."""

from __future__ import annotations

from typing import Any

from benchmarks.report.formatting import Plots, Result, interval_cell, table
from benchmarks.report.stopping import renamed_rules


def diagnostics(result: Result, plots: Plots) -> list[str]:
    """Tables and plots after the paper's figures 6 and 8 (middle, right)."""
    parts_by_distinct = result["by_distinct"]
    reliability_result, in_proportion_result = result["reliability"], result["in_proportion"]

    def reliability(axes: Any) -> None:
        x, y = zip(*reliability_result["points"], strict=True)
        axes.plot(x, y, "o", color="#222222")
        axes.plot(
            x,
            [reliability_result["intercept"] + reliability_result["slope"] * each for each in x],
            color="#c0392b",
        )
        axes.set(
            xlabel="sigma_n times the base model's bits per byte",
            ylabel="bits per byte after n steps",
        )

    def in_proportion(axes: Any) -> None:
        for name, points in renamed_rules(in_proportion_result).items():
            axes.plot(
                [int(n) for n in points],
                [percent for _, percent in points.values()],
                label=name,
                marker=".",
            )
        axes.set(xlabel="steps", ylabel="bits per byte, % of base")
        axes.legend()

    return [
        "### Where SIFT differs",
        "",
        "Passages by number of distinct sequences that SIFT selected in 50 steps (paper, figure 6: "
        "ahead of nearest neighbours where these are few).",
        "",
        *table(
            ["distinct sequences (median)", "passages", "SIFT minus NN"],
            [
                [
                    "{:.0f} to {:.0f} ({:.0f})".format(
                        part["distinct"][0], part["distinct"][2], part["distinct"][1]
                    ),
                    str(part["passages"]),
                    interval_cell(part["minus_nn"]),
                ]
                for part in parts_by_distinct
            ],
        ),
        "### What sigma predicts",
        "",
        "Means over tenths of all passages and steps, and the line through all (paper, figure 8, "
        "middle):",
        "",
        plots.draw(
            "reliability",
            "Bits per byte after n steps against sigma_n times the base model's",
            reliability,
        ),
        "",
        "Per cent of base of the passages that a stopping rule still trains, each rule at a third "
        "of "
        "the steps (paper, figure 8, right):",
        "",
        plots.draw(
            "proportion",
            "Per cent of base by steps, of passages that are still trained",
            in_proportion,
        ),
        "",
    ]


def settings(result: Result, plots: Plots) -> list[str]:
    """Other settings, on a few passages of each domain (paper, figures 5, 9-11, 13-15 and 18)."""
    axes_of = result["axes"]
    if not axes_of:
        return []
    passages = result["size"]["axis_measured"] * len(result["size"]["domains"])

    def curves(*panels: Any) -> None:
        for axes, (axis, variants) in zip(panels, axes_of.items(), strict=True):
            for name, variant_result in variants.items():
                points = variant_result["by_steps"]
                axes.plot(
                    [0, *map(int, points)],
                    [100, *(triple[0] for triple in points.values())],
                    label=name,
                )
            axes.set(title=axis)
            axes.legend(fontsize=6)

    same_setting_rows = [
        [setting.lstrip(", "), interval_cell(difference)]
        for setting, difference in result["sift_minus_nn_alike"].items()
    ]
    lines = [
        "### SIFT and nearest neighbours under the same setting",
        "",
        *table(["both with", "SIFT minus NN"], same_setting_rows),
        "### Settings",
        "",
        f"On {passages} of these passages, compared with SIFT and nearest neighbours with the "
        "defaults.",
        "",
        plots.draw(
            "settings", "Per cent of base against steps, by setting", curves, panels=len(axes_of)
        ),
        "",
    ]
    for axis, variants in axes_of.items():
        rows = [
            [
                name,
                *(
                    interval_cell(variant_result[key])
                    for key in ("percent_of_base", "minus_sift", "minus_nn")
                ),
            ]
            for name, variant_result in variants.items()
        ]
        lines += table([axis, "% of base", "minus SIFT", "minus NN"], rows)
    return lines
