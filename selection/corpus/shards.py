"""Shards: a corpus searched in several partitions, each on the machine that holds it, with the
results of a search over the whole.

A hash of a document's name decides which shard holds its vectors, under the sequence ids of the
corpus. The corpus keeps texts and tokens and stays the truth: sequences deleted there are not found
any more, even if a shard still holds them. The k nearest sequences of the whole are among the k
nearest of each shard, so a selection does not depend on the number of shards. (Above
`faiss_index.FLAT_LIMIT` sequences the search in a shard is itself approximate.)

`Shard` runs where a shard's partitions are stored, `ShardedCorpora` where prompts are embedded and
the corpora themselves are stored. Their caller provides the way to call a shard (a thread, another
machine). `update_shards` creates and updates the partitions.

Shapes: K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.filters import Filter
from selection.corpus.index.faiss_index import Ids
from selection.corpus.pool import CorpusPool
from selection.corpus.sequences import StoredSequence
from selection.corpus.trained.adapter import TrainedAdapter
from selection.embedding import Embeddings
from selection.errors import CorpusError, CorpusNotFoundError
from selection.limit import UNLIMITED, Limit

# The metadata key of a sharded corpus: the numbers of shards it was divided into, separated by
# blanks.
_SHARDED_INTO = "shards"


class ShardAnswer(Protocol):
    """The pending result of a call to a shard."""

    def result(self) -> Any:
        """Wait for the result and return it; raises what the shard raised."""


class ShardCall(Protocol):
    """Calls a method of one `Shard`."""

    def __call__(self, method: Callable[..., Any], /, *args: Any) -> ShardAnswer:
        """Start the call."""


class Shard:
    """One partition of every sharded corpus, under one folder. Use it from one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._corpora = CorpusPool(root, None, None)

    def meta(self, corpus: str) -> dict[str, str] | None:
        """As `Corpus.meta`, of this shard's partition of a corpus; None if it has none."""
        try:
            with self._corpora.open(corpus) as partition:
                return partition.meta()
        except CorpusNotFoundError:
            return None

    def nearest(
        self, corpus: str, targets_TD: Embeddings, k: int | None, filter: Filter | None
    ) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`."""
        with self._corpora.open(corpus) as partition:
            return partition.nearest(targets_TD, k, filter)


class ShardedCorpus:
    """A corpus that is searched in its shards; what a selector needs of it."""

    def __init__(self, whole: Corpus, shards: Sequence[ShardCall]) -> None:
        self._whole, self._shards = whole, shards

    def meta(self) -> dict[str, str]:
        """As `Corpus.meta`."""
        return self._whole.meta()

    @property
    def trained(self) -> TrainedAdapter:
        """As `Corpus.trained`; shards hold no adapter."""
        return self._whole.trained

    def nearest(
        self,
        targets_TD: Embeddings,
        k: int | None,
        filter: Filter | None = None,
        on_search: Callable[[], None] = lambda: None,
    ) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`, over the sequences that the shards hold; `on_search` is called once
        they have answered.
        """
        factor = 1
        while True:
            count = None if k is None else k * factor
            found = _call_all(
                self._shards, Shard.nearest, self._whole.name, targets_TD, count, filter
            )
            present = [self._whole.replication.present(ids) for ids, _ in found]
            # Sequences that were deleted from the corpus but not from a shard take the place of
            # others, so more are requested until enough remain.
            if k is None or all(here.sum() >= k or len(here) < k * factor for here in present):
                break
            factor *= 2
        on_search()
        ids_K = np.concatenate([ids[here] for (ids, _), here in zip(found, present, strict=True)])
        vectors_KD = np.concatenate(
            [vectors[here] for (_, vectors), here in zip(found, present, strict=True)]
        )
        similarity_K = np.abs(np.einsum("kd,td->kt", vectors_KD, targets_TD)).max(
            axis=1, initial=0.0
        )
        best = np.lexsort((ids_K, -similarity_K))[:k]
        return ids_K[best], vectors_KD[best]

    def read(self, sequences: Sequence[int]) -> dict[int, StoredSequence]:
        """As `Corpus.read`."""
        return self._whole.read(sequences)


class ShardedCorpora:
    """Corpora, some of which are searched in shards, with the interface of a `CorpusPool`.

    Args:
        whole: all of the corpora.
        shards: one call per shard.
    """

    def __init__(self, whole: CorpusPool, shards: Sequence[ShardCall]) -> None:
        self._whole, self._shards = whole, shards

    @contextmanager
    def open(
        self, name: str, principal: Principal = OPERATOR, limit: Limit = UNLIMITED
    ) -> Iterator[Corpus | ShardedCorpus]:
        """As `CorpusPool.open`; a corpus without a complete partition in any shard is searched
        whole.

        Raises:
            CorpusError: as `CorpusPool.open`; or partitions are missing, or belong to another
                corpus or to other embeddings.
            AbandonedError, SecondsSpentError: as `CorpusPool.open`.
        """
        with self._whole.open(name, principal, limit) as corpus:
            if str(len(self._shards)) not in corpus.meta().get(_SHARDED_INTO, "").split():
                # The shards are not called, so one that does not answer only affects corpora that
                # it holds.
                yield corpus
                return
            partitions = _call_all(self._shards, Shard.meta, corpus.name)
            if not any(meta is not None and "shard" in meta for meta in partitions):
                yield corpus
                return
            whole = corpus.meta()
            for shard, meta in enumerate(partitions):
                if meta is None or not _is_partition(meta, whole, shard, len(partitions)):
                    raise CorpusError(
                        f"shard {shard} of {len(partitions)} does not fit corpus {corpus.name!r}: "
                        f"run `mayfly corpus shard {corpus.name} --shards {len(partitions)}`"
                    )
            yield ShardedCorpus(corpus, self._shards)


def shard_folder(home: Path, shard: int, shards: int) -> Path:
    """The folder of a shard's partitions below a home folder."""
    return home / "shards" / f"{shard}-of-{shards}"


