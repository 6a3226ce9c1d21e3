"""Stopping: what `auto` takes and keeps, beside other rules for when an adaptation should end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import Plots, Result, cell, table


def stopping(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """When to stop."""
    result = results["stopping"]
    auto, passages = result["auto"], result["passages"]

    def rules(axes: Any) -> None:
        for name, points in result["stopping_rules"].items():
            axes.plot(
                [p[1] for p in points],
                [p[2] for p in points],
                label=name,
                linestyle=":" if "future" in name else "-",
            )
        axes.plot([1 / 3], [0.9], "k+", label="wanted")
        axes.set(
            xlabel="share of the steps", ylabel="share of the gain", xlim=(0, 1), ylim=(0, None)
        )
        axes.legend(fontsize=7)

    def row(name: str, each: Mapping[str, Any]) -> list[str]:
        told, third = each["reporting"], each["gain_share_at_a_third"]
        at_a_third = "never" if third is None else f"{third:.2f}"
        if told is None:
            return [name, "never", "", "", "", at_a_third]
        shares = [cell(told[key], 2) for key in ("steps_share", "gain_share")]
        return [name, f"{each['parameter']:.3g}", *shares, f"{told['harmed']:.0%}", at_a_third]

    steps, gain = (
        "never" if each is None else f"{each:.2f}"
        for each in (
            result["steps_share_for_target_knowing"],
            result["gain_share_at_a_third_knowing"],
        )
    )
    bound = ["knowing the future", "", steps, f"{result['target']:.2f}", "", gain]
    return [
        f"`auto` (gain {auto['gain']:g}) takes {auto['steps_share'][0]:.0%} of the steps and keeps "
        f"{auto['gain_share'][0]:.0%} of the gain ({auto['gain_share'][1]:.0%} to {auto['gain_share'][2]:.0%}): "
        f"{auto['steps'][0]:.0f} steps on average, {cell(auto['percent_of_base'])} % of base; {auto['harmed']:.0%} of "
        f"the passages end worse than the base model has them.",
        "",
        f"Rules, each with the parameter that took the fewest steps for {result['target']:.0%} of the gain of "
        f"{passages['choosing']} passages, on {passages['reporting']} others (shares of 50 steps and of their gain, "
        "90 % intervals). Rules that look at the prompt keep the best adapter of those looked at:",
        "",
        *table(
            [
                "rule",
                "parameter",
                "steps",
                "gain",
                "worse than base",
                "gain at a third of the steps",
            ],
            [*(row(name, each) for name, each in result["rules"].items()), bound],
        ),
        plots.draw("rules", "Gain kept against steps taken, by stopping rule", rules),
        "",
    ]
