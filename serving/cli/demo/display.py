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
from serving.cli.demo.few_examples import BASE, SHOWN, TRAINED, FewExamples

_BARS = "▁▂▃▄▅▆▇█"
_LISTED = 3  # examples
_ARMS = {
    BASE: "base model",
    SHOWN: "with the examples in its prompt",
    TRAINED: "trained on the examples",
}
_ANSWER_CHARACTERS = 40


def show_examples(result: FewExamples, console: PlainConsole) -> None:
    """Print some of the examples, each arm's answer to the first question, and how many of its
    answers are right.
    """
    say(f"{len(result.examples)} examples of a format that no model has seen, such as", to=console)
    for pair in result.examples[:_LISTED]:
        say(f"  {pair.question}  ->  {pair.answer}", to=console)
    say(f"a question that is not among them:\n  {result.questions[0].question}", to=console)
    shown = table("", "its answer", "right", f"exactly right of {len(result.questions)}", "seconds")
    for name, arm in result.arms.items():
        facts = arm.as_dict()
        seconds = f"{facts['first_seconds']:.1f}, then {facts['median_seconds']:.1f} each"
        right = "yes" if arm.right[0] else "no"
        row(shown, _ARMS[name], _shorten(arm.answers[0]), right, str(facts["exact"]), seconds)
    show_table(shown, console)
    report = result.arms[TRAINED].report
    if report["adapted"]:
        steps, seconds = report["spent"]["steps"], report["seconds"]["train"]
        cost = f"{steps} steps in {seconds:.1f} s for the first question, and kept for the others"
        say(f"the adapter was trained once: {cost}", "dim", console)
    else:
        say(f"nothing was trained: {report['reason']}", to=console)


def _shorten(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= _ANSWER_CHARACTERS else f"{line[: _ANSWER_CHARACTERS - 3]}..."


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
