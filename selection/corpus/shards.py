"""Shards: the search over a corpus in several parts, each searched where it lies; together they
find what it would.

A document's vectors lie in one shard, by a hash of its name, under the numbers that its sequences
have in the corpus, which keeps texts and tokens and stays the truth: what it has lost is not found
any more, whatever a shard still holds. The k nearest of the whole are among the k nearest of each
shard, so what is chosen does not depend on how many there are. (Above `index.FLAT_LIMIT` sequences
the search in a shard is itself inexact.)

`Shard` stands where a part is, `ShardedCorpora` where prompts are embedded and the corpora
themselves lie. How a shard is asked (a thread, another machine) is for whoever makes them to say.
`follow` makes the parts.

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
from selection.corpus.faiss_index import Ids
from selection.corpus.filters import Filter
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError, Source
from selection.embedding import Embeddings
from selection.limit import UNLIMITED, Limit

_MARK = "shards"  # in a corpus that has been in shards: in how many, each number


class ShardAnswer(Protocol):
    """What a shard will have answered."""

    def result(self) -> Any:
        """The answer, waited for; raises what the shard raised."""


class ShardCall(Protocol):
    """Asks one shard: a method of `Shard` and its arguments."""

    def __call__(self, method: Callable[..., Any], /, *args: Any) -> ShardAnswer:
        """Begin to ask."""


class Shard:
    """One part of every sharded corpus, under one folder. Use it from one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._corpora = CorpusPool(root, None, None)

    def meta(self, corpus: str) -> dict[str, str] | None:
        """As `Corpus.meta`, of the part of the corpus of that name; None where there is none."""
        try:
            with self._corpora.use(corpus) as part:
                return part.meta()
        except CorpusNotFoundError:
            return None

    def nearest(
        self, corpus: str, targets_TD: Embeddings, k: int | None, only: Filter | None
    ) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`."""
        with self._corpora.use(corpus) as part:
            return part.nearest(targets_TD, k, only)


class ShardedCorpus:
    """A corpus that is searched in its shards: what a selector needs of it."""

    def __init__(self, whole: Corpus, shards: Sequence[ShardCall]) -> None:
        self._whole, self._shards = whole, shards

    def meta(self) -> dict[str, str]:
        """As `Corpus.meta`."""
        return self._whole.meta()

    def nearest(
        self, targets_TD: Embeddings, k: int | None, only: Filter | None = None
    ) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`, of what has come into the shards."""
        times = 1
        while True:
            asked = None if k is None else k * times
            found = _ask_all(self._shards, Shard.nearest, self._whole.name, targets_TD, asked, only)
            present = [self._whole.copies.present(ids) for ids, _ in found]
            # What a shard still holds and the corpus has lost stands before others that are wanted.
            if k is None or all(here.sum() >= k or len(here) < k * times for here in present):
                break
            times *= 2
        ids_K = np.concatenate([ids[here] for (ids, _), here in zip(found, present, strict=True)])
        vectors_KD = np.concatenate(
            [vectors[here] for (_, vectors), here in zip(found, present, strict=True)]
        )
        similarity_K = np.abs(np.einsum("kd,td->kt", vectors_KD, targets_TD)).max(
            axis=1, initial=0.0
        )
        best = np.lexsort((ids_K, -similarity_K))[:k]
        return ids_K[best], vectors_KD[best]

    def read(self, sequences: Sequence[int]) -> dict[int, tuple[Source, tuple[int, ...]]]:
        """As `Corpus.read`."""
        return self._whole.read(sequences)


class ShardedCorpora:
    """Corpora, some of which are searched in shards, as one `CorpusPool`.

    Args:
        whole: all of them.
        shards: each asks one.
    """

    def __init__(self, whole: CorpusPool, shards: Sequence[ShardCall]) -> None:
        self._whole, self._shards = whole, shards

    @contextmanager
    def use(
        self, name: str, reader: Principal = OPERATOR, limit: Limit = UNLIMITED
    ) -> Iterator[Corpus | ShardedCorpus]:
        """As `CorpusPool.use`; a corpus that no shard has a finished part of is searched whole.

        Raises:
            CorpusError: as there, and where parts are missing or belong to another corpus or other
                vectors.
            AbandonedError, SecondsSpentError: as there.
        """
        with self._whole.use(name, reader, limit) as corpus:
            if str(len(self._shards)) not in corpus.meta().get(_MARK, "").split():
                # Without asking: a shard that does not answer is no trouble of this one.
                yield corpus
                return
            parts = _ask_all(self._shards, Shard.meta, corpus.name)
            finished = [part is not None and "shard" in part for part in parts]
            if not any(finished):
                yield corpus
                return
            meta = corpus.meta()
            for number, part in enumerate(parts):
                if part is None or not _is_part(part, meta, number, len(parts)):
                    raise CorpusError(
                        f"shard {number} of {len(parts)} does not fit corpus {corpus.name!r}: "
                        f"run `mayfly corpus shard {corpus.name} --shards {len(parts)}`"
                    )
            yield ShardedCorpus(corpus, self._shards)


def folder_of(home: Path, shard: int, shards: int) -> Path:
    """The folder of a shard's parts, below a home."""
    return home / "shards" / f"{shard}-of-{shards}"


