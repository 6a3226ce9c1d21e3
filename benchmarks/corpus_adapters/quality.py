"""Scores the arms on held-out passages.

Trainer and selector are the server's own, in this process; the corpora's adapters were trained by
the command. The suffix of a passage is scored in the trainer's model in float32. A training is
scored after several numbers of steps; scoring and the export of adapters are not in its seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from transformers import AutoTokenizer

from adapters import Trainer, TrainingProgress
from adapters.training import TrainingRequest
from benchmarks.corpus_adapters.arms import SHOWN, Arm, Start, Training, arms_of
from benchmarks.corpus_adapters.learning import open_selector, trainer_config
from benchmarks.harness.measures import timed
from benchmarks.quality.passages import Passage, open_scorer
from selection import Selection
from selection.embedding import Prompt
from selection.request import SelectionRequest
from serving.adaptation.shown import with_shown

# Bits per byte of a passage's suffix, and seconds at the time of the request, by arm.
Scores: TypeAlias = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class _Adapter:
    """An adapter, and the seconds that a request waits for it; None is the base model."""

    weights: bytes | None = None
    seconds: float = 0.0


class QualityRunner:
    """A resident trainer, and a selector for each home; for one thread.

    Args:
        model: folder of the base model.
        homes: the home of the corpora with each kind of adapter.
        trainings: the trainings whose arms are scored.
        prefix: tokens of a passage that are its prompt.
    """

    def __init__(
        self,
        model: str,
        homes: Mapping[Start, Path],
        trainings: Sequence[Training],
        prefix: int,
    ) -> None:
        config = trainer_config(model)
        self._trainer, self._scorer = Trainer(config), open_scorer(config)
        self._trainer.warm_up()
        self._selectors = {start: open_selector(home, model) for start, home in homes.items()}
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._trainings, self._prefix = trainings, prefix
        self._known: set[str] = set()
        self._most_steps = max(steps for training in trainings for steps in training.steps)

    def measure(self, passage: Passage, corpus: str) -> Scores:
        """Score all arms on a passage.

        Raises:
            RuntimeError: a corpus has no adapter that its requests start from.
        """
        request = SelectionRequest([Prompt(passage.prefix)], corpus, steps=self._most_steps)
        if corpus not in self._known:
            # A server has it open already.
            self._known.add(corpus)
            self._selectors["corpus"].select(request)
            for start in self._selectors:
                self._start(start, request)
        selection = self._selectors["corpus"].select(request)
        starts = {start: self._start(start, request) for start in self._selectors}
        starts["fresh"] = _Adapter()
        adapters = {Arm(start): adapter for start, adapter in starts.items()}
        for training in self._trainings:
            adapters |= self._train(training, selection, starts[training.start])
        choosing = sum(selection.seconds.values())
        scores: Scores = {}
        for arm in arms_of(self._trainings):
            adapter = adapters[replace(arm, shown=False)]
            prompt: Sequence[int] = passage.tokens[: self._prefix]
            if arm.shown:
                prompt = self._shown(prompt, selection, arm, len(passage.tokens) - len(prompt))
            waits = choosing if arm.steps or arm.shown else 0.0
            bits = self._bits(passage, prompt, adapter.weights)
            scores[arm.name] = bits, waits + adapter.seconds
        return scores

    def _start(self, start: Start, request: SelectionRequest) -> _Adapter:
        """The adapter that a request starts from."""
        selector = self._selectors[start]
        lookup, found = timed(selector.start, request)
        if found.start is None:
            raise RuntimeError(f"no request starts from corpus {request.corpus}: {found.reason}")
        reading, weights = timed(selector.start_weights, found.corpus, found.start)
        # The adapter of an undivided corpus stays loaded in a server; a mixture is made anew.
        is_mixed = len(found.start.parts) > 1
        return _Adapter(weights.weights, lookup + (reading if is_mixed else 0.0))

    def _train(
        self, training: Training, selection: Selection, start: _Adapter
    ) -> dict[Arm, _Adapter]:
        """The adapter of each arm; where the training diverges, its start."""
        adapters = dict.fromkeys(training.arms, start)
        seconds, last = start.seconds, time.perf_counter()

        def on_step(progress: TrainingProgress) -> None:
            nonlocal seconds, last
            seconds += time.perf_counter() - last
            arm = Arm(training.start, progress.sequences_used, training.rate)
            if arm in adapters:
                adapters[arm] = _Adapter(self._trainer.export(progress.slot), seconds)
            last = time.perf_counter()

        count = max(training.steps)
        request = TrainingRequest(
            selection.sequences[:count],
            start=start.weights,
            learning_rate_factor=training.rate,
            scored=selection.scored[:count],
        )
        self._trainer.train(request, on_step=on_step)
        return adapters

    def _shown(
        self, prompt: Sequence[int], selection: Selection, arm: Arm, answer: int
    ) -> list[int]:
        """A prompt with chosen sequences before it, as many as the server would show."""
        sources = {source.sequence: source for source, _ in selection.sources}
        chosen = dict.fromkeys(selection.ids[: max(arm.steps, SHOWN)])
        shown = [sources[each] for each in chosen][:SHOWN]
        body: dict[str, Any] = {"prompt": list(prompt)}
        longer: list[int] = with_shown(body, shown, self._tokenizer)["prompt"]
        while len(longer) + answer > self._scorer.base.context:
            shown.pop()
            longer = with_shown(body, shown, self._tokenizer)["prompt"]
        return longer

    def _bits(self, passage: Passage, prompt: Sequence[int], weights: bytes | None) -> float:
        tokens = [*prompt, *passage.tokens[self._prefix :]]
        nats = self._scorer.nats(tokens, len(prompt), weights)
        return nats / math.log(2) / len(passage.suffix.encode())
