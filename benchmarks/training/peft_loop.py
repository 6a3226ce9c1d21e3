"""Training speed: Mayfly's trainer against a plain loop of transformers, PEFT and torch.optim.Adam,
side by side.

The part of `benchmarks/training/main.py` about tokens a second, and the models that it trains. The loop
is what one writes by hand: `get_peft_model` once, outside the time; then zero_grad, forward with
labels, backward and step, a sequence at a time. Its model is in float32 on a CPU (the bundled one
is a file of float16, which transformers would keep and which is slower there), in bfloat16 on a
GPU, with the attention that transformers chooses. Trainer and loop have the same rank, targets,
sequences and threads, and train in one process, in turn: a ratio is that of one pair.

The trainer is asked for fifty steps by every request, through `submit`, and a window in their midst
is measured: their first two steps, while they come together, and their ends are left out
(`benchmarks/training/under_load.py` has whole requests).
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
from benchmarks.harness.provenance import ROOT

SLOTS = 32
TOGETHER = 8  # requests, where only one company is measured
STEPS = 50  # of a request
SETTLED = 2  # of them, until all train together
_VOCABULARY, _CONTEXT, _HEAD = 32_000, 2048, 64
_MADE = 5  # times that a PEFT adapter is made

Spread = tuple[float, float, float]  # median, least, most
Sequences = list[list[int]]


@dataclass(frozen=True)
class Shape:
    """Of a random Llama."""

    hidden: int
    intermediate: int
    layers: int
    shared_heads: int
    tied: bool


@dataclass(frozen=True)
class Subject:
    """A model to train, and how.

    Attributes:
        name: of the model.
        shape: None for the bundled model.
        tokens: of a sequence.
        steps: of the loop; and of each request, in the window that is measured.
        pairs: of trainer and loop, for each number of requests.
        concurrencies: how many requests at once.
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
QUICK = (Subject("nano", None, 64, 6, 2, (1, 8)), Subject("30M", _SMALL, 64, 4, 1, (1, 8)))
ON_A_GPU = (Subject("1B", Shape(2048, 5632, 20, 4, tied=False), 512, 20, 3, (1, 8)),)


class PlainLoop:
    """One request at a time, as by hand."""

    def __init__(self, folder: str, config: TrainerConfig, learning_rate: float) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self._device, self._learning_rate = device(), learning_rate
        dtype = torch.float32 if self._device == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        model = model.to(self._device)
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.rank,  # the time does not depend on it
            target_modules=list(config.targets),
            task_type="CAUSAL_LM",
        )
        making = []
        for _ in range(_MADE):
            begun = time.perf_counter()
            self._model: Any = get_peft_model(model, lora)
            making.append(time.perf_counter() - begun)
            model = self._model.unload()
        self.making_seconds = statistics.median(making)
        self._model = get_peft_model(model, lora)

    def tokens_per_second(self, sequences: Sequences) -> float:
        """Of training on these."""
        adam = torch.optim.Adam(
            [p for p in self._model.parameters() if p.requires_grad], lr=self._learning_rate
        )
        wait(self._device)
        begun = time.perf_counter()
        for sequence in sequences:
            ids = torch.tensor([sequence], device=self._device)
            adam.zero_grad()
            self._model(input_ids=ids, labels=ids).loss.backward()
            adam.step()
        wait(self._device)
        return sum(map(len, sequences)) / (time.perf_counter() - begun)


