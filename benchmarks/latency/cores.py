"""Cores: engine and trainer that take all of them while the other one rests, beside a fixed half.

Two servers of the same model are up, one with the defaults and one with `--threads` at half of the
cores, and only one at a time gets requests. In each round every kind of request is sent to both,
which begin in turn; a ratio is that of one round, and the first round is a warm-up. The kinds:
one request at a time; four clients at once, one of which trains; and one request beside another
program that computes without rest on one core.

    python -m benchmarks.latency.cores [--model smollm2] [--rounds 5] [--json]
    [--out benchmarks/results/cores.json]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree
from statistics import median
from typing import Any

import httpx

from benchmarks.corpus_adapters.learning import learn
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import spread
from benchmarks.harness.server import create_corpora, mayfly_server, source_documents
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from serving.models.catalogue import model_folder
from serving.settings.hardware import available_cores

CORPUS, DOCUMENTS, LEARNING_SECONDS = "code", 12, 40
# Characters of a prompt, and the least tokens of an answer from which the time of a token follows.
PROMPT, ANSWER = 1400, 24
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        name: its name in the result.
        budget: Compute-Budget header.
        adaptation: further entries of the `adaptation` object.
        tokens: tokens of the answer.
    """

    name: str
    budget: str
    adaptation: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = ANSWER


_SHOWN, _FRESH = {"show": 8}, {"start": "fresh"}
ALONE = (
    Kind("base model", "none"),
    Kind("8 sequences shown", "none", _SHOWN),
    Kind("instant", "instant"),
    Kind("instant, 8 shown", "instant", _SHOWN),
    Kind("auto", "auto"),
    Kind("10 steps", "steps=10", _FRESH),
)
AT_ONCE = (
    Kind("", "none", tokens=64),
    Kind("", "none", tokens=64),
    Kind("", "none", _SHOWN),
    Kind("", "steps=5", _FRESH),
)
BESIDE = (
    Kind("8 sequences shown, beside a busy core", "none", _SHOWN),
    Kind("5 steps, beside a busy core", "steps=5", _FRESH),
)


@dataclass(frozen=True)
class Seconds:
    """Seconds from sending a request to its first token, between two tokens, and to the last."""

    first: float
    token: float
    last: float


def ask(url: str, model: str, kind: Kind, prompt: str) -> Seconds:
    """Send one request.

    Raises:
        RuntimeError: it was refused.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": kind.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "adaptation": {"corpus": CORPUS, **kind.adaptation},
    }
    headers, times = {"Compute-Budget": kind.budget}, []
    started = time.perf_counter()
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body, headers=headers, timeout=TIMEOUT_SECONDS
    ) as response:
        if response.status_code != 200:
            raise RuntimeError(response.read().decode())
        for line in response.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:]).get("choices"):
                times.append(time.perf_counter() - started)
    return Seconds(times[0], (times[-1] - times[0]) / max(1, len(times) - 1), times[-1])


@contextmanager
def busy_core() -> Iterator[None]:
    """Another program computes without rest within the `with` block."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


class Rounds:
    """Sends the requests of each round.

    Args:
        urls: base URLs of the servers by name, the one with the defaults second.
        model: name of their model.
    """

    def __init__(self, urls: Mapping[str, str], model: str) -> None:
        self._urls, self._model = urls, model
        self._texts = [document.text for document in source_documents()[DOCUMENTS:]]
        self.requests = 0

    def run(self, number: int) -> dict[str, dict[str, Seconds]]:
        """The seconds of each kind at each server, on an otherwise idle machine."""
        times = {kind.name: self._both(number, (kind,)) for kind in ALONE}
        times["four at once"] = self._both(number, AT_ONCE)
        return times

    def run_beside(self, number: int) -> dict[str, dict[str, Seconds]]:
        """The same beside another program that computes without rest on one core."""
        with busy_core():
            return {kind.name: self._both(number, (kind,)) for kind in BESIDE}

    def _both(self, number: int, kinds: tuple[Kind, ...]) -> dict[str, Seconds]:
        """The seconds at each server of kinds that are sent at once; their means."""
        order = list(self._urls)[:: 1 if number % 2 else -1]
        times = {}
        # Both get the same prompts, which neither has seen.
        prompts = [self._prompt() for _ in kinds]
        for name in order:
            progress(f"round {number}: {kinds[0].name or 'four at once'}, {name}")
            with ThreadPoolExecutor(len(kinds)) as threads:
                found = list(
                    threads.map(
                        lambda kind, prompt, url=self._urls[name]: ask(
                            url, self._model, kind, prompt
                        ),
                        kinds,
                        prompts,
                    )
                )
            columns = zip(*((each.first, each.token, each.last) for each in found), strict=True)
            times[name] = Seconds(*(sum(column) / len(kinds) for column in columns))
        return times

    def _prompt(self) -> str:
        self.requests += 1
        text = self._texts[self.requests % len(self._texts)]
        return f"{text[:PROMPT]}\n# request {self.requests}\n"


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """Measure all rounds, on servers of their own."""
    half = max(1, available_cores() // 2)
    homes = {"half": folder / "half", "default": folder / "default"}
    homes["half"].mkdir()
    base = model_folder(options.model)
    create_corpora(homes["half"], {CORPUS: source_documents()[:DOCUMENTS]}, model=base)
    learn(homes["half"], CORPUS, base, "--seconds", str(LEARNING_SECONDS))
    copytree(homes["half"], homes["default"])
    flags = ("--model", options.model)
    with (
        mayfly_server(homes["half"], *flags, "--threads", str(half)) as first,
        mayfly_server(homes["default"], *flags) as second,
    ):
        rounds = Rounds({"half": first.url, "default": second.url}, options.model)
        measured = [rounds.run(number) for number in range(options.rounds + 1)][1:]
        # At the end: a server remembers for minutes that another program computes.
        for number, each in enumerate(measured):
            each |= rounds.run_beside(number)
        violations.requests += 2 * rounds.requests
    for server in (first, second):
        violations.check_end(server)
    return {"threads": {"half": half, "default": available_cores()}, "kinds": summary(measured)}


def summary(rounds: list[dict[str, dict[str, Seconds]]]) -> dict[str, Any]:
    """The medians, for each kind, of its seconds and of the ratios of the defaults to half."""
    kinds = {}
    for kind in rounds[0]:
        kinds[kind] = {
            what: {
                "half": round(median(getattr(each[kind]["half"], what) for each in rounds), 4),
                "default": round(
                    median(getattr(each[kind]["default"], what) for each in rounds), 4
                ),
                "ratio": [
                    round(value, 4)
                    for value in spread(
                        [
                            getattr(each[kind]["default"], what) / getattr(each[kind]["half"], what)
                            for each in rounds
                        ]
                    )
                ],
            }
            for what in ("first", "token", "last")
        }
    return kinds


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="base model (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number (default: %(default)s)")
    run_and_finish(run, parser.parse_args())


if __name__ == "__main__":
    main()
