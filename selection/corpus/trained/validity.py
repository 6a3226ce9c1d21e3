"""Validity: which parts of a corpus's adapter may be used in the corpus's present state.

A part is invalid for good once any sequence that it has learnt was removed: only training without
that sequence makes the corpus's adapter forget it. Sequences that no part has learnt make the
adapter stale, which is no reason not to use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from selection.config import AdapterShape
from selection.corpus.stores.protocols import CorpusStore
from selection.corpus.trained.files import DAMAGED, Ids
from selection.corpus.trained.manifest import NO_ADAPTER, CorpusAdapterInfo, PartInfo, Snapshot
from selection.corpus.trained.places import files_of
from selection.errors import CorpusError

_DAMAGED = "the corpus's adapter is damaged"
_RETOKENIZED = "the corpus was retokenized since its adapter was trained"
_REMOVED = "documents that the corpus's adapter has learnt were deleted or replaced"


@dataclass(frozen=True)
class AdapterState:
    """A corpus's adapter in one state of the corpus.

    Attributes:
        snapshot: the state of the corpus.
        info: the adapter's manifest; None if there is none, or if it is damaged.
        learnt: the sequences that each usable part has learnt, ascending.
        damaged: names of the parts whose files are damaged.
        not_learnt: number of sequences of the corpus that no usable part has learnt.
        reason: why no part is usable; None if one is.
    """

    snapshot: Snapshot
    info: CorpusAdapterInfo | None
    learnt: Mapping[str, Ids]
    damaged: frozenset[str]
    not_learnt: int
    reason: str | None

    @property
    def usable(self) -> list[PartInfo]:
        """The parts that may be used."""
        return [] if self.info is None else [p for p in self.info.parts if p.name in self.learnt]

    @property
    def invalid(self) -> list[PartInfo]:
        """The parts that must be trained anew."""
        if self.info is None:
            return []
        return [p for p in self.info.parts if p.name not in self.learnt]


class Validity:
    """The state of one corpus's adapter, kept for as long as nothing changes."""

    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        self._files = files_of(store)
        self._sequences = store.sequence_ids
        # The version of the adapter's files, and the state.
        self._known: tuple[tuple[int, ...] | None, AdapterState] | None = None

    def current(self) -> AdapterState:
        """The state of the adapter; call it within `CorpusStore.reading`.

        Raises:
            CorpusError: the corpus is damaged or was removed.
        """
        meta = self._store.meta()
        snapshot = Snapshot.of(meta)
        while True:
            version = self._files.version()
            if self._known is not None and self._known[0] == version:
                known = self._known[1]
                if known.snapshot == snapshot:
                    return known
                if _is_later(snapshot, known.snapshot):
                    state = self._updated(known, snapshot)
                    self._known = version, state
                    return state
            state = self._read(meta["id"], snapshot)
            # Another process may have replaced the adapter while it was read.
            if self._files.version() == version:
                self._known = version, state
                return state

    def checked(self, *kinds: str) -> AdapterState:
        """As `current`, once these kinds of files of all usable parts were read and checked."""
        for part in self.current().usable:
            for kind in kinds:
                if kind in part.sha256:
                    # Remembered, and so found in the state.
                    with suppress(CorpusError):
                        self.read(part, kind)
        return self.current()

    def why_not(self, state: AdapterState, shape: AdapterShape | None) -> str | None:
        """Why no request can start from the adapter, for the client; None if one can. Call it
        within `CorpusStore.reading`.

        Args:
            state: the current state.
            shape: what the adapter must have been trained for; None skips this check.
        """
        if state.info is None or state.reason is not None:
            return state.reason
        mismatch = None if shape is None else state.info.shape.mismatch(shape)
        if mismatch is not None:
            return f"the corpus's adapter was trained for {mismatch}"
        if self._store.attachments.any_in_progress():
            return "files of the corpus are being read"
        return None

    def read(self, part: PartInfo, kind: str) -> bytes:
        """A file of a usable part.

        Raises:
            CorpusError: it is damaged or was replaced; the part is not used any more.
        """
        try:
            return self._files.read(part, kind)
        except CorpusError:
            raise
        except DAMAGED as problem:
            if self._known is not None:
                version, state = self._known
                learnt = {name: ids for name, ids in state.learnt.items() if name != part.name}
                damaged = state.damaged | {part.name}
                self._known = version, self._with_parts(state, learnt, damaged)
            raise self._store.unusable(
                "has a damaged adapter, which is not used: train it again"
            ) from problem

    def _updated(self, known: AdapterState, snapshot: Snapshot) -> AdapterState:
        """A state in a later generation."""
        since = known.snapshot.generation
        known = replace(known, snapshot=snapshot)
        if not known.learnt:
            return replace(known, not_learnt=self._sequences.count())
        removed = self._store.removed(since)
        learnt = {
            name: ids
            for name, ids in known.learnt.items()
            if not len(removed) or not np.isin(removed, ids).any()
        }
        return self._with_parts(known, learnt, known.damaged)

    def _read(self, corpus: str, snapshot: Snapshot) -> AdapterState:
        """The state according to the files and to all sequences of the corpus."""
        nothing = AdapterState(snapshot, None, {}, frozenset(), self._sequences.count(), None)
        try:
            info = self._files.load()
        except FileNotFoundError:
            return replace(nothing, reason=NO_ADAPTER)
        except CorpusError:
            raise
        except DAMAGED:
            return replace(nothing, reason=_DAMAGED)
        if info.corpus != corpus:
            return replace(nothing, reason="the adapter beside the corpus is of another corpus")
        if not snapshot.has_tokens_of(info.tokenizer, info.template):
            return replace(
                nothing,
                info=info,
                reason=_RETOKENIZED,
            )
        learnt, damaged = {}, set()
        sequences_N2, contents = self._sequences.all(), self._sequences.contents()
        for part in info.parts:
            try:
                ids = self._files.learnt(part)
            except CorpusError:
                raise
            except DAMAGED:
                damaged.add(part.name)
                continue
            # A database that was restored from a copy may have given an id once more, to another
            # document.
            if np.isin(ids, sequences_N2[:, 1]).all() and (part.documents, part.content) == (
                documents_of(ids, sequences_N2, contents)
            ):
                learnt[part.name] = ids
        return self._with_parts(replace(nothing, info=info), learnt, frozenset(damaged))

    def _with_parts(
        self, state: AdapterState, learnt: Mapping[str, Ids], damaged: frozenset[str]
    ) -> AdapterState:
        """The state with other usable parts."""
        reason = None
        if not learnt:
            reason = _DAMAGED if damaged else _REMOVED
        not_learnt = self._sequences.count() - sum(map(len, learnt.values()))
        return replace(state, learnt=learnt, damaged=damaged, not_learnt=not_learnt, reason=reason)


def documents_of(ids: Ids, sequences_N2: Ids, contents: Mapping[int, str]) -> tuple[int, str]:
    """The number of documents that sequences belong to, and the digest of their contents.

    Args:
        ids: the sequences.
        sequences_N2: document and id of each sequence of the corpus.
        contents: the digest of each document's content.
    """
    documents = np.unique(sequences_N2[np.isin(sequences_N2[:, 1], ids), 0]).tolist()
    digests = " ".join(contents[document] for document in documents)
    return len(documents), hashlib.sha256(digests.encode()).hexdigest()


def _is_later(now: Snapshot, known: Snapshot) -> bool:
    """Whether `now` follows from `known` by documents that were added and removed."""
    return now.generation > known.generation and (now.tokenizer, now.template) == (
        known.tokenizer,
        known.template,
    )
