"""What explains the tables of quality: different sequences chosen, reliability, compute in
proportion, settings.
"""

from __future__ import annotations

from typing import Any

from benchmarks.report.formatting import Plots, Result, cell, table


def insight(result: Result, plots: Plots) -> list[str]:
    """After the paper's figures 6 and 8 (middle, right)."""
    parts = result["by_distinct"]
    foretold, proportion = result["reliability"], result["in_proportion"]

    def reliability(axes: Any) -> None:
        x, y = zip(*foretold["points"], strict=True)
        axes.plot(x, y, "o", color="#222222")
        axes.plot(
            x, [foretold["intercept"] + foretold["slope"] * each for each in x], color="#c0392b"
        )
        axes.set(
            xlabel="sigma_n times the base model's bits per byte",
            ylabel="bits per byte after n steps",
        )

    def in_proportion(axes: Any) -> None:
        for name, points in proportion.items():
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
        "Passages by how many different sequences SIFT chose in 50 steps (paper, figure 6: ahead of nearest neighbours "
        "where these are few).",
        "",
        *table(
            ["different sequences (median)", "passages", "SIFT minus NN"],
            [
                [
                    "{:.0f} to {:.0f} ({:.0f})".format(
                        part["distinct"][0], part["distinct"][2], part["distinct"][1]
                    ),
                    str(part["passages"]),
                    cell(part["minus_nn"]),
                ]
                for part in parts
            ],
        ),
        "### What sigma foretells",
        "",
        "Means over tenths of all passages and steps, and the line through all (paper, figure 8, middle):",
        "",
        plots.draw(
            "reliability",
            "Bits per byte after n steps against sigma_n times the base model's",
            reliability,
        ),
        "",
        "Per cent of base of those passages that a rule still lets learn, each rule at a third of the steps (paper, "
        "figure 8, right):",
        "",
        plots.draw(
            "proportion",
            "Per cent of base by steps, of passages that are still learnt for",
            in_proportion,
        ),
        "",
    ]


def settings(result: Result, plots: Plots) -> list[str]:
    """Every other setting, on a few passages of each domain; after figures 5, 9 to 11, 13 to 15 and
    18.
    """
    axes_of = result["axes"]
    if not axes_of:
        return []
    passages = result["size"]["axis_measured"] * len(result["size"]["domains"])

    def curves(*panels: Any) -> None:
        for axes, (axis, variants) in zip(panels, axes_of.items(), strict=True):
            for name, found in variants.items():
                points = found["by_steps"]
                axes.plot(
                    [0, *map(int, points)],
                    [100, *(triple[0] for triple in points.values())],
                    label=name,
                )
            axes.set(title=axis)
            axes.legend(fontsize=6)

    alike = [
        [setting.lstrip(", "), cell(less)]
        for setting, less in result["sift_minus_nn_alike"].items()
    ]
    lines = [
        "### SIFT and nearest neighbours under the same setting",
        "",
        *table(["both with", "SIFT minus NN"], alike),
        "### Settings",
        "",
        f"Of {passages} of these passages; beside SIFT and nearest neighbours with the defaults on the same ones.",
        "",
        plots.draw(
            "settings", "Per cent of base against steps, by setting", curves, panels=len(axes_of)
        ),
        "",
    ]
    for axis, variants in axes_of.items():
        rows = [
            [name, *(cell(found[key]) for key in ("percent_of_base", "minus_sift", "minus_nn"))]
            for name, found in variants.items()
        ]
        lines += table([axis, "% of base", "minus SIFT", "minus NN"], rows)
    return lines
