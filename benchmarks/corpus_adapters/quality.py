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
from benchmarks.corpus_adapters.arms import (
    FRESH,
    SHOWN,
    SHOWN_TOO,
    Arm,
    Start,
    Training,
    arms_of,
    fresh_of,
)
from benchmarks.corpus_adapters.learning import open_selector, trainer_config
from benchmarks.harness.measures import timed
from benchmarks.quality.passages import Passage, open_scorer
from selection import Selection, Selector
from selection.embedding import Prompt
from selection.request import SelectionRequest
from serving.adaptation.prompts import PROBE_TOKENS
from serving.adaptation.shown import with_shown

# Bits per byte of a passage's suffix, and seconds at the time of the request, by arm.
Scores: TypeAlias = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Answer:
    """What the model answers with.

    Attributes:
        prompt: tokens of the prompt.
        weights: the adapter; None for the base model.
        seconds: seconds that a request waits for both.
        is_new: whether the adapter was made for the request, so that it is not loaded yet.
    """

    prompt: tuple[int, ...]
    weights: bytes | None = None
    seconds: float = 0.0
    is_new: bool = False


class ResidentModel:
    """A trainer as the server has it, and one in float32 that only scores.

    Args:
        model: folder of the base model.
        prefix: tokens of a passage that are its prompt.
    """

    def __init__(self, model: str, prefix: int) -> None:
        config = trainer_config(model)
        self.trainer, self._scorer = Trainer(config), open_scorer(config)
        self.trainer.warm_up()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.prefix, self.context = prefix, self._scorer.base.context
        # The scores of the last passage, by prompt and adapter: several arms may have both alike.
        self._passage: Passage | None = None
        self._scores: dict[tuple[tuple[int, ...], bytes | None], float] = {}

    def bits(self, passage: Passage, answer: Answer) -> float:
        """Bits per byte of a passage's suffix."""
        if passage != self._passage:
            self._passage, self._scores = passage, {}
        key = answer.prompt, answer.weights
        if key not in self._scores:
            tokens = [*answer.prompt, *passage.tokens[self.prefix :]]
            nats = self._scorer.nats(tokens, len(answer.prompt), answer.weights)
            self._scores[key] = nats / math.log(2) / len(passage.suffix.encode())
        return self._scores[key]


