"""The report of an adaptation in one line."""

from __future__ import annotations

from collections import Counter
from typing import Any

_NAMED_SOURCES = 3


def format_report(report: dict[str, Any]) -> str:
    """The report of an answer in one line: cost, gain and sources of the adaptation."""
    sigma, steps, prompt = report["uncertainty"], len(report["losses"]), report.get("prompt_loss")
    parts = [f"stop {report['stop']}" if report["adapted"] else f"base model: {report['reason']}"]
    if report["adapted"] and report["reason"]:
        parts.append(report["reason"])
    if steps:
        parts.insert(
            0, f"{steps} step{'' if steps == 1 else 's'} in {report['spent']['seconds']:.2f} s"
        )
        parts.append(f"sigma {sigma[0]:.2f} to {sigma[-1]:.2f}")
    if prompt:
        loss = format_prompt_loss(prompt["before"], prompt["after"], prompt["at"], len(sigma) - 1)
        parts.insert(0, loss)
    if auto := report.get("auto"):
        losses = "; ".join(f"{way} {loss:.3f}" for way, loss in auto["losses"].items())
        parts.append(f"loss of the prompt: {losses}")
    if report["degraded"]:
        parts.append(report["degraded"])
    if shown := report.get("shown"):
        parts.append(f"shown {shown['sequences']} of {shown['of']}, {shown['tokens']} tokens")
    if (start := report.get("start")) and start["from"] == "corpus":
        new = f", {start['not_learnt']} not yet" if start["not_learnt"] else ""
        parts.append(f"the corpus's adapter learnt {start['sequences']} sequences{new}")
    times: Counter[str] = Counter()
    for source in report["sources"]:
        times[source["name"]] += source["times"]
    if times:
        listed = ", ".join(f"{name} x{count}" for name, count in times.most_common(_NAMED_SOURCES))
        rest = len(times) - _NAMED_SOURCES
        parts.append(f"from {listed}" + (f" and {rest} more" if rest > 0 else ""))
    return " · ".join(parts)


def format_prompt_loss(before: float, after: float, best: int, sequences: int) -> str:
    """The loss on the prompt itself before and after training.

    Args:
        before, after: mean loss per token with the base model and with the adapter.
        best: sequences that the kept adapter was trained on.
        sequences: sequences that were trained on in all.
    """
    note = (
        "" if best == sequences else f" (best adapter kept: after {best} of {sequences} sequences)"
    )
    return f"prompt loss {before:.2f} -> {after:.2f}{note}"
