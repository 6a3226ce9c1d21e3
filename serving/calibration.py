"""Calibrate: which learning rate, rank, lambda' and gain suit a base model on one corpus, found on
its own documents.

Of some documents a sequence is taken: its first half is the prompt, its second half is scored, in
nats a token, after data was chosen from the rest of the corpus and learnt as a server does it. The
document itself is left out, and what shares half of the sequence's runs of RUN tokens with it.
Settings are searched one axis after another, from the built-in defaults, on half of the documents;
the other half judges: what is not better there is not recommended. The gain that a step must bring
(`adapters.training.Probe`) is read off the curves of what won: the largest that keeps KEPT of what
all steps bring.

It finds and tells; the corpus keeps what it is told to (`selection.corpus.calibration`). Means over
few documents are noisy: neighbouring settings often differ by less than chance does.

Shapes: K candidates, D embedding dimensions.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from adapters.early_stopping import foretold
from adapters.model_defaults import for_model
from adapters.trainer import Trainer
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.corpus.calibration import Calibration
from selection.corpus.corpus import Corpus
from selection.embedding import Prompt
from selection.selector import Selector
from selection.strategies.registry import REGULARISATION, choose
from serving.config import AUTO
from serving.errors import CalibrationError

STEPS = 50
KEPT = 0.9
LEAST = 32  # tokens of a sequence that is a prompt and its answer
RUN = 8  # tokens
FACTORS = (1 / 3, 2 / 3, 1.0, 5 / 3)  # of the default learning rate
REGULARISATIONS = (0.03, 0.1, 0.3, 1.0)
RANKS = (0.5, 1.0, 2.0)  # of the default
GAINS = tuple(round(float(gain), 3) for gain in np.geomspace(0.02, 5, 50))
# Steps after which is scored: when training looks.
_AT = (0, 2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 41, STEPS)


@dataclass(frozen=True)
class Setting:
    """What is searched."""

    regularisation: float
    learning_rate: float
    rank: int


@dataclass(frozen=True)
class HeldOut:
    """A document that is held out: its id, tokens of which the second half is scored, and the first
    half's text.
    """

    document: int
    text: str
    tokens: tuple[int, ...]

    @property
    def middle(self) -> int:
        """Where the scored half begins."""
        return len(self.tokens) // 2


@dataclass(frozen=True)
class Curve:
    """One held-out document: per cent of the base model's nats after 0, 1, ... steps; those of its
    prompt likewise.
    """

    percent: tuple[float, ...]
    prompt: tuple[float, ...]

    def stopped(self, gain: float) -> tuple[int, int]:
        """After how many steps training would end, and how many of them the best adapter has learnt
        from.
        """
        return foretold(self.prompt, gain)


@dataclass(frozen=True)
class Tried:
    """A setting and what it made of the documents that it was chosen on."""

    setting: Setting
    percent_of_base: float


@dataclass(frozen=True)
class BestSettings:
    """What the search came to.

    Attributes:
        calibration: what is recommended.
        tried: every setting, in order.
        by_default, calibrated: mean per cent of base after 0, 1, ... steps, of the documents that
            judge.
        steps: that the gain takes, on average, and the share of what all steps bring that it keeps.
        gain_share: likewise.
    """

    calibration: Calibration
    tried: tuple[Tried, ...]
    by_default: tuple[float, ...]
    calibrated: tuple[float, ...]
    steps: float
    gain_share: float


class Bench:
    """The selector, the corpus, its held-out documents, and a trainer of one rank at a time."""

    def __init__(self, selector: Selector, model: str, corpus: str, documents: int) -> None:
        self.default = for_model(model)
        self._selector, self._corpus = selector, corpus
        with selector.corpora.open(corpus) as opened:
            self.held = hold_out(opened, AutoTokenizer.from_pretrained(model), documents)
        self._trainer = Trainer(self.default)
        self.learning_rate = self._trainer.learning_rate
        self._is_over = threading.Event()
        self._chosen: dict[tuple[int, float], tuple[tuple[int, ...], ...]] = {}

    def measure(
        self, setting: Setting, held: Sequence[HeldOut], on_each: Callable[[], None]
    ) -> list[Curve]:
        """Choose for each document, train them together, score on the way."""
        if setting.rank != self._trainer.config.rank:
            del self._trainer  # before the next: a base model may fill the memory
            self._trainer = Trainer(replace(self.default, rank=setting.rank))
        curves = []
        for training, scores in [self._begin(setting, each) for each in held]:
            try:
                training.result()
            except KeyboardInterrupt:
                self._is_over.set()  # else the process goes on until all of them are trained
                raise
            on_each()
            # To the last step that was sound: what diverges stays as it was then.
            at = sorted(scores)
            relative = 100 * np.array([scores[n] for n in at]) / scores[0]
            percent, prompt = (
                np.interp(range(STEPS + 1), at, part).tolist() for part in relative.T
            )
            curves.append(Curve(tuple(percent), tuple(prompt)))
        return curves

    def _begin(
        self, setting: Setting, held: HeldOut
    ) -> tuple[Future[TrainingResult], dict[int, tuple[float, float]]]:
        key = held.document, setting.regularisation
        if key not in self._chosen:
            with self._selector.corpora.open(self._corpus) as corpus:
                self._chosen[key] = self._choose(corpus, held, setting.regularisation)
        trainer = self._trainer

        def nats(weights: bytes | None = None) -> tuple[float, float]:
            """Of what is scored, and of the prompt."""
            prompt = held.tokens[: held.middle]
            return trainer.nats(held.tokens, held.middle, weights), trainer.nats(prompt, 1, weights)

        scores = {0: nats()}

        def score(progress: TrainingProgress) -> None:
            if progress.steps in _AT:
                scores[progress.steps] = nats(trainer.export(progress.slot))

        sequences = self._chosen[key]
        rate = setting.learning_rate
        return trainer.submit(
            TrainingRequest(sequences, learning_rate=rate), cancelled=self._is_over, on_step=score
        ), scores

    def _choose(
        self, corpus: Corpus, held: HeldOut, regularisation: float
    ) -> tuple[tuple[int, ...], ...]:
        """What SIFT picks of the candidates that do not hold the answer."""
        embedder = self._selector.embedder
        targets_TD = embedder.embed(embedder.windows(Prompt(held.text)))
        wanted, everything = self._selector.config.candidates, corpus.counts()[1]
        most = everything if wanted is None else wanted
        fetched = 2 * most
        while True:
            ids_K, candidates_KD = corpus.nearest(targets_TD, fetched)
            read = corpus.read(ids_K.tolist())
            telling = {held.document} | copies(
                held, [(source.document, tokens) for source, tokens in read.values()]
            )
            free_K = [
                at
                for at, i in enumerate(ids_K.tolist())
                if i in read and read[i][0].document not in telling
            ]
            if len(free_K) >= most or fetched >= everything:
                break
            fetched *= 2
        free_K = free_K[:most]
        choice = choose("sift", candidates_KD[free_K], targets_TD, STEPS, regularisation)
        return tuple(read[int(ids_K[free_K[pick]])][1] for pick in choice.picks)


def calibrate(
    selector: Selector,
    model: str,
    corpus: str,
    documents: int,
    on_setting: Callable[[str, int], Callable[[], None]] = lambda what, count: lambda: None,
) -> BestSettings:
    """Search on half of the documents, judge on the other half.

    Args:
        selector: over the corpus, for this model.
        model: hub id or folder of the base model.
        corpus: its name or id.
        documents: how many are held out, four at least.
        on_setting: told of each setting and of how many documents it is tried on; gives what is
            called after each.

    Raises:
        CorpusError: there is no such corpus, or it was made with another embedder or tokenizer.
        CalibrationError: it has too few documents that are long enough.
    """
    bench = Bench(selector, model, corpus, documents)
    choosing, judging = bench.held[::2], bench.held[1::2]
    default = best = Setting(REGULARISATION, bench.learning_rate, bench.default.rank)
    curves: dict[Setting, list[Curve]] = {}
    axes = (
        [partial(replace, learning_rate=factor * default.learning_rate) for factor in FACTORS],
        [partial(replace, regularisation=value) for value in REGULARISATIONS],
        [partial(replace, rank=max(1, round(factor * default.rank))) for factor in RANKS],
    )
    for axis in axes:
        for changed in axis:
            setting = changed(best)
            if setting not in curves:
                after_each = on_setting(f"choosing: {told(setting)}", len(choosing))
                curves[setting] = bench.measure(setting, choosing, after_each)
        best = min(curves, key=lambda each: _last(curves[each]))
    judged = {
        each: bench.measure(each, judging, on_setting(f"judging: {told(each)}", len(judging)))
        for each in dict.fromkeys((default, best))
    }
    if _last(judged[best]) >= _last(judged[default]):
        best = default
    gain = gain_of(curves[best])
    steps, gain_share = stopping(judged[best], gain)
    calibration = Calibration(
        regularisation=best.regularisation,
        gain=gain,
        learning_rate=best.learning_rate,
        rank=best.rank,
        passages=len(choosing),
        percent_of_base=round(_last(judged[best]), 2),
        percent_by_default=round(_last(judged[default]), 2),
    )
    tried = tuple(Tried(setting, _last(found)) for setting, found in curves.items())
    return BestSettings(
        calibration, tried, _mean(judged[default]), _mean(judged[best]), steps, gain_share
    )


def hold_out(corpus: Corpus, tokenizer: Any, documents: int) -> list[HeldOut]:
    """A sequence of each of so many documents, one of its longest, the same each time.

    Raises:
        CalibrationError: there are too few documents with a sequence of LEAST tokens.
    """
    draw = random.Random(0)  # noqa: S311
    entries = corpus.documents()
    found: list[HeldOut] = []
    for entry in draw.sample(entries, len(entries)):
        sequences = sorted(corpus.token_sequences(entry.name))
        longest = max(map(len, sequences), default=0)
        if longest < LEAST * 4:  # bytes: int32
            continue
        drawn = draw.choice([sequence for sequence in sequences if len(sequence) == longest])
        tokens = tuple(np.frombuffer(drawn, np.int32).tolist())
        found.append(HeldOut(entry.id, tokenizer.decode(tokens[: len(tokens) // 2]), tokens))
        if len(found) == documents:
            return found
    raise CalibrationError(
        f"corpus {corpus.name!r} has {len(found)} documents with a sequence of {LEAST} tokens or more, and "
        f"{documents} are to be held out: add documents, or hold out fewer (--documents)"
    )


def copies(held: HeldOut, sequences: Iterable[tuple[int, Sequence[int]]]) -> set[int]:
    """Documents that hold at least half of the runs of RUN tokens of what is held out.

    Args:
        held: what is held out.
        sequences: document and tokens of each.
    """
    wanted = _runs(held.tokens)
    shared: dict[int, set[tuple[int, ...]]] = {}
    for document, tokens in sequences:
        shared.setdefault(document, set()).update(wanted & _runs(tokens))
    return {document for document, runs in shared.items() if 2 * len(runs) >= len(wanted)}


def gain_of(curves: Sequence[Curve], kept: float = KEPT) -> float:
    """The largest of GAINS that keeps that share of what all steps bring, else the smallest.

    The built-in one where they bring nothing.
    """
    if _last(curves) >= 100 and AUTO.gain is not None:
        return AUTO.gain
    return max((gain for gain in GAINS if stopping(curves, gain)[1] >= kept), default=GAINS[0])


def stopping(curves: Sequence[Curve], gain: float) -> tuple[float, float]:
    """How many steps are taken on average, and which share they bring of what all of them bring.

    The share is 0 where all steps bring nothing.
    """
    ended = [curve.stopped(gain) for curve in curves]
    whole = sum(100 - curve.percent[-1] for curve in curves)
    brought = sum(100 - curve.percent[kept] for curve, (_, kept) in zip(curves, ended, strict=True))
    return sum(taken for taken, _ in ended) / len(ended), brought / whole if whole > 0 else 0.0


def told(setting: Setting) -> str:
    """A setting in words."""
    return f"lambda' {setting.regularisation:g}, learning rate {setting.learning_rate:.2g}, rank {setting.rank}"


def _mean(curves: Sequence[Curve]) -> tuple[float, ...]:
    mean: list[float] = np.mean([curve.percent for curve in curves], axis=0).tolist()
    return tuple(mean)


def _last(curves: Sequence[Curve]) -> float:
    return _mean(curves)[-1]


def _runs(tokens: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[start : start + RUN]) for start in range(len(tokens) - RUN + 1)}