def update_shards(
    corpus: Corpus,
    roots: Sequence[Path],
    on_document: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Divide a corpus into shards, or update its shards after changes.

    An interrupted run resumes, and incomplete partitions are not searched.

    Args:
        corpus: the corpus.
        roots: one folder per shard (`shard_folder`).
        on_document: called with the numbers of documents done and of all documents.

    Raises:
        CorpusError: the corpus was re-embedded in the meantime, or a shard could not be written.
    """
    meta = corpus.meta()
    # In the order of their ids, because the ids of a partition's sequences must ascend.
    documents = sorted(corpus.documents(), key=lambda document: document.id)
    partitions = [_open_partition(root, corpus) for root in roots]
    imported = [{document.id for document in each.documents()} for each in partitions]
    for done, document in enumerate(documents, 1):
        shard = _shard_of(document.name, len(partitions))
        if document.id not in imported[shard]:
            replica = corpus.replication.export(document.id)
            # None if it was deleted in the meantime.
            if replica is not None:
                partitions[shard].replication.import_(replica)
        on_document(done, len(documents))
    current = {document.id for document in documents}
    for partition in partitions:
        for document in partition.documents():
            if document.id not in current:
                partition.delete(document.id)
        partition.build_index()
    if corpus.meta()["uuid"] != meta["uuid"]:
        raise CorpusError(
            f"corpus {corpus.name!r} was re-embedded in the meantime: run this command again"
        )
    for shard, partition in enumerate(partitions):
        partition.update_meta({"shard": _label(shard, len(partitions))})
        partition.close()
    sharded_into = {*meta.get(_SHARDED_INTO, "").split(), str(len(partitions))}
    corpus.update_meta({_SHARDED_INTO: " ".join(sorted(sharded_into))})


def _open_partition(root: Path, whole: Corpus) -> Corpus:
    """The existing partition, or a new one if it does not exist or holds other embeddings."""
    try:
        partition = Corpus.open(root, whole.name)
    except CorpusNotFoundError:
        return Corpus.create_partition(root, whole)
    except CorpusError as problem:
        unusable = CorpusError(
            f"a shard of corpus {whole.name!r} cannot be opened: delete its folder, which "
            "contains copies only, "
            "and run this command again"
        )
        unusable.add_note(f"its folder is {root / whole.name}")
        raise unusable from problem
    if partition.meta().get("of") == whole.meta()["uuid"]:
        return partition
    partition.remove()
    return Corpus.create_partition(root, whole)


def _is_partition(
    meta: Mapping[str, str], whole: Mapping[str, str], shard: int, shards: int
) -> bool:
    return (meta["id"], meta.get("of"), meta.get("shard")) == (
        whole["id"],
        whole["uuid"],
        _label(shard, shards),
    )


def _call_all(shards: Sequence[ShardCall], method: Callable[..., Any], *args: Any) -> list[Any]:
    return [answer.result() for answer in [call(method, *args) for call in shards]]


def _shard_of(document: str, shards: int) -> int:
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % shards


def _label(shard: int, shards: int) -> str:
    return f"{shard} of {shards}"
