"""Trains adapters of corpora as a user does, by `mayfly corpus train`, and opens what it made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters import TrainerConfig
from adapters.fingerprint import model_fingerprint
from adapters.model_defaults import defaults_of, for_model, parameters_of
from benchmarks.harness.command_line import progress
from selection import Selector, SelectorConfig
from selection.config import DEFAULT, AdapterShape
from serving.environment import environment

MAYFLY = str(Path(sys.executable).with_name("mayfly"))


def train_command(home: Path, corpus: str, model: str, *options: str) -> list[str]:
    """The command that trains the adapter of a corpus."""
    common = ["--home", str(home), "--model", model, "--json"]
    return [MAYFLY, "corpus", "train", corpus, *common, *options]


def learn(
    home: Path, corpus: str, model: str, *options: str, threads: int | None = None
) -> dict[str, Any]:
    """Train the adapter of a corpus; returns the command's own JSON.

    Args:
        home: home of the corpus.
        corpus: name of the corpus.
        model: name or folder of the base model.
        options: further options of the command.
        threads: number of threads; None for the command's default, one per core.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    progress(f"learning corpus {corpus}")
    variables = {} if threads is None else environment(threads)
    output = run_mayfly(train_command(home, corpus, model, *options), variables)
    outcome: dict[str, Any] = json.loads(output.splitlines()[-1])
    return outcome


def run_mayfly(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run a command of Mayfly to its end; returns its output.

    Args:
        command: the command line.
        variables: environment variables beside this process's own.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    run = subprocess.run(
        command,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        end = (run.stdout + run.stderr)[-2000:]
        raise RuntimeError(f"{' '.join(command[:4])} exited with {run.returncode}:\n{end}")
    return run.stdout


def trainer_config(model: str) -> TrainerConfig:
    """How the server and the command train on a model by default."""
    return for_model(model)


def start_rate(model: str) -> float | None:
    """Multiple of the learning rate at which a server with this model trains on from the adapter of
    a corpus; None if the number of its parameters cannot be known.
    """
    parameters = parameters_of(Path(model))
    return None if parameters is None else defaults_of(parameters).start_rate


def trained_shape(model: str) -> AdapterShape:
    """What a server with this model needs adapters to have been trained for."""
    config = trainer_config(model)
    return AdapterShape(model_fingerprint(Path(model)), config.rank, config.targets)


def open_selector(home: Path, model: str, embedder: str = DEFAULT) -> Selector:
    """The selector of a server with this home, model and embedder, which finds the adapters of
    corpora.
    """
    shape = trained_shape(model)
    return Selector(SelectorConfig(home / "corpora", embedder, model, adapters=shape))