class QualityRunner:
    """Makes the answers of all arms; for one thread.

    Args:
        resident: trainer and scorer.
        selectors: a selector of the corpora with each kind of adapter; the first one chooses.
        trainings: the trainings whose arms are scored.
        shown_too: arms that are also measured with the chosen sequences in the prompt.
    """

    def __init__(
        self,
        resident: ResidentModel,
        selectors: Mapping[Start, Selector],
        trainings: Sequence[Training],
        shown_too: Sequence[Arm] = SHOWN_TOO,
    ) -> None:
        self._resident, self._selectors = resident, selectors
        self._chooser = next(iter(selectors.values()))
        self._trainings = trainings
        self._starts = [*dict.fromkeys(each.start for each in trainings if each.start != "fresh")]
        self._strategies = [*dict.fromkeys(each.strategy for each in trainings)]
        self._arms = arms_of(trainings, shown_too)
        self._known: set[str] = set()
        steps = (steps for training in trainings for steps in training.steps)
        self._most_steps = max(steps, default=FRESH.steps)

    def measure(self, passage: Passage, corpus: str) -> Scores:
        """Score all arms on a passage.

        Raises:
            RuntimeError: a corpus has no adapter that its requests start from.
        """
        return {
            arm.name: (self._resident.bits(passage, answer), answer.seconds)
            for arm, answer in self.answers(passage, corpus).items()
        }

    def answers(self, passage: Passage, corpus: str) -> dict[Arm, Answer]:
        """What each arm answers with.

        Raises:
            RuntimeError: a corpus has no adapter that its requests start from.
        """
        prompt = passage.tokens[: self._resident.prefix]
        request = SelectionRequest([Prompt(passage.prefix)], corpus, steps=self._most_steps)
        if corpus not in self._known:
            # A server has it open already.
            self._known.add(corpus)
            self._chooser.select(request)
            for start in self._starts:
                self._start(start, request, prompt)
        selections = {
            strategy: self._chooser.select(replace(request, strategy=strategy))
            for strategy in self._strategies
        }
        starts: dict[Start, Answer] = {"fresh": Answer(prompt)}
        starts |= {start: self._start(start, request, prompt) for start in self._starts}
        trained: dict[Arm, Answer] = {}
        for training in (each for each in self._trainings if each.steps):
            selection = selections[training.strategy]
            trained |= self._train(training, selection, starts[training.start])
        trained |= {Arm(start): answer for start, answer in starts.items()}
        trained |= self._compared(trained, starts)
        answers: dict[Arm, Answer] = {}
        for arm in self._arms:
            # Without steps nothing depends on what was chosen.
            strategy = arm.strategy if arm.steps else "sift"
            answer = trained[replace(arm, shown=False, strategy=strategy)]
            if arm.steps or arm.shown:
                selection = selections[arm.strategy]
                choosing = sum(selection.seconds.values())
                answer = replace(answer, seconds=answer.seconds + choosing)
            if arm.shown:
                scored = len(passage.tokens) - len(prompt)
                answer = replace(answer, prompt=self._shown(prompt, selection, arm, scored))
            answers[arm] = answer
        return answers

    def _compared(
        self, trained: Mapping[Arm, Answer], starts: Mapping[Start, Answer]
    ) -> dict[Arm, Answer]:
        """The answers of the arms that begin with a comparison of their start."""
        nats: dict[Start, float] = {}
        seconds = 0.0
        for start, answer in starts.items():
            probe = answer.prompt[-PROBE_TOKENS:]
            spent, nats[start] = timed(self._resident.trainer.nats, probe, 1, answer.weights)
            # The first evaluation of the prompt is that of any request.
            seconds = max(seconds, spent)
        answers: dict[Arm, Answer] = {}
        for arm in self._arms:
            if arm.compared and not arm.shown:
                alone = replace(arm, compared=False)
                fresh = fresh_of(alone)
                assert fresh is not None, "it is compared with a fresh start"
                answer = trained[alone if nats[arm.start] < nats["fresh"] else fresh]
                answers[arm] = replace(answer, seconds=answer.seconds + seconds)
        return answers

    def _start(self, start: Start, request: SelectionRequest, prompt: tuple[int, ...]) -> Answer:
        """The adapter that a request starts from."""
        selector = self._selectors[start]
        lookup, found = timed(selector.start, request)
        if found.start is None:
            raise RuntimeError(f"no request starts from corpus {request.corpus}: {found.reason}")
        reading, weights = timed(selector.start_weights, found.corpus, found.start)
        # The adapter of an undivided corpus stays loaded in a server; a mixture is made anew.
        is_mixed = len(found.start.parts) > 1
        seconds = lookup + (reading if is_mixed else 0.0)
        return Answer(prompt, weights.weights, seconds, is_new=is_mixed)

    def _train(self, training: Training, selection: Selection, start: Answer) -> dict[Arm, Answer]:
        """The adapter of each arm; where the training diverges, its start.

        A small corpus may have fewer sequences than an arm takes steps: those are all it takes.
        """
        trainer, count = self._resident.trainer, max(training.steps)
        rate = training.rate * (1.0 if training.start == "fresh" else trainer.start_rate)
        answers = dict.fromkeys(training.arms, start)
        chosen = len(selection.sequences[:count])
        seconds, last = start.seconds, time.perf_counter()

        def on_step(progress: TrainingProgress) -> None:
            nonlocal seconds, last
            seconds += time.perf_counter() - last
            used = progress.sequences_used
            if reached := [arm for arm in answers if used == min(arm.steps, chosen)]:
                answer = Answer(start.prompt, trainer.export(progress.slot), seconds, is_new=True)
                answers.update(dict.fromkeys(reached, answer))
            last = time.perf_counter()

        request = TrainingRequest(
            selection.sequences[:count],
            start=start.weights,
            learning_rate_factor=rate,
            scored=selection.scored[:count],
        )
        trainer.train(request, on_step=on_step)
        return answers

    def _shown(
        self, prompt: Sequence[int], selection: Selection, arm: Arm, answer: int
    ) -> tuple[int, ...]:
        """A prompt with chosen sequences before it, as many as the server would show."""
        sources = {source.sequence: source for source, _ in selection.sources}
        chosen = dict.fromkeys(selection.ids[: max(arm.steps, SHOWN)])
        shown = [sources[each] for each in chosen][:SHOWN]
        body: dict[str, Any] = {"prompt": list(prompt)}
        longer: list[int] = with_shown(body, shown, self._resident.tokenizer)["prompt"]
        while len(longer) + answer > self._resident.context:
            shown.pop()
            longer = with_shown(body, shown, self._resident.tokenizer)["prompt"]
        return tuple(longer)


def open_runner(
    model: str, homes: Mapping[Start, Path], trainings: Sequence[Training], prefix: int
) -> QualityRunner:
    """A runner with models and selectors of its own.

    Args:
        model: folder of the base model.
        homes: the home of the corpora with each kind of adapter.
        trainings: the trainings whose arms are scored.
        prefix: tokens of a passage that are its prompt.
    """
    selectors = {start: open_selector(home, model) for start, home in homes.items()}
    return QualityRunner(ResidentModel(model, prefix), selectors, trainings)