def race(subject: Subject) -> dict[str, Any]:
    """Trainer and loop in turn, by precision of the trainer and number of requests at once."""
    with trainers(subject) as (folder, by_precision):
        chosen = next(iter(by_precision.values()))
        loop = PlainLoop(folder, chosen.config, chosen.learning_rate)
        sequences = draw(STEPS, subject.tokens, chosen.base.vocabulary)
        loop.tokens_per_second(sequences[:2])
        pairs: dict[tuple[str, int], list[tuple[float, float]]] = {
            (precision, requests): []
            for precision, trainer in by_precision.items()
            for requests in subject.concurrencies
            if trainer is chosen or requests in (1, TOGETHER)
        }
        for _ in range(subject.pairs):
            for (precision, requests), found in pairs.items():
                plain = loop.tokens_per_second(sequences[: subject.steps])
                ours = subject.tokens * steps_per_second(
                    by_precision[precision], sequences, requests, subject.steps
                )
                found.append((ours, plain))
    by_requests: dict[str, dict[str, Any]] = {precision: {} for precision in by_precision}
    for (precision, requests), found in pairs.items():
        by_requests[precision][str(requests)] = {
            "tokens_per_second": spread([ours for ours, _ in found]),
            "speedup": spread([ours / plain for ours, plain in found]),
        }
    return {
        "parameters": chosen.base.parameters,
        "sequence_tokens": subject.tokens,
        "steps_measured": subject.steps,
        "pairs": subject.pairs,
        "chosen_precision": chosen.base.precision,
        "plain_adapter_making_seconds": loop.making_seconds,
        "plain_tokens_per_second": spread(
            [plain for found in pairs.values() for _, plain in found]
        ),
        "trainer": by_requests,
    }


def steps_per_second(trainer: Trainer, sequences: Sequences, requests: int, steps: int) -> float:
    """Of so many requests that train at once, added up, while the first of them takes so many
    steps.
    """
    told = 0
    # At the first one's steps, which is in every batch: when, and steps till then.
    marks: list[tuple[float, int]] = []

    def hear(_progress: TrainingProgress) -> None:
        nonlocal told
        told += 1

    def hear_first(progress: TrainingProgress) -> None:
        marks.append((time.perf_counter(), told))
        hear(progress)

    train(trainer, sequences, [hear_first] + [hear] * (requests - 1), SETTLED + steps)
    (begun, before), (ended, after) = marks[SETTLED - 1], marks[SETTLED + steps - 1]
    return (after - before) / (ended - begun)


def train(
    trainer: Trainer,
    sequences: Sequences,
    listeners: Sequence[Callable[[TrainingProgress], None]],
    steps: int,
) -> None:
    """A request for each listener, all at once, until the first of them has taken so many steps."""
    enough = threading.Event()

    def hear_first(progress: TrainingProgress) -> None:
        listeners[0](progress)
        if progress.steps == steps:
            enough.set()

    pending = [
        trainer.submit(TrainingRequest(sequences, seed=seed), cancelled=enough, on_step=listener)
        for seed, listener in enumerate([hear_first, *listeners[1:]])
    ]
    stops = {training.result().stop for training in pending}
    assert stops == {"cancelled"}, stops


@contextmanager
def trainers(subject: Subject) -> Iterator[tuple[str, dict[str, Trainer]]]:
    """The model's folder, and trainers by precision: the one chosen by itself first, then, on a
    CPU, float32.
    """
    with folder_of(subject) as folder:
        found: dict[str, Trainer] = {}
        for precision in ("auto", "float32") if device() == "cpu" else ("auto",):
            if precision not in found:
                trainer = Trainer(TrainerConfig(folder, slots=SLOTS, precision=precision))
                found[trainer.base.precision] = trainer
        yield folder, found


@contextmanager
def folder_of(subject: Subject) -> Iterator[str]:
    """Where the model is, for as long as it is needed."""
    if subject.shape is None:
        yield str(ROOT / "deploy" / "nano")
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(subject.shape, folder)
        yield folder


def make_model(shape: Shape, folder: str) -> None:
    """A Llama of random weights, the same ones each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // _HEAD,
        num_key_value_heads=shape.shared_heads,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=shape.tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]


def draw(count: int, tokens: int, vocabulary: int) -> Sequences:
    """Random sequences; the time does not depend on what they say."""
    drawn: Sequences = np.random.default_rng(0).integers(0, vocabulary, (count, tokens)).tolist()
    return drawn


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def device() -> str:
    """What is trained on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(device: str) -> None:
    """Until a GPU has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()
