"""Selector: from a prompt to the token sequences to train on.

Embeds the prompt, finds the nearest candidates in a corpus, and chooses among them by SIFT, with
the stop of ADAPTIVE SIFT. The embedder and the open corpora are shared with other threads. Any
number of threads may select at once: they take turns in small units of work, so that a request with
many prompts delays no other, and each checks its limit between two units.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np

from selection.config import SelectorConfig as SelectorConfig
from selection.corpus.calibration import Calibration, calibration_of, model_digest
from selection.corpus.pool import CorpusPool
from selection.corpus.shards import ShardCall, ShardedCorpora
from selection.corpus.sqlite_store import CorpusError, Source
from selection.embedding import Embeddings, Prompt, load_embedder
from selection.errors import SelectionError, first_line
from selection.examples.example import Spans
from selection.examples.rendering import Renderer
from selection.examples.templates import set_chat_template
from selection.ingest.ingest import tokenizer_digest
from selection.limit import UNLIMITED, Limit
from selection.request import SelectionRequest
from selection.strategies.registry import REGULARISATION, choose
from selection.strategies.sift import irreducible, sift
from selection.targets import MAX_TARGETS, Truncation, allocate_windows, evenly_spaced
from selection.threaded_embedder import ThreadedEmbedder

# A choice is repeated when a document that it uses was deleted before its sequences were read.
_MAX_ATTEMPTS = 20


class SelectionStop(StrEnum):
    """What ended a selection."""

    STEPS = "steps"  # as many sequences were chosen as were asked for
    ALPHA = "alpha"  # the stopping rule of Adaptive SIFT
    CORPUS = "corpus"  # the corpus is empty, or no document passes the filter


@dataclass(frozen=True)
class Selection:
    """What to train on, in order.

    Attributes:
        corpus: id of the corpus.
        ids: sequence ids, repeats allowed.
        sequences: tokens of each id.
        scored: the tokens of each to train on; None for all but the first.
        sources: each distinct sequence and how often it was chosen, most used first.
        uncertainty: sigma_0 .. sigma_n, one entry more than `ids`.
        irreducible: sigma_infinity, the uncertainty that would be left if every candidate were seen
            infinitely often.
        stop: what ended the selection.
        calibration: the corpus's calibration for this base model, if there is one.
        seconds: duration of each stage: embed, search, select.
        truncation: how much of the prompts was used, if not all.
    """

    corpus: str
    ids: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    scored: tuple[Spans | None, ...]
    sources: tuple[tuple[Source, int], ...]
    uncertainty: tuple[float, ...]
    irreducible: float
    stop: SelectionStop
    calibration: Calibration | None
    seconds: dict[str, float]
    truncation: Truncation | None = None


class Selector:
    """Chooses training data for prompts.

    Args:
        config: where the corpora are, and how data is chosen.
        shards: calls to the processes that search the shards of large corpora, if any.
        embedder: embeds prompts and documents; None loads `config.embedder`.

    Raises:
        EmbedderError: the embedder cannot be loaded.
        SelectionError: the base model's tokenizer cannot be loaded.
    """

    def __init__(
        self,
        config: SelectorConfig,
        shards: Sequence[ShardCall] = (),
        embedder: ThreadedEmbedder | None = None,
    ) -> None:
        self.config = config
        self.embedder = embedder or ThreadedEmbedder(
            partial(
                load_embedder, config.embedder, base_model=config.base_model, device=config.device
            )
        )
        digests = (None, None) if config.base_model is None else _digests(config)
        self._model = None if config.base_model is None else model_digest(config.base_model)
        self.corpora = CorpusPool(config.root, self.embedder, *digests)
        self._shards = shards
        text_TD = self.embedder.embed(["warm-up, so that no request pays for the first call"])
        # Compiles SIFT, or loads its cached machine code.
        sift(text_TD, text_TD, steps=1, regularisation=REGULARISATION)

    @property
    def searched(self) -> CorpusPool | ShardedCorpora:
        """The open corpora; a corpus in shards is searched as one."""
        return ShardedCorpora(self.corpora, self._shards) if self._shards else self.corpora

    def check(self, corpus: str) -> None:
        """Open a corpus, unless it is open.

        Raises:
            CorpusError: as `select`.
        """
        with self.searched.open(corpus):
            pass

    def select(self, request: SelectionRequest, limit: Limit = UNLIMITED) -> Selection:
        """Choose up to `request.steps` sequences.

        Args:
            request: what to choose for, from which corpus, and how.
            limit: how long it may take; checked between units of work.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached before anything was chosen.
            CorpusError: the corpus does not exist, or was made with another embedder, tokenizer or
                chat template.
            ValueError: an unknown strategy, an alpha that is not positive or not SIFT's, or an
                invalid filter.
        """
        corpus, principal = request.corpus, request.principal
        with self.corpora.open(corpus, principal, limit):
            pass  # a corpus that cannot be used is refused before anything is embedded
        started = time.perf_counter()
        targets_TD, truncation = self._targets(request.prompts, limit)
        embedded = time.perf_counter()
        for _ in range(_MAX_ATTEMPTS):
            with self.searched.open(corpus, principal, limit) as opened:
                meta = opened.meta()
                candidates_K, candidates_KD = opened.nearest(
                    targets_TD, self.config.candidates, request.filter
                )
            searched = time.perf_counter()
            if not np.isfinite(candidates_KD).all():
                raise _damaged(corpus, "it contains NaN or infinite embeddings")
            calibration = None if self._model is None else calibration_of(meta, self._model)
            regularisation = self._regularisation(calibration)
            choice = choose(
                request.strategy,
                candidates_KD,
                targets_TD,
                request.steps,
                regularisation,
                alpha=request.alpha,
                seed=request.seed,
                check_cancelled=limit.check,
            )
            irreducible_sigma = irreducible(candidates_KD, targets_TD, check_cancelled=limit.check)
            ids = tuple(int(candidates_K[pick]) for pick in choice.picks)
            with self.corpora.open(corpus, principal, limit) as opened:
                # In a corpus that was replaced meanwhile the same ids mean other sequences.
                same = opened.meta()["uuid"] == meta["uuid"]
                sequences = opened.read(ids) if same else {}
            if same and all(i in sequences for i in ids):
                break
        else:
            raise _damaged(corpus, "its index contains sequences that the corpus does not")
        counts = Counter(ids)
        return Selection(
            corpus=meta["id"],
            ids=ids,
            sequences=tuple(sequences[i].tokens for i in ids),
            scored=tuple(sequences[i].scored for i in ids),
            sources=tuple((sequences[i].source, count) for i, count in counts.most_common()),
            uncertainty=choice.uncertainty,
            irreducible=irreducible_sigma,
            stop=SelectionStop(choice.stop) if len(candidates_K) else SelectionStop.CORPUS,
            calibration=calibration,
            seconds={
                "embed": embedded - started,
                "search": searched - embedded,
                "select": time.perf_counter() - searched,
            },
            truncation=truncation,
        )

    def _targets(
        self, prompts: Sequence[Prompt], limit: Limit
    ) -> tuple[Embeddings, Truncation | None]:
        """The embeddings [T, D] of the windows used, and how much that leaves out."""
        used_prompts = evenly_spaced(prompts, MAX_TARGETS)
        windows = [self.embedder.windows(prompt, limit) for prompt in used_prompts]
        total = sum(len(each) for each in windows)
        texts = [
            text
            for each, used in zip(windows, allocate_windows(list(map(len, windows))), strict=True)
            for text in each[len(each) - used :]
        ]
        truncation = None
        if len(used_prompts) < len(prompts):
            truncation = Truncation(len(used_prompts), len(prompts), "prompts")
        elif len(texts) < total:
            truncation = Truncation(len(texts), total, "windows")
        return self.embedder.embed(texts, limit), truncation

    def _regularisation(self, calibration: Calibration | None) -> float:
        if self.config.regularisation is not None:
            return self.config.regularisation
        return REGULARISATION if calibration is None else calibration.regularisation


def _damaged(corpus: str, why: str) -> CorpusError:
    return CorpusError(
        f"corpus {corpus!r} is damaged: {why}; delete its folder and add its documents again"
    )


def _digests(config: SelectorConfig) -> tuple[str, str]:
    """The digests of the base model's tokenizer and of its chat template."""
    from transformers import AutoTokenizer

    # A library may raise anything for a user's files; `--debug` shows the cause with its traceback.
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.base_model)
    except Exception as problem:
        raise SelectionError(
            f"cannot load the tokenizer of {config.base_model!r}: {first_line(problem)}"
        ) from problem
    set_chat_template(tokenizer, config.chat_template)
    return tokenizer_digest(tokenizer), Renderer(tokenizer).digest
