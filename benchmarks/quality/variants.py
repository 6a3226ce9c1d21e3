"""Variants: ways to choose data and to learn from it, and what one of them makes of one passage.

What is measured is the server's own: selector, trainer, defaults. The suffix is scored in the
trainer's model in float32, which a test holds to vLLM's log-probabilities. Many passages are
adapted at once, which makes no difference to what they learn but for rounding; a few alone, whose
seconds count. Making copies of the adapter to be scored is not counted, nor is scoring. It knows
nothing of tables and intervals (`benchmarks/quality/main.py`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from adapters import Trainer, TrainerConfig, TrainingProgress, TrainingRequest
from benchmarks.harness.provenance import CACHE
from benchmarks.quality.centred import Centred
from benchmarks.quality.full_training import FullTraining
from benchmarks.quality.passages import PREFIX, Passage, open_scorer
from selection import Selection, Selector, SelectorConfig
from selection.corpus.pool import CorpusPool
from selection.embedding import DEFAULT, Prompt
from selection.request import SelectionRequest
from selection.strategies.registry import REGULARISATION
from selection.threaded_embedder import ThreadedEmbedder

STEPS = 50
CENTRED = "centred"  # the name of an embedder: the run's own, less the mean over its corpus
AT = (0, 1, 3, 5, 7, 10, 13, 16, 20, 25, 30, 40, STEPS)  # steps after which the suffix is scored


@dataclass(frozen=True)
class Variant:
    """A way to choose data and to learn from it; what is not said is the server's default.

    Attributes:
        name: in tables.
        strategy: of selection.
        regularisation: lambda'.
        candidates: K; None takes the whole corpus.
        near: whether documents that are nearly the held-out one stay in the corpus.
        share: per cent of the corpus, by document.
        copies: how often the corpus holds each of its sequences, as crawls do; of "sift" and "nn".
        plan: of training.
        order: of the chosen sequences.
        learning_rate: None takes the trainer's default.
        rank, scale: of the LoRA.
        targets: projections that are trained.
        in_context: put what was chosen before the prompt, as far as the context goes, instead of
            training.
        whole: the paper's own way: the whole passage is the prompt, and the whole passage is
            scored.
        embedder: of corpus and prompt; None takes the run's.
        full: all weights learn, and no LoRA.
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


@dataclass(frozen=True)
class Row:
    """What a variant made of a passage.

    Attributes:
        variant: its name.
        group: of the passage.
        document: of the passage.
        passage: its key.
        prompt: bits per byte of the prefix, as `bits`.
        bits: bits per byte of the suffix by the steps taken before; 0 is the base model's. Of a
            variant in context by the sequences before the prompt.
        sigma: sigma_0 to sigma_n.
        irreducible: sigma_infinity.
        losses: nats a token before each step.
        choosing_seconds: to embed, search and select.
        step_seconds: from the beginning of training to the end of each step.
        alone: whether these are those of a request that has the processor to itself.
        distinct: how many different sequences were chosen.
    """

    variant: str
    group: str
    document: str
    passage: str
    prompt: dict[str, float]
    bits: dict[str, float]
    sigma: tuple[float, ...]
    irreducible: float
    losses: tuple[float, ...]
    choosing_seconds: float
    step_seconds: tuple[float, ...]
    alone: bool
    distinct: int

    @property
    def surprise(self) -> float:
        """Bits per byte of the prompt under the base model."""
        return self.prompt["0"]

    @property
    def base(self) -> float:
        """Bits per byte of the base model."""
        return self.bits["0"]

    @property
    def last(self) -> float:
        """After all steps."""
        return self.bits[max(self.bits, key=int)]


