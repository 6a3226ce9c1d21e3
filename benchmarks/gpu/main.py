"""GPU check: what a machine with a GPU shows of the trainer and the selection, in eight minutes.

Four parts, each in a process of its own with a time limit: whether adapters equal PEFT's
(`equivalence`), training speed beside a PEFT loop (`training`), the same step captured as a CUDA
graph or compiled (`steps`), and SIFT on the GPU (`sift`). Needs torch, transformers, peft and
numba, but neither vLLM nor Ray nor FAISS; what else is missing is named in the result. The file of
`--out` is written after every measurement, so that an interrupted run keeps what it has.

    make gpu-check
    python -m benchmarks.gpu.main [--only PART ...] [--json] [--out FILE]
    python -m benchmarks.gpu.main --device cpu --budget small
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import provenance

# Packages of a whole installation, and what cannot be measured without them.
OPTIONAL = {
    "vllm": "answers, loading adapters into the engine",
    "ray": "the server and its stages",
    "faiss": "search in a corpus",
    "sentence_transformers": "embedding of prompts and documents",
}
# A part's measurements, each with its name.
Measured = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: name in the result.
        module: module with a function `measure(budget)` that yields measurements.
        seconds: time limit by budget, start of the process included.
    """

    name: str
    module: str
    seconds: dict[str, float]


PARTS = (
    Part("equivalence", "benchmarks.gpu.equivalence", {"full": 80, "small": 60}),
    Part("training", "benchmarks.gpu.training", {"full": 180, "small": 60}),
    Part("steps", "benchmarks.gpu.steps", {"full": 130, "small": 60}),
    Part("sift", "benchmarks.gpu.sift", {"full": 60, "small": 60}),
)


def main() -> None:
    """Run the parts, write the result after each measurement; exit with 1 if a check fails."""
    options = _options()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if options.device == "cpu":
        # The processes of the parts take a GPU wherever torch shows one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    result: dict[str, Any] = {
        **provenance(("peft", "numba")),
        "device": _device(),
        "budget": options.budget,
        "missing": {
            name: without
            for name, without in OPTIONAL.items()
            if importlib.util.find_spec(name) is None
        },
        "parts": {},
    }
    for name, without in result["missing"].items():
        print(f"{name} is not installed; not measured: {without}", file=sys.stderr)
    if options.device == "cuda" and result["device"] == "cpu":
        sys.exit("torch finds no GPU here: pass --device cpu to try the check itself")
    for part in PARTS:
        if part.name in options.only:
            entry = result["parts"][part.name] = {"status": "running", "measured": {}}
            run_part(part, options.budget, entry, lambda: _write(options, result))
            print(f"{part.name}: {entry['status']}, {entry['seconds']:.0f} s", file=sys.stderr)
    summary = {name: entry["status"] for name, entry in result["parts"].items()}
    failed = list(failures(result))
    for failure in failed:
        print(failure, file=sys.stderr)
    write_result(options, result, {"parts": summary, "failures": failed})
    sys.exit(bool(failed))


def failures(result: dict[str, Any]) -> Iterator[str]:
    """Sentences about checks that do not hold, and parts that raised or were cut off."""
    for name, entry in result["parts"].items():
        if entry["status"] != "done":
            yield f"{name}: {entry['status']}"
        for key, measured in entry["measured"].items():
            if measured.get("holds") is False:
                yield f"{name}, {key}: the results differ"


def _options() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--budget", choices=("full", "small"), default="full", help="small: to test the check"
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
    )
    return parser.parse_args()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the result so far to `--out`."""
    write_result(argparse.Namespace(out=options.out, json=False), result, {})


def run_part(part: Part, budget: str, entry: dict[str, Any], write: Callable[[], None]) -> None:
    """Run a part in a new process until it ends or its time is over.

    Args:
        part: the part.
        budget: "full" or "small".
        entry: receives "status", "seconds" and, under "measured", each measurement.
        write: called after each of them.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part.module, budget, sender))
    started = time.monotonic()
    process.start()
    sender.close()
    entry["status"] = "cut off at its time limit"
    while receiver.poll(max(started + part.seconds[budget] - time.monotonic(), 0.0)):
        try:
            key, measured = receiver.recv()
        except EOFError:
            process.join()
            entry["status"] = f"ended with exit status {process.exitcode}"
            break
        if key == "status":
            entry["status"] = measured
            break
        progress(f"{part.name}: {key}")
        entry["measured"][key] = measured
        entry["seconds"] = time.monotonic() - started
        write()
    process.kill()
    process.join()
    entry["seconds"] = time.monotonic() - started
    progress("")
    write()


def _work(module: str, budget: str, sender: Connection) -> None:
    """Send a part's measurements one by one, then its status."""
    status = "done"
    try:
        for each in importlib.import_module(module).measure(budget):
            sender.send(each)
    # A failure belongs into the result: the other parts still run.
    except Exception as problem:
        status = f"failed: {type(problem).__name__}: {problem}"
    sender.send(("status", status))


if __name__ == "__main__":
    main()