def follow(
    corpus: Corpus,
    roots: Sequence[Path],
    on_document: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the shards of a corpus, one in each folder, or have them follow what has changed since.

    What is there is not added again, so a run that was broken off goes on; parts that are not
    finished are searched by nobody. `on_document` is called with documents done and in all.

    Raises:
        CorpusError: the corpus was embedded anew meanwhile, or a shard could not be written.
    """
    meta = corpus.meta()
    documents = sorted(corpus.documents(), key=lambda entry: entry.id)  # a part's numbers only grow
    parts = [_part(root, corpus) for root in roots]
    there = [{entry.id for entry in part.documents()} for part in parts]
    for done, entry in enumerate(documents, 1):
        number = _shard_of(entry.name, len(parts))
        copy = None if entry.id in there[number] else corpus.copies.give(entry.id)
        if copy is not None:
            parts[number].copies.take(copy)
        on_document(done, len(documents))
    kept = {entry.id for entry in documents}
    for part in parts:
        for entry in part.documents():
            if entry.id not in kept:
                part.delete(entry.id)
        part.build_index()
    if corpus.meta()["uuid"] != meta["uuid"]:
        raise CorpusError(f"corpus {corpus.name!r} was embedded anew meanwhile: run this again")
    for number, part in enumerate(parts):
        part.remember({"shard": _place(number, len(parts))})
        part.close()
    marks = {*meta.get(_MARK, "").split(), str(len(parts))}
    corpus.remember({_MARK: " ".join(sorted(marks))})


def _part(root: Path, whole: Corpus) -> Corpus:
    """The part that is there, or a new one in the place of one of other vectors."""
    try:
        part = Corpus.open(root, whole.name)
    except CorpusNotFoundError:
        return Corpus.create_part(root, whole)
    except CorpusError as problem:
        unusable = CorpusError(
            f"a shard of corpus {whole.name!r} cannot be opened: delete its folder, which holds copies only, "
            "and run this again"
        )
        unusable.add_note(f"its folder is {root / whole.name}")
        raise unusable from problem
    if part.meta().get("of") == whole.meta()["uuid"]:
        return part
    part.remove()
    return Corpus.create_part(root, whole)


def _is_part(part: Mapping[str, str], whole: Mapping[str, str], shard: int, shards: int) -> bool:
    return (part["id"], part.get("of"), part.get("shard")) == (
        whole["id"],
        whole["uuid"],
        _place(shard, shards),
    )


def _ask_all(shards: Sequence[ShardCall], method: Callable[..., Any], *args: Any) -> list[Any]:
    return [answer.result() for answer in [ask(method, *args) for ask in shards]]


def _shard_of(document: str, shards: int) -> int:
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % shards


def _place(shard: int, shards: int) -> str:
    return f"{shard} of {shards}"
