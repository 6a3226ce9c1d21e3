"""Selector: from a prompt to the token sequences to train on.

Embeds the prompt, finds the nearest candidates in a corpus, and chooses among them and those that
the request brings by a strategy: SIFT, with the stop of ADAPTIVE SIFT, unless the request names
another or its corpus is calibrated to another. The embedder and the open corpora are shared with
other threads. Any number of threads may select at once: they take turns in small units
of work, so that a request with many prompts delays no other, and each checks its limit between two
units.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from selection.access import OPERATOR, Principal
from selection.config import SelectorConfig as SelectorConfig
from selection.corpus.calibration import Calibration, calibration_of, model_digest
from selection.corpus.lookup import CorpusNames
from selection.corpus.pool import CorpusPool
from selection.corpus.sequences import StoredSequence
from selection.corpus.shards import ShardCall, ShardedCorpora
from selection.corpus.sqlite_store import CorpusError
from selection.corpus.trained.adapter import TrainedAdapter
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, LearntCorpus, StartFound
from selection.corpus.trained.places import corpora_with_adapter
from selection.embedding import Embeddings, Prompt, load_embedder
from selection.errors import SelectionError, first_line
from selection.examples.rendering import Renderer
from selection.examples.templates import set_chat_template
from selection.ingest.ingest import tokenizer_digest
from selection.limit import UNLIMITED, Limit
from selection.request import Candidate, SelectionRequest, candidates_by_id, forms_of
from selection.selection import Selection as Selection
from selection.selection import SelectionStop as SelectionStop
from selection.strategies.registry import REGULARISATION, choose
from selection.strategies.sift import irreducible, sift
from selection.targets import MAX_TARGETS, Truncation, allocate_windows, evenly_spaced
from selection.threaded_embedder import ThreadedEmbedder

# A choice is repeated when a document that it uses was deleted before its sequences were read.
_MAX_ATTEMPTS = 20


class _Found(NamedTuple):
    """The corpus's metadata, its nearest sequences: their ids, and their embeddings [N, D], and
    what to start from.
    """

    meta: Mapping[str, str]
    ids: tuple[int, ...]
    embeddings: Embeddings
    start: StartFound


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
        self._names = CorpusNames(config.root)
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
        """Choose up to as many sequences as the request asks for.

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
        if request.corpus is not None:
            # A corpus that cannot be used is refused before anything is embedded.
            with self.corpora.open(request.corpus, request.principal, limit):
                pass
        started = time.perf_counter()
        targets_TD, truncation = self._targets(request.prompts, limit)
        brought_BD = self._embed_candidates(request.candidates, limit)
        brought = candidates_by_id(request.candidates)
        embedded = time.perf_counter()
        for _ in range(_MAX_ATTEMPTS):
            found = self._search(request, targets_TD, limit)
            searched = time.perf_counter()
            candidates_KD = np.concatenate([brought_BD, found.embeddings])
            candidates_K = [*brought, *found.ids]
            calibration = None if request.corpus is None else self._calibration(found.meta)
            strategy = request.strategy_for(calibration)
            choice = choose(
                strategy,
                candidates_KD,
                targets_TD,
                request.steps_for(calibration),
                self._regularisation(calibration),
                alpha=request.alpha,
                seed=request.seed,
                check_cancelled=limit.check,
            )
            irreducible_sigma = irreducible(candidates_KD, targets_TD, check_cancelled=limit.check)
            ids = tuple(candidates_K[pick] for pick in choice.picks)
            sequences = brought | self._read(request, found.meta, ids, limit)
            if all(i in sequences for i in ids):
                break
        else:
            raise _damaged(request.corpus, "its index contains sequences that the corpus does not")
        counts = Counter(ids)
        forms = forms_of(ids, sequences, request.candidates)
        return Selection(
            corpus=found.meta.get("id"),
            ids=ids,
            sequences=tuple(tokens for tokens, _ in forms),
            scored=tuple(scored for _, scored in forms),
            sources=tuple((sequences[i].source, count) for i, count in counts.most_common()),
            uncertainty=choice.uncertainty,
            irreducible=irreducible_sigma,
            stop=SelectionStop(choice.stop) if candidates_K else SelectionStop.CORPUS,
            calibration=calibration,
            strategy=strategy,
            start=found.start.start,
            no_start=found.start.reason,
            seconds={
                "embed": embedded - started,
                "search": searched - embedded,
                "select": time.perf_counter() - searched,
            },
            truncation=truncation,
        )

    def start(self, request: SelectionRequest, limit: Limit = UNLIMITED) -> StartFound:
        """Look up what a request without steps starts from; its prompts are embedded only if the
        corpus's adapter has several parts.

        Raises:
            AbandonedError, SecondsSpentError, CorpusError: as `select`.
        """
        assert request.corpus is not None, "an adapter of a corpus"
        targets_TD: Embeddings | None = None
        while True:
            with self.corpora.open(request.corpus, request.principal, limit) as opened:
                found = self._look_up(opened.trained, request, targets_TD)
            if found is not None:
                return found
            targets_TD, _ = self._targets(request.prompts, limit)

    def start_weights(
        self, corpus: str, start: CorpusStart, limit: Limit = UNLIMITED
    ) -> CorpusWeights:
        """The adapter of a start.

        Args:
            corpus: id of the corpus.
            start: what the lookup found.
            limit: how long the wait for the corpus may take.

        Raises:
            AbandonedError, SecondsSpentError: as `select`.
            CorpusError: the adapter was replaced, became invalid or turned out to be damaged since.
        """
        with self.corpora.open(corpus, limit=limit) as opened:
            return opened.trained.weights(start)

    def learnt_corpora(self, principal: Principal = OPERATOR) -> tuple[LearntCorpus, ...]:
        """The corpora that the principal sees and whose adapter requests can start from."""
        if self.config.adapters is None:
            return ()
        found: list[LearntCorpus] = []
        folders = corpora_with_adapter(self.config.root)
        names = self._names.of(principal) if folders else {}
        for folder in folders:
            # Damaged or removed corpora, and those that the principal does not see.
            with suppress(CorpusError, KeyError), self.corpora.open(folder, principal) as opened:
                meta, start = opened.meta(), opened.trained.start(self.config.adapters, None)
                # None: there are several parts.
                if start is None or start.start is not None:
                    found.append(LearntCorpus(meta["id"], names[folder], float(meta["created"])))
        return tuple(found)

    def _search(self, request: SelectionRequest, targets_TD: Embeddings, limit: Limit) -> _Found:
        """The nearest sequences of the corpus; nothing of a request without one."""
        if request.corpus is None:
            nothing = np.empty((0, self.embedder.dimension), np.float32)
            reason = "the request uses no corpus" if request.start else None
            return _Found({}, (), nothing, StartFound("", None, reason))
        starts: list[StartFound | None] = []
        with self.searched.open(request.corpus, request.principal, limit) as opened:
            meta = opened.meta()

            def look_up() -> None:
                if request.start:
                    starts.append(self._look_up(opened.trained, request, targets_TD))

            ids_N, embeddings_ND = opened.nearest(
                targets_TD, self.config.candidates, request.filter, look_up
            )
        if not np.isfinite(embeddings_ND).all():
            raise _damaged(request.corpus, "it contains NaN or infinite embeddings")
        start = next(iter(starts), None) or StartFound(meta["id"], None)
        return _Found(meta, tuple(map(int, ids_N)), embeddings_ND, start)

    def _look_up(
        self, trained: TrainedAdapter, request: SelectionRequest, targets_TD: Embeddings | None
    ) -> StartFound | None:
        """As `TrainedAdapter.start`, or why this request does not start from it."""
        if self.config.adapters is None:
            return trained.refused("this server starts from no adapters of corpora")
        if request.filter is not None:
            return trained.refused(
                "the request has a filter, and the corpus's adapter has learnt all documents"
            )
        return trained.start(self.config.adapters, targets_TD)

    def _read(
        self, request: SelectionRequest, meta: Mapping[str, str], ids: Iterable[int], limit: Limit
    ) -> dict[int, StoredSequence]:
        """The sequences of the corpus; nothing where it was replaced since the search, since the
        same ids then mean other sequences.
        """
        stored = [i for i in ids if i >= 0]
        if request.corpus is None or not stored:
            return {}
        with self.corpora.open(request.corpus, request.principal, limit) as opened:
            return opened.read(stored) if opened.meta()["uuid"] == meta["uuid"] else {}

    def _embed_candidates(self, candidates: Sequence[Candidate], limit: Limit) -> Embeddings:
        """The embeddings [B, D] of the request's own candidates, each of its last window."""
        if not candidates:
            return np.empty((0, self.embedder.dimension), np.float32)
        windows = [self.embedder.windows(each.prompt, limit)[-1] for each in candidates]
        return self.embedder.embed(windows, limit)

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

    def _calibration(self, meta: Mapping[str, str]) -> Calibration | None:
        return None if self._model is None else calibration_of(meta, self._model)

    def _regularisation(self, calibration: Calibration | None) -> float:
        if self.config.regularisation is not None:
            return self.config.regularisation
        return REGULARISATION if calibration is None else calibration.regularisation


def _damaged(corpus: str | None, why: str) -> CorpusError:
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