class Laboratory:
    """Resident selector and trainers; one thread.

    Args:
        model: hub id or folder of the base model.
        embedder: as in `selection.embedding.load_embedder`.
        at: the steps after which prompt and suffix are scored.
    """

    def __init__(self, model: str, embedder: str = DEFAULT, at: Sequence[int] = AT) -> None:
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
    ) -> list[Row]:
        """Choose for each passage, train for them all at once, score.

        Args:
            variant: how.
            passages: what is scored; one, where seconds count.
            corpora: by embedder; of None, that of the run.
            alone: whether nothing else computes meanwhile.
        """
        trainer, scorer = self._trainer(variant)
        chosen = [self._choose(variant, passage, corpora) for passage in passages]
        if variant.in_context:
            learnt = [_Learnt() for _ in passages]
        elif variant.full:
            learnt = [
                self._learn_fully(variant, *each) for each in zip(passages, chosen, strict=True)
            ]
        else:
            learning = [
                _learn(trainer, variant, *each, self._at)
                for each in zip(passages, chosen, strict=True)
            ]
            learnt = [ended() for ended in learning]
        rows = []
        for passage, selection, each in zip(passages, chosen, learnt, strict=True):
            bits = partial(_bits, scorer, variant, passage)
            found = (
                {"0": bits()}
                | {str(used): bits(weights) for used, weights in each.weights.items()}
                | each.bits
            )
            prompt = {"0": _surprise(scorer, passage)}
            prompt |= {
                str(used): _surprise(scorer, passage, weights)
                for used, weights in each.weights.items()
            }
            if variant.in_context:
                found |= _in_context(bits, scorer.base.context - len(passage.tokens), selection)
            rows.append(
                Row(
                    variant=variant.name,
                    group=passage.group,
                    document=passage.name,
                    passage=passage.key,
                    prompt=prompt,
                    bits=found,
                    sigma=selection.uncertainty,
                    irreducible=selection.irreducible,
                    losses=each.losses,
                    choosing_seconds=sum(selection.seconds.values()),
                    step_seconds=tuple(each.seconds),
                    alone=alone,
                    distinct=len(set(selection.ids)),
                )
            )
        return rows

    def _learn_fully(self, variant: Variant, passage: Passage, selection: Selection) -> _Learnt:
        self._full = self._full or FullTraining(self.model)
        assert variant.learning_rate is not None
        trained = self._full.train(
            selection.sequences, variant.learning_rate, passage.tokens, PREFIX, AT
        )
        bits = {str(used): _per_byte(nats, passage.suffix) for used, nats in trained.nats.items()}
        return _Learnt(bits=bits, losses=trained.losses, seconds=list(trained.seconds))

    def _choose(
        self, variant: Variant, passage: Passage, corpora: Mapping[str | None, str]
    ) -> Selection:
        if variant.embedder not in self._selectors:
            of = (self._embedder, self.model, corpora[None])
            self._selectors[variant.embedder] = open_selector(
                variant.embedder or "", self.model, of
            )
        selector = self._selectors[variant.embedder]
        # SIFT may repeat one as it is.
        candidates = variant.candidates and variant.candidates // variant.copies
        selector.config = replace(
            selector.config, regularisation=variant.regularisation, candidates=candidates
        )
        wanted: list[dict[str, Any]] = []
        if not variant.near:
            wanted.append({"type": "eq", "key": "near", "value": False})
        if variant.share < 100:
            wanted.append({"type": "lt", "key": "share", "value": variant.share})
        prompt = Prompt(passage.prefix + passage.suffix if variant.whole else passage.prefix)
        selection = selector.select(
            SelectionRequest(
                [prompt],
                corpora[variant.embedder],
                steps=STEPS,
                strategy=variant.strategy,
                filter={"type": "and", "filters": wanted} if wanted else None,
            )
        )
        return copied(selection, variant.copies) if variant.strategy == "nn" else selection

    def _trainer(self, variant: Variant) -> tuple[Trainer, Trainer]:
        """The trainer, and the one that scores."""
        config = TrainerConfig(
            self.model, rank=variant.rank, scale=variant.scale, targets=variant.targets
        )
        if config not in self._trainers:
            self._trainers[config] = Trainer(config), open_scorer(config)
        return self._trainers[config]


