"""Seconds of one request's twenty training steps, in today's tree or in that of an older commit.

Run it by path, with the tree to measure on PYTHONPATH: it imports nothing of the benchmarks. The
sequences are the source of a module of Python's own, in the model's tokens, so that two trees that
run with the same Python train on the same tokens. Prints the measured configuration on one line
and then a line for each run, as JSON. With `--wait`, each run starts when a line arrives on
standard input, so that a caller can interleave the runs of two trees.

    PYTHONPATH=TREE python benchmarks/training/twenty_steps.py --model FOLDER --repeat 5 [--old]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import pydoc
import sys
import time
from pathlib import Path
from typing import Any

_PROBE_TOKENS = 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--repeat", type=int, default=3, help="runs (default: %(default)s)")
    parser.add_argument("--old", action="store_true", help="the tree has the layout of release 0.2")
    parser.add_argument("--wait", action="store_true", help="start each run at a line of input")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run (default: 20)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--rank", type=int, help="LoRA rank (default: the tree's, by model size)")
    parser.add_argument("--scale", type=float, help="LoRA scale (default: likewise)")
    parser.add_argument(
        "--learning-rate", type=float, help="Adam learning rate (default: likewise)"
    )
    parser.add_argument(
        "--precision", default="auto", help="the base model's number type (default: auto)"
    )
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    trainer = load(options)
    tokens = text_tokens(options.model, options.steps * options.tokens + _PROBE_TOKENS)
    sequences = [
        tokens[start : start + options.tokens]
        for start in range(0, options.steps * options.tokens, options.tokens)
    ]
    probe = tokens[-_PROBE_TOKENS:]
    base_loss = trainer.nats(probe, 1) / (len(probe) - 1)
    configuration = {
        "old": options.old,
        "model": options.model,
        "threads": options.threads,
        "steps": options.steps,
        "tokens": options.tokens,
        "rank": trainer.config.rank,
        "scale": trainer.scale,
        "learning_rate": trainer.learning_rate,
        "precision": trainer.base.precision,
        "base_probe_loss": base_loss,
    }
    print(json.dumps(configuration), flush=True)
    for _ in range(options.repeat):
        if options.wait and not sys.stdin.readline():
            return
        started = time.perf_counter()
        result = train(trainer, sequences, options.old)
        seconds = time.perf_counter() - started
        loss = trainer.nats(probe, 1, result.adapter.weights) / (len(probe) - 1)
        print(json.dumps({"seconds": seconds, "probe_loss": loss}), flush=True)


def load(options: argparse.Namespace) -> Any:
    """The tree's trainer, with its defaults for the model unless options say otherwise."""
    defaults = importlib.import_module(
        "adapters.defaults" if options.old else "adapters.model_defaults"
    )
    given = {
        name: value
        for name in ("rank", "scale", "learning_rate", "precision")
        if (value := getattr(options, name)) is not None
    }
    config = dataclasses.replace(defaults.for_model(options.model), **given)
    return importlib.import_module("adapters.trainer").Trainer(config)


def train(trainer: Any, sequences: list[list[int]], old: bool) -> Any:
    """One step on each sequence."""
    if old:
        return trainer.train(sequences)
    return trainer.train(importlib.import_module("adapters.training").TrainingRequest(sequences))


def text_tokens(model: str, count: int) -> list[int]:
    """The first `count` tokens of a module of Python's own, repeated if it is shorter."""
    from transformers import AutoTokenizer

    text = Path(pydoc.__file__).read_text()
    tokens: list[int] = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)[
        "input_ids"
    ]
    return (tokens * math.ceil(count / len(tokens)))[:count]


if __name__ == "__main__":
    main()
