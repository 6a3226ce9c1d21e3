"""Variants: ways to select training data and to train on it, measured on held-out passages.

Selector, trainer and defaults are the server's own. The suffix is scored in the trainer's model in
float32, which a test compares with vLLM's log-probabilities. Many passages are adapted at once,
which changes only rounding; those whose seconds count are adapted alone. The seconds include
neither scoring nor the export of adapters to score. Knows nothing of tables and intervals.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from adapters import Trainer, TrainerConfig, TrainingProgress, TrainingRequest
from benchmarks.harness.provenance import CACHE
from benchmarks.quality.centred import Centred
from benchmarks.quality.full_training import FullTraining
from benchmarks.quality.measurements import Measurement
from benchmarks.quality.passages import PREFIX, Passage, open_scorer
from selection import Selection, Selector, SelectorConfig
from selection.corpus.pool import CorpusPool
from selection.embedding import DEFAULT, Prompt
from selection.request import SelectionRequest
from selection.strategies.registry import REGULARISATION
from selection.threaded_embedder import ThreadedEmbedder

STEPS = 50
# Name of an embedder: the run's own, minus the mean over its corpus.
CENTRED = "centred"
# Numbers of steps after which the suffix is scored.
SCORED_STEPS = (0, 1, 3, 5, 7, 10, 13, 16, 20, 25, 30, 40, STEPS)


@dataclass(frozen=True)
class Variant:
    """A way to select data and to train on it; defaults are the server's.

    Attributes:
        name: name in tables.
        strategy: selection strategy.
        regularisation: lambda' of SIFT.
        candidates: K; None takes the whole corpus.
        near: whether near duplicates of held-out documents stay in the corpus.
        share: per cent of the corpus to select from, by document.
        copies: copies of each sequence in the corpus, for "sift" and "nn".
        plan: training plan.
        order: order of the selected sequences in training.
        learning_rate: None takes the trainer's default.
        rank: LoRA rank.
        scale: LoRA scale; None takes the trainer's default.
        targets: projections to train.
        in_context: put the selected sequences before the prompt, as far as the context allows,
            instead of training on them.
        whole: the whole passage is the prompt, and is scored, as in the paper.
        embedder: embedder of corpus and prompt; None takes the run's.
        full: train all weights instead of a LoRA adapter.
    """

    name: str
    strategy: str = "sift"
    regularisation: float = REGULARISATION
    candidates: int | None = SelectorConfig.candidates
    near: bool = False
    share: int = 100
    copies: int = 1
    plan: str = "sequential"
    order: Literal["chosen", "reversed", "shuffled"] = "chosen"
    learning_rate: float | None = None
    rank: int = TrainerConfig.rank
    scale: float | None = None
    targets: tuple[str, ...] = TrainerConfig.targets
    in_context: bool = False
    whole: bool = False
    embedder: str | None = None
    full: bool = False


class VariantRunner:
    """A resident selector and trainers, which measure variants; for one thread.

    Args:
        model: hub id or folder of the base model.
        embedder: name for `selection.embedding.load_embedder`.
        at: numbers of steps after which prompt and suffix are scored.
    """

    def __init__(
        self, model: str, embedder: str = DEFAULT, at: Sequence[int] = SCORED_STEPS
    ) -> None:
        self.model, self._at = model, at
        self._selectors: dict[str | None, Selector] = {None: open_selector(embedder, model)}
        self._embedder = embedder
        self._trainers: dict[TrainerConfig, tuple[Trainer, Trainer]] = {}
        self._full: FullTraining | None = None

    def measure(
        self,
        variant: Variant,
        passages: Sequence[Passage],
        corpora: Mapping[str | None, str],
        alone: bool = False,
    ) -> list[Measurement]:
        """Select for each passage, train for all at once, and score.

        Args:
            variant: how to select and train.
            passages: passages to measure; a single one where seconds count.
            corpora: name of the corpus of each embedder; None is the run's.
            alone: whether nothing else computes meanwhile.
        """
        trainer, scorer = self._trainer(variant)
        selections = [self._select(variant, passage, corpora) for passage in passages]
        if variant.in_context:
            trained = [_Training() for _ in passages]
        elif variant.full:
            trained = [
                self._train_fully(variant, *pair) for pair in zip(passages, selections, strict=True)
            ]
        else:
            running = [
                _start_training(trainer, variant, *pair, self._at)
                for pair in zip(passages, selections, strict=True)
            ]
            trained = [finish() for finish in running]
        rows = []
        for passage, selection, training in zip(passages, selections, trained, strict=True):
            bits = partial(_bits, scorer, variant, passage)
            bits_by_steps = (
                {"0": bits()}
                | {str(used): bits(weights) for used, weights in training.weights.items()}
                | training.bits
            )
            prompt = {"0": _prompt_bits(scorer, passage)}
            prompt |= {
                str(used): _prompt_bits(scorer, passage, weights)
                for used, weights in training.weights.items()
            }
            if variant.in_context:
                bits_by_steps |= _in_context(
                    bits, scorer.base.context - len(passage.tokens), selection
                )
            rows.append(
                Measurement(
                    variant=variant.name,
                    group=passage.group,
                    document=passage.name,
                    passage=passage.key,
                    prompt=prompt,
                    bits=bits_by_steps,
                    sigma=selection.uncertainty,
                    irreducible=selection.irreducible,
                    losses=training.losses,
                    choosing_seconds=sum(selection.seconds.values()),
                    step_seconds=tuple(training.seconds),
                    alone=alone,
                    distinct=len(set(selection.ids)),
                )
            )
        return rows

    def _train_fully(self, variant: Variant, passage: Passage, selection: Selection) -> _Training:
        self._full = self._full or FullTraining(self.model)
        assert variant.learning_rate is not None
        trained = self._full.train(
            selection.sequences, variant.learning_rate, passage.tokens, PREFIX, SCORED_STEPS
        )
        bits = {str(used): _per_byte(nats, passage.suffix) for used, nats in trained.nats.items()}
        return _Training(bits=bits, losses=trained.losses, seconds=list(trained.seconds))

    def _select(
        self, variant: Variant, passage: Passage, corpora: Mapping[str | None, str]
    ) -> Selection:
        if variant.embedder not in self._selectors:
            centred_on = (self._embedder, self.model, corpora[None])
            self._selectors[variant.embedder] = open_selector(
                variant.embedder or "", self.model, centred_on
            )
        selector = self._selectors[variant.embedder]
        # SIFT may repeat a sequence without copies.
        candidates = variant.candidates and variant.candidates // variant.copies
        selector.config = replace(
            selector.config, regularisation=variant.regularisation, candidates=candidates
        )
        conditions: list[dict[str, Any]] = []
        if not variant.near:
            conditions.append({"type": "eq", "key": "near", "value": False})
        if variant.share < 100:
            conditions.append({"type": "lt", "key": "share", "value": variant.share})
        prompt = Prompt(passage.prefix + passage.suffix if variant.whole else passage.prefix)
        selection = selector.select(
            SelectionRequest(
                [prompt],
                corpora[variant.embedder],
                steps=STEPS,
                strategy=variant.strategy,
                filter={"type": "and", "filters": conditions} if conditions else None,
            )
        )
        return with_copies(selection, variant.copies) if variant.strategy == "nn" else selection

    def _trainer(self, variant: Variant) -> tuple[Trainer, Trainer]:
        """The trainer and the scorer of a variant."""
        config = TrainerConfig(
            self.model, rank=variant.rank, scale=variant.scale, targets=variant.targets
        )
        if config not in self._trainers:
            self._trainers[config] = Trainer(config), open_scorer(config)
        return self._trainers[config]


def with_copies(selection: Selection, copies: int, steps: int = STEPS) -> Selection:
    """The selection of nearest neighbours in a corpus with `copies` of each sequence."""
    picks = [pick for pick in range(len(selection.ids)) for _ in range(copies)][:steps]
    return replace(
        selection,
        ids=tuple(selection.ids[pick] for pick in picks),
        sequences=tuple(selection.sequences[pick] for pick in picks),
        scored=tuple(selection.scored[pick] for pick in picks),
    )


@dataclass
class _Training:
    """The result of a training.

    Attributes:
        weights: adapter by steps.
        bits: bits per byte by steps, where these are known already.
        losses: loss before each step.
        seconds: seconds until the end of each step.
    """

    weights: dict[int, bytes] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    seconds: list[float] = field(default_factory=list)


def _start_training(
    trainer: Trainer, variant: Variant, passage: Passage, selection: Selection, at: Sequence[int]
) -> Callable[[], _Training]:
    """Start a training; returns a function that waits for its end."""
    trained = _Training()
    seconds, last = 0.0, time.perf_counter()

    def on_step(progress: TrainingProgress) -> None:
        nonlocal seconds, last
        seconds += time.perf_counter() - last
        trained.seconds.append(seconds)
        if progress.sequences_used in at:
            trained.weights[progress.sequences_used] = trainer.export(progress.slot)
        last = time.perf_counter()

    sequences = list(selection.sequences)
    if variant.order == "reversed":
        sequences.reverse()
    elif variant.order == "shuffled":
        random.Random(passage.key).shuffle(sequences)  # noqa: S311
    training = trainer.submit(
        TrainingRequest(sequences, plan=variant.plan, learning_rate=variant.learning_rate),
        on_step=on_step,
    )

    def finish() -> _Training:
        trained.losses = training.result().losses
        return trained

    return finish


def _bits(
    scorer: Trainer,
    variant: Variant,
    passage: Passage,
    weights: bytes | None = None,
    context: tuple[int, ...] = (),
) -> float:
    """Bits per byte of a passage's scored part, under an adapter or with context before it."""
    start, text = (
        (1, passage.prefix + passage.suffix) if variant.whole else (PREFIX, passage.suffix)
    )
    return _per_byte(scorer.nats([*context, *passage.tokens], len(context) + start, weights), text)


