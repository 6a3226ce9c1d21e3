"""Ten examples of a format that no model has seen: shown, trained on, or both.

Tasks have one right answer and no instructions. Each arm answers the same queries through `mayfly
serve` and HTTP; the adapter of a task is trained by the first of them and reused by the others. The
trained arm that is compared was chosen on other formats (`--formats choosing`). An interrupted run
continues when the same command is given with the same code.

    python benchmarks/fewshot.py [--model smollm2] [--formats reported] [--seeds 1] [--json]
    [--out benchmarks/results/fewshot.json]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.few_shot.arms import ARMS
from benchmarks.few_shot.choosing_formats import CHOOSING
from benchmarks.few_shot.reported_formats import REPORTED
from benchmarks.few_shot.requests import AT_ONCE, answer_queries
from benchmarks.few_shot.summary import by_task, summary
from benchmarks.few_shot.task import Invention, make_tasks
from benchmarks.harness.command_line import argument_parser, write_result
from benchmarks.harness.provenance import CACHE, code_digest, provenance
from benchmarks.harness.server import mayfly_server, temporary_home
from benchmarks.latency.journal import Journal
from serving.models.catalogue import model_folder

FORMATS: Mapping[str, Mapping[str, Invention]] = {"reported": REPORTED, "choosing": CHOOSING}
# Room for ten examples before a question, time for the longest training on a slow machine, and as
# many requests with an adapter as are sent at once.
_FLAGS = ("--max-model-len", "2048", "--max-seconds", "600", "--max-adaptations", str(AT_ONCE))

# The answers by task and arm, in the order of the queries.
Measured: TypeAlias = dict[str, dict[str, list[dict[str, Any]]]]


def measure(
    model: str, inventions: Mapping[str, Invention], journal: Journal, seeds: int
) -> Measured:
    """Ask every query of every arm that no former run has asked.

    Args:
        model: folder of the model.
        inventions: the formats.
        journal: where answers are kept.
        seeds: number of tasks of each format.
    """
    asked = [
        (task, arm, f"{task.name} {seed}, {arm.name}")
        for seed in range(seeds)
        for task in make_tasks(inventions, seed)
        for arm in ARMS
    ]
    found: Measured = {name: {arm.name: [] for arm in ARMS} for name in inventions}
    with ExitStack() as stack:
        url = name = ""
        if any(key not in journal for *_, key in asked):
            home = stack.enter_context(temporary_home())
            url = stack.enter_context(mayfly_server(home, "--model", model, *_FLAGS)).url
            name = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"][0]["id"]
        for task, arm, key in asked:
            found[task.name][arm.name] += journal.once(
                key,
                lambda: [asdict(each) for each in answer_queries(url, name, task, arm)],  # noqa: B023
            )
    return found


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print exact match and seconds by arm, and exact match by task."""
    arms = list(result["exact_match"])
    table = Table("arm", "exact match, %", "first token, s", "later, s", box=None, pad_edge=False)
    for arm in arms:
        seconds = result["seconds_to_first_token"][arm]
        table.add_row(
            arm,
            _cell(result["exact_match"][arm]),
            f"{seconds['first']:.2f}",
            f"{seconds['later']:.2f}",
        )
    console.print(table)
    gain = _cell(result["best_trained_minus_in_context"])
    console.print(f"{result['best_trained']} minus in context: {gain} points", highlight=False)
    tasks = result["by_task"]
    table = Table("by task", *tasks, box=None, pad_edge=False)
    for arm in arms:
        table.add_row(arm, *(f"{by_arm[arm]:.0f}" for by_arm in tasks.values()))
    console.print(table)


def _cell(found: Sequence[float]) -> str:
    return "{:.1f} ({:.1f} to {:.1f})".format(*found)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="the model, by name or folder")
    parser.add_argument(
        "--formats", choices=list(FORMATS), default="reported", help="which (default: reported)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="tasks of each format (default: 1)")
    options, facts = parser.parse_args(), provenance()
    model = str(Path(model_folder(options.model)).absolute())
    folder = CACHE / f"fewshot-{code_digest(model)}"
    folder.mkdir(parents=True, exist_ok=True)
    inventions = FORMATS[options.formats]
    measured = measure(model, inventions, Journal(folder / "answers.json"), options.seeds)
    numbers = summary(measured)
    result = {
        **facts,
        "model": Path(model).name,
        "formats": options.formats,
        "seeds": options.seeds,
        **numbers,
        "by_task": by_task(measured),
        "answers": measured,
    }
    show(result, Console(stderr=options.json))
    write_result(options, result, numbers)


if __name__ == "__main__":
    main()
