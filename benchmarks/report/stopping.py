"""Stopping: steps and gain of `auto`, compared with other stopping rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import Plots, Result, interval_cell, table

# Results that were measured before the rules had their present names.
_FORMER_NAMES = {
    "the same number for all": "fixed number of steps",
    "the prompt's average gain": "average gain on the prompt",
    "the prompt's gain over the last looks": "gain on the prompt over the last probes",
    "the prompt's gain, smoothed": "smoothed gain on the prompt",
    "patience with the prompt": "patience on the prompt",
    "first similarity": "similarity of the first sequence",
    "losses": "training losses",
    "knowing the future": "oracle",
}


def renamed_rules(by_rule: Mapping[str, Any]) -> dict[str, Any]:
    """A result by rule, with the rules' present names."""
    return {_FORMER_NAMES.get(name, name): value for name, value in by_rule.items()}


def stopping(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """Everything that the stopping benchmark measured."""
    result = results["stopping"]
    auto, passages = result["auto"], result["passages"]

    def rules(axes: Any) -> None:
        for name, points in renamed_rules(result["stopping_rules"]).items():
            axes.plot(
                [p[1] for p in points],
                [p[2] for p in points],
                label=name,
                linestyle=":" if name == "oracle" else "-",
            )
        axes.plot([1 / 3], [0.9], "k+", label="target")
        axes.set(
            xlabel="share of the steps", ylabel="share of the gain", xlim=(0, 1), ylim=(0, None)
        )
        axes.legend(fontsize=7)

    def row(name: str, rule_result: Mapping[str, Any]) -> list[str]:
        found, third = rule_result["reporting"], rule_result["gain_share_at_a_third"]
        third_cell = "never" if third is None else f"{third:.2f}"
        if found is None:
            return [name, "never", "", "", "", third_cell]
        shares = [interval_cell(found[key], 2) for key in ("steps_share", "gain_share")]
        return [
            name,
            f"{rule_result['parameter']:.3g}",
            *shares,
            f"{found['harmed']:.0%}",
            third_cell,
        ]

    oracle_steps, oracle_gain = (
        "never" if rule_result is None else f"{rule_result:.2f}"
        for rule_result in (
            result["steps_share_for_target_knowing"],
            result["gain_share_at_a_third_knowing"],
        )
    )
    oracle = ["oracle", "", oracle_steps, f"{result['target']:.2f}", "", oracle_gain]
    return [
        f"`auto` (gain {auto['gain']:g}) takes {auto['steps_share'][0]:.0%} of the steps and keeps "
        f"{auto['gain_share'][0]:.0%} of the gain ({auto['gain_share'][1]:.0%} to "
        f"{auto['gain_share'][2]:.0%}): {auto['steps'][0]:.0f} steps on average, "
        f"{interval_cell(auto['percent_of_base'])} % of base; {auto['harmed']:.0%} of the passages "
        "end worse than with the base model.",
        "",
        f"Rules, each with the parameter that took the fewest steps for {result['target']:.0%} "
        f"of the gain of {passages['choosing']} passages, on {passages['reporting']} others "
        "(shares of 50 steps and of their gain, 90 % intervals). Rules that probe the prompt keep "
        "the best adapter of those probed. The oracle, which knows the outcome, is an upper bound:",
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
            [
                *(
                    row(name, rule_result)
                    for name, rule_result in renamed_rules(result["rules"]).items()
                ),
                oracle,
            ],
        ),
        plots.draw("rules", "Gain kept against steps taken, by stopping rule", rules),
        "",
    ]