def _prompt_bits(scorer: Trainer, passage: Passage, weights: bytes | None = None) -> float:
    """Bits per byte of the prompt."""
    return _per_byte(scorer.nats(passage.tokens[:PREFIX], 1, weights), passage.prefix)


def _per_byte(nats: float, text: str) -> float:
    return nats / math.log(2) / len(text.encode())


def _in_context(
    bits: Callable[..., float], max_tokens: int, selection: Selection
) -> dict[str, float]:
    """Bits per byte by number of selected sequences before the prompt, up to `max_tokens`."""
    bits_by_steps: dict[str, float] = {}
    context: tuple[int, ...] = ()
    for count, sequence in enumerate(selection.sequences, 1):
        if len(context) + len(sequence) > max_tokens:
            break
        context = (*sequence, *context)  # the first selected sequence is next to the prompt
        bits_by_steps[str(count)] = bits(context=context)
    return bits_by_steps


def open_selector(
    embedder: str, model: str, centred_on: tuple[str, str, str] | None = None
) -> Selector:
    """A selector over the benchmarks' corpora.

    Args:
        embedder: name for `selection.embedding.load_embedder`, or CENTRED.
        model: hub id or folder of the base model.
        centred_on: for CENTRED: an embedder, the base model, and a corpus of that embedder.
    """
    root = CACHE / "corpora"
    if embedder != CENTRED:
        return Selector(SelectorConfig(root, embedder, model))
    assert centred_on is not None
    selector = Selector(SelectorConfig(root, centred_on[0], model))
    with selector.corpora.open(centred_on[2]) as corpus:
        centred = Centred(selector.embedder, corpus)
    selector.corpora.close()
    selector.embedder = ThreadedEmbedder(lambda: centred)
    selector.corpora = CorpusPool(root, selector.embedder, None)
    return selector
