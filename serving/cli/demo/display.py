"""Prints the result of the demonstration."""

from __future__ import annotations

import json

from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from serving.cli.console import PlainConsole, plain, row, say, table
from serving.cli.console import show as show_table
from serving.cli.demo.comparison import Result

_BARS = "▁▂▃▄▅▆▇█"


def show(result: Result, url: str, console: PlainConsole) -> None:
    """Print the result in readable form."""
    report = result.adaptation
    steps = report["spent"]["steps"]
    console.print(_panel(result.passage.prefix, f"prompt: {result.passage.name}"))
    answers = Table.grid(expand=True)
    answers.add_column(ratio=1)
    answers.add_column(ratio=1)
    answers.add_row(
        _panel(result.base_answer, "base model"),
        _panel(result.adapted_answer, f"adapted, {steps} steps"),
    )
    console.print(answers)
    console.print(_panel(result.passage.suffix, "the true continuation"))
    share = 100 * result.adapted_bits_per_byte / result.base_bits_per_byte
    score = Text("bits per byte of the true continuation (lower is better): base ")
    score.append(f"{result.base_bits_per_byte:.3f}", "bold").append(", adapted ")
    score.append(f"{result.adapted_bits_per_byte:.3f}", "bold").append(f" ({share:.1f} %)")
    say(score, to=console)
    if not report["adapted"]:
        say(f"the base model answered both requests: {report['reason']}", to=console)
    if report["prompt_loss"]:
        loss = "prompt loss: {before:.2f} -> {after:.2f} after {at} sequences"
        say(loss.format(**report["prompt_loss"]), to=console)
    if sigma := report["uncertainty"]:
        curve = "".join(_BARS[min(7, int(8 * value))] for value in sigma)
        say(
            f"uncertainty sigma_0 to sigma_{len(sigma) - 1}: {curve} "
            f"{sigma[0]:.2f} to {sigma[-1]:.2f}, stopped by {report['stop']}",
            to=console,
        )
    sources = table("trained on", "at character", "times")
    for source in report["sources"][:8]:
        row(sources, source["name"], str(source["start"]), str(source["times"]))
    show_table(sources, console)
    if len(report["sources"]) > 8:
        say(f"and {len(report['sources']) - 8} more sequences", to=console)
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report["seconds"].items())
    say(
        f"seconds: {stages}; {report['spent']['seconds']:.2f} in all until the adapter was loaded",
        to=console,
    )
    say("\nto try next (the server keeps running with `mayfly demo --keep`):", to=console)
    print_curl(url, result.model, console)


def print_curl(url: str, model: str, console: PlainConsole) -> None:
    """Print a curl command to try, on lines that can be copied."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "What does a reasoning parser do?"}],
            "max_tokens": 128,
        }
    )
    say(
        f"curl -si {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"  -H 'Compute-Budget: steps=20, seconds=5' -d '{body}'",
        to=console,
    )


def _panel(code: str, title: str) -> Panel:
    shown = Syntax(plain(code).strip("\n"), "python", word_wrap=True, background_color="default")
    return Panel(shown, title=Text(title))
