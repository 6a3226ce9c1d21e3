"""Selector: one prompt in, the sequences to train on out.

Embeds the prompt, takes the nearest candidates of a corpus, and lets SIFT choose among them,
stopping where ADAPTIVE SIFT says so. It holds the embedder and the open corpora, which other
threads may use, too. Any number of threads may select at once: they take turns in small units of
work, so that a request with many prompts holds up no other, and each looks at its limit between two
units.
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
from selection.ingest.ingest import tokenizer_digest
from selection.limit import UNLIMITED, Limit
from selection.request import SelectionRequest
from selection.strategies.registry import REGULARISATION, choose
from selection.strategies.sift import irreducible, sift
from selection.targets import MOST_TARGETS, LeftOut, evenly, used_windows
from selection.threaded_embedder import ThreadedEmbedder

_TRIES = 20  # of a choice whose sequences are gone when they are read: they were deleted in between


class SelectionStop(StrEnum):
    """What ended a selection."""

    STEPS = "steps"  # as many sequences were chosen as were asked for
    ALPHA = "alpha"  # the stopping rule of Adaptive SIFT
    CORPUS = "corpus"  # the corpus is empty, or no document passes the filter


@dataclass(frozen=True)
class Selection:
    """What to train on, in order.

    Attributes:
        corpus: id of the corpus that it was chosen from.
        ids: sequence ids, repeats allowed.
        sequences: their tokens, one tuple an id.
        sources: each distinct sequence with the times it was chosen, most used first.
        uncertainty: sigma_0 .. sigma_n, one more than ids.
        irreducible: sigma_infinity, what would stay uncertain if every candidate were seen
            infinitely often: this corpus cannot tell more.
        stop: what ended it.
        calibration: the corpus's for this base model, if it has been calibrated.
        seconds: per stage: embed, search, select.
        left_out: how much of the prompts was looked at, if it was not all.
    """

    corpus: str
    ids: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[Source, int], ...]
    uncertainty: tuple[float, ...]
    irreducible: float
    stop: SelectionStop
    calibration: Calibration | None
    seconds: dict[str, float]
    left_out: LeftOut | None = None


class Selector:
    """Chooses training data for prompts."""

    def __init__(self, config: SelectorConfig, shards: Sequence[ShardCall] = ()) -> None:
        """Over the corpora under `config.root`, and before them over those that lie in shards."""
        self.config = config
        self.embedder = ThreadedEmbedder(
            partial(
                load_embedder, config.embedder, base_model=config.base_model, device=config.device
            )
        )
        tokenizer = None if config.base_model is None else _tokenizer_of(config.base_model)
        self._model = None if config.base_model is None else model_digest(config.base_model)
        self.corpora = CorpusPool(config.root, self.embedder, tokenizer)
        self._shards = shards
        text_TD = self.embedder.embed(["a first text, so that no request pays for the first call"])
        # Compiles, or loads what was compiled.
        sift(text_TD, text_TD, steps=1, regularisation=REGULARISATION)

    @property
    def searched(self) -> CorpusPool | ShardedCorpora:
        """The open corpora, those that lie in shards as one each."""
        return ShardedCorpora(self.corpora, self._shards) if self._shards else self.corpora

    def check(self, corpus: str) -> None:
        """Open a corpus, or see that it is open.

        Raises:
            CorpusError: as `select`.
        """
        with self.searched.use(corpus):
            pass

    def select(self, request: SelectionRequest, limit: Limit = UNLIMITED) -> Selection:
        """Choose up to `request.steps` sequences.

        Args:
            request: what to choose for, from which corpus, and how.
            limit: how long it may take; checked between units of work.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached before anything was chosen.
            CorpusError: the corpus does not exist, or was made with another embedder or tokenizer.
            ValueError: an unknown strategy, an alpha that is not positive or not SIFT's, or an
                invalid filter.
        """
        corpus, principal = request.corpus, request.principal
        with self.corpora.use(corpus, principal, limit):
            pass  # what is refused is refused before anything is embedded
        started = time.perf_counter()
        targets_TD, left_out = self._targets(request.prompts, limit)
        embedded = time.perf_counter()
        for _ in range(_TRIES):
            with self.searched.use(corpus, principal, limit) as opened:
                meta = opened.meta()
                candidates_K, candidates_KD = opened.nearest(
                    targets_TD, self.config.candidates, request.filter
                )
            searched = time.perf_counter()
            if not np.isfinite(candidates_KD).all():
                raise _damaged(corpus, "it holds embeddings that are none")
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
            lowest = irreducible(candidates_KD, targets_TD, check_cancelled=limit.check)
            ids = tuple(int(candidates_K[pick]) for pick in choice.picks)
            with self.corpora.use(corpus, principal, limit) as opened:
                # Another corpus of that name, or other embeddings, would have other sequences by
                # the same numbers.
                same = opened.meta()["uuid"] == meta["uuid"]
                found = opened.read(ids) if same else {}
            if same and all(i in found for i in ids):
                break
            # A document was deleted meanwhile: choose again without it.
        else:
            raise _damaged(corpus, "its index names sequences that it has not")
        counts = Counter(ids)
        return Selection(
            corpus=meta["id"],
            ids=ids,
            sequences=tuple(found[i][1] for i in ids),
            sources=tuple((found[i][0], times) for i, times in counts.most_common()),
            uncertainty=choice.uncertainty,
            irreducible=lowest,
            stop=SelectionStop(choice.stop) if len(candidates_K) else SelectionStop.CORPUS,
            calibration=calibration,
            seconds={
                "embed": embedded - started,
                "search": searched - embedded,
                "select": time.perf_counter() - searched,
            },
            left_out=left_out,
        )

    def _targets(
        self, prompts: Sequence[Prompt], limit: Limit
    ) -> tuple[Embeddings, LeftOut | None]:
        """The embeddings [T, D] of the windows that are looked at, and what that leaves out."""
        looked_at = evenly(prompts, MOST_TARGETS)
        windows = [self.embedder.segments(prompt, limit) for prompt in looked_at]
        used = used_windows([len(each) for each in windows])
        texts = [
            text
            for each, count in zip(windows, used, strict=True)
            for text in each[len(each) - count :]
        ]
        there = sum(len(each) for each in windows)
        left_out = LeftOut(len(texts), there, "windows") if len(texts) < there else None
        if len(looked_at) < len(prompts):
            left_out = LeftOut(len(looked_at), len(prompts), "prompts")
        return self.embedder.embed(texts, limit), left_out

    def _regularisation(self, calibration: Calibration | None) -> float:
        if self.config.regularisation is not None:
            return self.config.regularisation
        return REGULARISATION if calibration is None else calibration.regularisation


def _damaged(corpus: str, why: str) -> CorpusError:
    return CorpusError(
        f"corpus {corpus!r} is damaged: {why}; delete its folder and add its documents again"
    )


def _tokenizer_of(base_model: str) -> str:
    from transformers import AutoTokenizer

    # Whatever a library makes of somebody's files: the cause is in the traceback that `--debug`
    # shows.
    try:
        return tokenizer_digest(AutoTokenizer.from_pretrained(base_model))
    except Exception as problem:
        raise SelectionError(
            f"cannot load the tokenizer of {base_model!r}: {first_line(problem)}"
        ) from problem