def copied(selection: Selection, copies: int, steps: int = STEPS) -> Selection:
    """What nearest neighbours choose in so many steps where every sequence is there so many times."""
    order = [pick for pick in range(len(selection.ids)) for _ in range(copies)][:steps]
    return replace(
        selection,
        ids=tuple(selection.ids[pick] for pick in order),
        sequences=tuple(selection.sequences[pick] for pick in order),
    )


@dataclass
class _Learnt:
    """What a training left: weights after steps, or bits where these are known, losses, and seconds
    until each step.
    """

    weights: dict[int, bytes] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    seconds: list[float] = field(default_factory=list)


def _learn(
    trainer: Trainer, variant: Variant, passage: Passage, selection: Selection, at: Sequence[int]
) -> Callable[[], _Learnt]:
    """Begin to learn what was chosen; gives what waits for the end."""
    learnt = _Learnt()
    spent, last = 0.0, time.perf_counter()

    def keep(progress: TrainingProgress) -> None:
        nonlocal spent, last
        spent += time.perf_counter() - last
        learnt.seconds.append(spent)
        if progress.sequences_used in at:
            learnt.weights[progress.sequences_used] = trainer.export(progress.slot)
        last = time.perf_counter()

    sequences = list(selection.sequences)
    if variant.order == "reversed":
        sequences.reverse()
    elif variant.order == "shuffled":
        random.Random(passage.key).shuffle(sequences)  # noqa: S311
    training = trainer.submit(
        TrainingRequest(sequences, plan=variant.plan, learning_rate=variant.learning_rate),
        on_step=keep,
    )

    def ended() -> _Learnt:
        learnt.losses = training.result().losses
        return learnt

    return ended


def _bits(
    scorer: Trainer,
    variant: Variant,
    passage: Passage,
    weights: bytes | None = None,
    before: tuple[int, ...] = (),
) -> float:
    """Bits per byte of what is scored of a passage, under an adapter, or with other tokens before
    it.
    """
    start, text = (
        (1, passage.prefix + passage.suffix) if variant.whole else (PREFIX, passage.suffix)
    )
    return _per_byte(scorer.nats([*before, *passage.tokens], len(before) + start, weights), text)


def _surprise(scorer: Trainer, passage: Passage, weights: bytes | None = None) -> float:
    """Bits per byte of the prompt."""
    return _per_byte(scorer.nats(passage.tokens[:PREFIX], 1, weights), passage.prefix)


def _per_byte(nats: float, text: str) -> float:
    return nats / math.log(2) / len(text.encode())


def _in_context(bits: Callable[..., float], most: int, selection: Selection) -> dict[str, float]:
    """Bits per byte with so many of the chosen sequences before the prompt as go into `most`
    tokens.
    """
    found: dict[str, float] = {}
    before: tuple[int, ...] = ()
    for count, sequence in enumerate(selection.sequences, 1):
        if len(before) + len(sequence) > most:
            break
        before = (*sequence, *before)  # what was chosen first lies next to the prompt
        found[str(count)] = bits(before=before)
    return found


def open_selector(embedder: str, model: str, of: tuple[str, str, str] | None = None) -> Selector:
    """A selector over the benchmarks' corpora.

    Args:
        embedder: as in `selection.embedding.load_embedder`; or CENTRED.
        model: hub id or folder of the base model.
        of: what CENTRED centres: an embedder, the base model, and a corpus that was embedded by it.
    """
    root = CACHE / "corpora"
    if embedder != CENTRED:
        return Selector(SelectorConfig(root, embedder, model))
    assert of is not None
    selector = Selector(SelectorConfig(root, of[0], model))
    with selector.corpora.open(of[2]) as corpus:
        centred = Centred(selector.embedder, corpus)
    selector.corpora.close()
    selector.embedder = ThreadedEmbedder(lambda: centred)
    selector.corpora = CorpusPool(root, selector.embedder, None)
    return selector


def record(row: Row) -> dict[str, Any]:
    """For a line of JSON, in as many digits as matter."""
    said = asdict(row)
    rounded: dict[str, Any] = {name: _rounded(value) for name, value in said.items()}
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, tuple | list) else value
