"""The search for the learning rate, rank, lambda' and gain that suit a base model on one corpus,
on the corpus's own documents.

A sequence is drawn from each of some documents. Its first half is the prompt; its second half is
scored, in nats, after data was selected from the rest of the corpus and trained on as a server
does. Of an example, the last answer is scored, and what precedes it is the prompt. The document
itself is excluded, and so are near duplicates (`held_out.near_duplicates`). Settings are searched
one axis after another, from the built-in defaults, on half of the documents; on the other half they
are judged, and not recommended unless they are better there. The gain that a step must bring
(`adapters.training.Probe`) is read off the curves of the best setting: the largest that retains
`curves.GAIN_SHARE` of what all steps gain.

It only searches; `selection.corpus.calibration` stores the result with the corpus. Means over few
documents are noisy: neighbouring settings often differ by less than chance.

Shapes: K candidates, D embedding dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from transformers import AutoTokenizer

from adapters.model_defaults import for_model
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.corpus.calibration import Calibration
from selection.corpus.corpus import Corpus
from selection.corpus.sequences import StoredSequence
from selection.selector import Selector
from selection.strategies.registry import REGULARISATION, choose
from serving.calibration.curves import (
    Curve,
    choose_gain,
    exact_match,
    final_percent,
    mean_percent,
    stopping,
)
from serving.calibration.held_out import HeldOut, hold_out, near_duplicates

# Training steps of a curve.
STEPS = 50
# Searched multiples of the default learning rate.
LEARNING_RATE_FACTORS = (1 / 3, 2 / 3, 1.0, 5 / 3)
REGULARISATIONS = (0.03, 0.1, 0.3, 1.0)
# Searched multiples of the default rank.
RANK_FACTORS = (0.5, 1.0, 2.0)
# Numbers of steps after which a curve is measured: those at which training evaluates its probe.
_MEASURED_STEPS = (0, 2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 41, STEPS)


@dataclass(frozen=True)
class Setting:
    """A combination of the searched values."""

    regularisation: float
    learning_rate: float
    rank: int

    def __str__(self) -> str:
        return (
            f"lambda' {self.regularisation:g}, learning rate {self.learning_rate:.2g}, "
            f"rank {self.rank}"
        )


@dataclass(frozen=True)
class Trial:
    """A searched setting, and its mean loss in per cent of the base model's."""

    setting: Setting
    percent_of_base: float


@dataclass(frozen=True)
class BestSettings:
    """The result of the search.

    Attributes:
        calibration: The recommended settings.
        tried: All searched settings, in order.
        by_default, calibrated: Mean loss after 0, 1, ... steps on the documents that judge, in per
            cent of the base model's, with the default and with the recommended settings.
        steps: Mean number of steps with the recommended gain.
        gain_share: Share of the gain of all steps that these steps retain.
        exact_match: Share of the examples among these documents that are answered exactly by the
            base model, and after all steps with the recommended settings; None without examples.
    """

    calibration: Calibration
    tried: tuple[Trial, ...]
    by_default: tuple[float, ...]
    calibrated: tuple[float, ...]
    steps: float
    gain_share: float
    exact_match: tuple[float, float] | None


