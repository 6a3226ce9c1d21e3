"""Training speed: Mayfly's trainer against a plain loop of transformers, PEFT and Adam.

The loop is what one writes by hand: `get_peft_model` once, not timed; then zero_grad, forward with
labels, backward and step, one sequence at a time. Its model is in float32 on a CPU (the bundled
model's file is float16, which transformers would keep and which is slower there), in bfloat16 on a
GPU, with the attention that transformers chooses. Trainer and loop have the same rank, targets,
sequences and threads, and train in one process, in turn: a ratio is that of one pair.

Every request of the trainer asks for fifty steps, and only a window in the middle is measured,
without the first two steps, in which the requests are joined, and the last ones
(`benchmarks/training/under_load.py` measures whole requests).
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adapters import Trainer, TrainerConfig, TrainingProgress
from adapters.training import TrainingRequest
from benchmarks.harness.measures import spread, timed
from benchmarks.harness.provenance import ROOT

SLOTS = 32
CONCURRENCY = 8  # requests, where only one number is measured
STEPS = 50  # of a request
SETTLING_STEPS = 2  # of a request, until all train together
_CONTEXT, _HEAD = 2048, 64
_CREATIONS = 5  # of a PEFT adapter

Sequences = list[list[int]]


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama with random weights."""

    hidden: int
    intermediate: int
    layers: int
    shared_heads: int
    tied: bool
    vocabulary: int = 32_000


@dataclass(frozen=True)
class Subject:
    """A model to train, and how.

    Attributes:
        name: name of the model.
        shape: shape of the model; None for the bundled one.
        tokens: tokens of a sequence.
        steps: steps of the loop, and of each request in the measured window.
        pairs: pairs of trainer and loop, for each number of requests.
        concurrencies: numbers of concurrent requests.
    """

    name: str
    shape: Shape | None
    tokens: int
    steps: int
    pairs: int
    concurrencies: tuple[int, ...]


_SMALL, _MIDDLE = Shape(384, 1024, 10, 6, tied=True), Shape(768, 2048, 14, 12, tied=False)
SUBJECTS = (
    Subject("nano", None, 256, 10, 3, (1, 2, 4, 8, 16, 32)),
    Subject("30M", _SMALL, 256, 5, 3, (1, 2, 4, 8, 16, 32)),
    Subject("150M", _MIDDLE, 256, 4, 2, (1, 2, 4, 8, 16, 32)),
)
QUICK_SUBJECTS = (Subject("nano", None, 64, 6, 2, (1, 8)), Subject("30M", _SMALL, 64, 4, 1, (1, 8)))
SMOLLM2 = Subject(
    "SmolLM2-135M's shape", Shape(576, 1536, 30, 3, tied=True, vocabulary=49_152), 256, 4, 2, (1, 8)
)
GPU_SUBJECTS = (Subject("1B", Shape(2048, 5632, 20, 4, tied=False), 512, 20, 3, (1, 8)),)


def load_base(folder: str, dtype: torch.dtype | None = None) -> Any:
    """The base model of a plain loop; unless a type is given, bfloat16 on a GPU, else float32."""
    from transformers import AutoModelForCausalLM

    dtype = dtype or (torch.float32 if device() == "cpu" else torch.bfloat16)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device())


