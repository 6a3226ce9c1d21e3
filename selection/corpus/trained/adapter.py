"""TrainedAdapter: what requests start from: the adapter of a corpus, or a mixture of its parts.

Whether it may be used is decided in one state of the corpus, in the read transaction of the search
if it is called within one (`selection.corpus.trained.validity`).

Shapes: P parts, T targets, D embedding dimensions.
"""

from __future__ import annotations

import numpy as np

from selection.config import AdapterShape
from selection.corpus.stores.protocols import CorpusStore
from selection.corpus.trained.files import WEIGHTS
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, StartFound
from selection.corpus.trained.merge import merged, mixture, name_of
from selection.corpus.trained.validity import AdapterState, Validity
from selection.embedding import Embeddings


class TrainedAdapter:
    """The adapter of one corpus. Use it from one thread at a time.

    Every method raises CorpusError if the corpus is damaged or was removed.

    Args:
        store: the corpus's store.
    """

    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        self._sequences = store.sequence_ids
        self._validity = Validity(store)
        # The mean embedding of each part, and the uuid of the embeddings.
        self._centroids: tuple[str, dict[str, Embeddings]] = ("", {})

    def start(self, shape: AdapterShape, targets_TD: Embeddings | None) -> StartFound | None:
        """What a request starts from: the adapter, or the parts of it that are nearest to the
        prompt.

        Args:
            shape: what the adapter must have been trained for.
            targets_TD: embeddings of the prompt, of unit length; only needed for several parts.

        Returns:
            None if targets are needed.
        """
        with self._store.reading():
            meta = self._store.meta()
            state = self._validity.current()
            reason = self._validity.why_not(state, shape)
            if reason is not None:
                return StartFound(meta["id"], None, reason)
            parts = state.usable
            mixed = [(0, 1.0)]
            if len(parts) > 1:
                if targets_TD is None:
                    return None
                centroids_PD = self._part_centroids(meta["uuid"], state)
                mixed = mixture((centroids_PD @ targets_TD.T).mean(axis=1))
        chosen = [parts[part] for part, _ in mixed]
        weights = tuple((parts[part].name, weight) for part, weight in mixed)
        start = CorpusStart(
            name=name_of(weights),
            corpus=meta["id"],
            generation=max(part.generation for part in chosen),
            documents=sum(part.documents for part in chosen),
            sequences=sum(part.sequences for part in chosen),
            not_learnt=state.not_learnt,
            parts=weights,
        )
        return StartFound(meta["id"], start)

    def refused(self, reason: str) -> StartFound:
        """The result for a request that must not start from the adapter."""
        return StartFound(self._store.meta()["id"], None, reason)

    def weights(self, start: CorpusStart) -> CorpusWeights:
        """The adapter of a start.

        Raises:
            CorpusError: it was replaced, became invalid or turned out to be damaged since.
        """
        with self._store.reading():
            state = self._validity.current()
        parts = {part.name: part for part in state.usable}
        if state.info is None or not parts.keys() >= {name for name, _ in start.parts}:
            raise self._store.unusable("has another adapter since it was looked up")
        read = [
            (self._validity.read(parts[name], WEIGHTS), weight, parts[name].scaling)
            for name, weight in start.parts
        ]
        try:
            weights = merged(read)
        except ValueError as problem:
            raise self._store.unusable(f"has an adapter that is not used: {problem}") from problem
        info = state.info
        return CorpusWeights(start.name, weights, info.rank, info.scale_numerator, info.targets)

    def _part_centroids(self, uuid: str, state: AdapterState) -> Embeddings:
        """The mean embedding [P, D] of each usable part."""
        known = self._centroids[1] if self._centroids[0] == uuid else {}
        missing = [name for name in state.learnt if name not in known]
        computed = self._sequences.centroids([state.learnt[name] for name in missing])
        known = {**known, **dict(zip(missing, computed, strict=True))}
        # Those of parts that were replaced are dropped.
        self._centroids = uuid, {part.name: known[part.name] for part in state.usable}
        return np.stack([*self._centroids[1].values()])