class CurveMeasurer:
    """Measures the curves of settings; holds a selector, and a trainer of one rank at a time.

    Attributes:
        default: The default configuration of the trainer.
        learning_rate: The default learning rate.
        held_out: The held-out sequences.
    """

    def __init__(self, selector: Selector, model: str, corpus: str, documents: int) -> None:
        self.default = for_model(model)
        self._selector, self._corpus = selector, corpus
        with selector.corpora.open(corpus) as opened:
            self.held_out = hold_out(opened, AutoTokenizer.from_pretrained(model), documents)
        self._trainer = Trainer(self.default)
        self.learning_rate = self._trainer.learning_rate
        self._cancelled = threading.Event()
        self._selections: dict[tuple[int, float], tuple[StoredSequence, ...]] = {}

    def measure(
        self, setting: Setting, held_out: Sequence[HeldOut], on_each: Callable[[], None]
    ) -> list[Curve]:
        """Select and train for all sequences together, and score them on the way."""
        if setting.rank != self._trainer.config.rank:
            # A base model may fill the memory, so the old trainer goes before the new one comes.
            del self._trainer
            self._trainer = Trainer(replace(self.default, rank=setting.rank))
        curves = []
        started = [self._start(setting, each) for each in held_out]
        for each, (training, measured) in zip(held_out, started, strict=True):
            try:
                training.result()
            except KeyboardInterrupt:
                # Otherwise the process would not end before all of them are trained.
                self._cancelled.set()
                raise
            on_each()
            # A training that diverged early stays at its last measurement.
            steps = sorted(measured)
            *losses, exact = zip(*(measured[n] for n in steps), strict=True)
            percent, prompt = (
                tuple(np.interp(range(STEPS + 1), steps, 100 * np.array(part) / part[0]).tolist())
                for part in losses
            )
            answers = (exact[0], exact[-1]) if each.is_example else None
            curves.append(Curve(percent, prompt, answers))
        return curves

    def _start(
        self, setting: Setting, held_out: HeldOut
    ) -> tuple[Future[TrainingResult], dict[int, tuple[float, float, bool]]]:
        """Start a training.

        Returns:
            The result, and by number of steps the nats of the scored part and of the prompt, and
            whether an example's answer is exact, which are filled in during training.
        """
        key = held_out.document, setting.regularisation
        if key not in self._selections:
            with self._selector.corpora.open(self._corpus) as corpus:
                self._selections[key] = self._select(corpus, held_out, setting.regularisation)
        trainer, tokens, middle = self._trainer, held_out.tokens, held_out.middle
        measured: dict[int, tuple[float, float, bool]] = {}

        def measure(steps: int, weights: bytes | None = None) -> None:
            measured[steps] = (
                trainer.nats(tokens, middle, weights),
                trainer.nats(tokens[:middle], 1, weights),
                held_out.is_example and trainer.would_generate(tokens, middle, weights),
            )

        def on_step(progress: TrainingProgress) -> None:
            if progress.steps in _MEASURED_STEPS:
                measure(progress.steps, trainer.export(progress.slot))

        measure(0)
        selected = self._selections[key]
        request = TrainingRequest(
            [each.tokens for each in selected],
            learning_rate=setting.learning_rate,
            scored=[each.scored for each in selected],
        )
        return trainer.submit(request, cancelled=self._cancelled, on_step=on_step), measured

    def _select(
        self, corpus: Corpus, held_out: HeldOut, regularisation: float
    ) -> tuple[StoredSequence, ...]:
        """The sequences that SIFT selects, without the document itself and its near duplicates."""
        embedder = self._selector.embedder
        targets_TD = embedder.embed(embedder.windows(held_out.prompt))
        total = corpus.counts()[1]
        candidates = self._selector.config.candidates
        count = total if candidates is None else candidates
        fetched = 2 * count
        while True:
            ids_K, candidates_KD = corpus.nearest(targets_TD, fetched)
            read = corpus.read(ids_K.tolist())
            excluded = {held_out.document} | near_duplicates(held_out, read.values())
            allowed_K = [
                position
                for position, i in enumerate(ids_K.tolist())
                if i in read and read[i].source.document not in excluded
            ]
            if len(allowed_K) >= count or fetched >= total:
                break
            fetched *= 2
        allowed_K = allowed_K[:count]
        choice = choose("sift", candidates_KD[allowed_K], targets_TD, STEPS, regularisation)
        return tuple(read[int(ids_K[allowed_K[pick]])] for pick in choice.picks)


def calibrate(
    selector: Selector,
    model: str,
    corpus: str,
    documents: int,
    on_setting: Callable[[str, int], Callable[[], None]] = lambda name, count: lambda: None,
) -> BestSettings:
    """Search on half of the held-out documents, judge on the other half.

    Args:
        selector: A selector over the corpus, for this model.
        model: Hub id or folder of the base model.
        corpus: Name or id of the corpus.
        documents: Number of held-out documents, at least four.
        on_setting: Called before each setting is measured, with its name and the number of
            documents; returns a function to call after each document.

    Raises:
        CorpusError: unknown corpus, or one of another embedder or tokenizer.
        CalibrationError: too few documents are long enough.
    """
    measurer = CurveMeasurer(selector, model, corpus, documents)
    searching, judging = measurer.held_out[::2], measurer.held_out[1::2]
    default = best = Setting(REGULARISATION, measurer.learning_rate, measurer.default.rank)
    curves: dict[Setting, list[Curve]] = {}
    axes = (
        [partial(replace, learning_rate=f * default.learning_rate) for f in LEARNING_RATE_FACTORS],
        [partial(replace, regularisation=value) for value in REGULARISATIONS],
        [partial(replace, rank=max(1, round(factor * default.rank))) for factor in RANK_FACTORS],
    )
    for axis in axes:
        for vary in axis:
            setting = vary(best)
            if setting not in curves:
                on_each = on_setting(f"searching: {setting}", len(searching))
                curves[setting] = measurer.measure(setting, searching, on_each)
        best = min(curves, key=lambda setting: final_percent(curves[setting]))
    judged = {
        setting: measurer.measure(setting, judging, on_setting(f"judging: {setting}", len(judging)))
        for setting in dict.fromkeys((default, best))
    }
    if final_percent(judged[best]) >= final_percent(judged[default]):
        best = default
    gain = choose_gain(curves[best])
    steps, gain_share = stopping(judged[best], gain)
    calibration = Calibration(
        regularisation=best.regularisation,
        gain=gain,
        learning_rate=best.learning_rate,
        rank=best.rank,
        passages=len(searching),
        percent_of_base=round(final_percent(judged[best]), 2),
        percent_by_default=round(final_percent(judged[default]), 2),
    )
    trials = tuple(Trial(setting, final_percent(measured)) for setting, measured in curves.items())
    return BestSettings(
        calibration,
        trials,
        mean_percent(judged[default]),
        mean_percent(judged[best]),
        steps,
        gain_share,
        exact_match(judged[best]),
    )