def lora_config(config: TrainerConfig) -> Any:
    """PEFT's configuration of the same adapters as the trainer's."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.rank,  # the time does not depend on it
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )


def train_plainly(
    model: Any, sequences: Sequence[Sequence[int]], learning_rate: float
) -> list[torch.Tensor]:
    """Take one Adam step on each sequence; returns the loss before each."""
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)], device=device())
        adam.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return losses


class PlainLoop:
    """A plain loop for one request at a time, with one adapter that is created beforehand."""

    def __init__(self, folder: str, config: TrainerConfig, learning_rate: float) -> None:
        from peft import get_peft_model

        self._learning_rate = learning_rate
        model, lora = load_base(folder), lora_config(config)
        creation_seconds = []
        for _ in range(_CREATIONS):
            seconds, peft = timed(get_peft_model, model, lora)
            creation_seconds.append(seconds)
            model = peft.unload()
        self.creation_seconds = statistics.median(creation_seconds)
        self._model: Any = get_peft_model(model, lora)

    def tokens_per_second(self, sequences: Sequences) -> float:
        """Speed of training on these sequences."""
        synchronize(device())
        started = time.perf_counter()
        train_plainly(self._model, sequences, self._learning_rate)
        synchronize(device())
        return sum(map(len, sequences)) / (time.perf_counter() - started)


def race(subject: Subject) -> dict[str, Any]:
    """Measure trainer and loop in turn, by precision of the trainer and number of requests."""
    with trainers(subject) as (folder, by_precision):
        default = next(iter(by_precision.values()))
        loop = PlainLoop(folder, default.config, default.learning_rate)
        sequences = draw_sequences(STEPS, subject.tokens, default.base.vocabulary)
        loop.tokens_per_second(sequences[:2])
        pairs: dict[tuple[str, int], list[tuple[float, float]]] = {
            (precision, requests): []
            for precision, trainer in by_precision.items()
            for requests in subject.concurrencies
            if trainer is default or requests in (1, CONCURRENCY)
        }
        for _ in range(subject.pairs):
            for (precision, requests), measured in pairs.items():
                loop_speed = loop.tokens_per_second(sequences[: subject.steps])
                trainer_speed = subject.tokens * steps_per_second(
                    by_precision[precision], sequences, requests, subject.steps
                )
                measured.append((trainer_speed, loop_speed))
    by_requests: dict[str, dict[str, Any]] = {precision: {} for precision in by_precision}
    for (precision, requests), measured in pairs.items():
        by_requests[precision][str(requests)] = {
            "tokens_per_second": spread([trainer_speed for trainer_speed, _ in measured]),
            "speedup": spread(
                [trainer_speed / loop_speed for trainer_speed, loop_speed in measured]
            ),
        }
    return {
        "parameters": default.base.parameters,
        "sequence_tokens": subject.tokens,
        "steps_measured": subject.steps,
        "pairs": subject.pairs,
        "chosen_precision": default.base.precision,
        "plain_adapter_making_seconds": loop.creation_seconds,
        "plain_tokens_per_second": spread(
            [loop_speed for measured in pairs.values() for _, loop_speed in measured]
        ),
        "trainer": by_requests,
    }


def steps_per_second(trainer: Trainer, sequences: Sequences, requests: int, steps: int) -> float:
    """Steps per second of all requests together, while the first takes `steps` steps."""
    steps_taken = 0
    # Time and count of all steps so far, at each step of the first request.
    marks: list[tuple[float, int]] = []

    def count_step(_progress: TrainingProgress) -> None:
        nonlocal steps_taken
        steps_taken += 1

    def mark_step(progress: TrainingProgress) -> None:
        marks.append((time.perf_counter(), steps_taken))
        count_step(progress)

    train(trainer, sequences, [mark_step] + [count_step] * (requests - 1), SETTLING_STEPS + steps)
    (started, before), (end, after) = marks[SETTLING_STEPS - 1], marks[SETTLING_STEPS + steps - 1]
    return (after - before) / (end - started)


def train(
    trainer: Trainer,
    sequences: Sequences,
    callbacks: Sequence[Callable[[TrainingProgress], None]],
    steps: int,
) -> None:
    """Train one request per callback, concurrently, until the first has taken `steps` steps."""
    done = threading.Event()

    def mark_step(progress: TrainingProgress) -> None:
        callbacks[0](progress)
        if progress.steps == steps:
            done.set()

    pending = [
        trainer.submit(TrainingRequest(sequences, seed=seed), cancelled=done, on_step=callback)
        for seed, callback in enumerate([mark_step, *callbacks[1:]])
    ]
    stops = {training.result().stop for training in pending}
    assert stops == {"cancelled"}, stops


@contextmanager
def trainers(subject: Subject) -> Iterator[tuple[str, dict[str, Trainer]]]:
    """The model's folder, and trainers by precision.

    The first has the precision that the trainer chooses; on a CPU, another has float32.
    """
    with folder_of(subject) as folder:
        measured: dict[str, Trainer] = {}
        for precision in ("auto", "float32") if device() == "cpu" else ("auto",):
            if precision not in measured:
                trainer = Trainer(TrainerConfig(folder, slots=SLOTS, precision=precision))
                measured[trainer.base.precision] = trainer
        yield folder, measured


@contextmanager
def folder_of(subject: Subject) -> Iterator[str]:
    """The folder of a model, within the `with` block."""
    if subject.shape is None:
        yield str(ROOT / "deploy" / "nano")
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(subject.shape, folder)
        yield folder


def make_model(shape: Shape, folder: str) -> None:
    """Save a Llama with random weights, which are the same each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // _HEAD,
        num_key_value_heads=shape.shared_heads,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=shape.tied,
    )
    # On a GPU, weights of a billion parameters are drawn in no time, and a smaller file is read.
    with torch.device(device()):
        model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.to(torch.float32 if device() == "cpu" else torch.bfloat16).save_pretrained(folder)


def draw_sequences(count: int, tokens: int, vocabulary: int) -> Sequences:
    """Random sequences; the time does not depend on their content."""
    sequences: Sequences = (
        np.random.default_rng(0).integers(0, vocabulary, (count, tokens)).tolist()
    )
    return sequences


def device() -> str:
    """The device to train on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device != "cpu":
        torch.cuda.synchronize()
