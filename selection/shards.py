"""Shards: a corpus in several parts, each searched where it lies; together they answer as the whole would.

A document lies in one shard, by a hash of its name; a shard is a folder of corpora of its own, on any machine. The k
nearest of the whole are among the k nearest of each shard, so the merged candidates are exactly the whole's, and what
is chosen from them does not change with the number of shards. (Above `index.FLAT_LIMIT` sequences the search in a shard
is itself inexact.)

`Shard` stands where the data is; `ShardedCorpora` where prompts are embedded. How a shard is asked (a thread, another
machine) is for whoever makes them to say. Shards are made of a corpus by `follow`, and read only otherwise.

Shapes: S shards, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from selection.corpus import Corpus, check_identity, check_tokenizer
from selection.embedding import Embedder, Embeddings
from selection.filters import Filter
from selection.index import Ids
from selection.reader import EVERYTHING, Reader
from selection.shared import OpenCorpora
from selection.store import CorpusError, CorpusNotFoundError, Source

Found = dict[int, tuple[Source, tuple[int, ...]]]


class Answer(Protocol):
    """What a shard will have answered."""

    def result(self) -> Any:
        """The answer, waited for; raises what the shard raised."""


class Ask(Protocol):
    """Asks one shard: a method of `Shard` and its arguments."""

    def __call__(self, method: Callable[..., Any], /, *args: Any) -> Answer:
        """Begin to ask."""


class Shard:
    """One part of every sharded corpus, under one folder. Use it from one thread at a time."""

    def __init__(self, root: Path) -> None:
        self._corpora = OpenCorpora(root, None, None)

    def meta(self, corpus: str, reader: Reader) -> dict[str, str]:
        """As `Corpus.meta`.

        Raises:
            CorpusNotFoundError: there is no such corpus.
        """
        with self._corpora.use(corpus, reader) as opened:
            return opened.meta()

    def nearest(
        self, corpus: str, reader: Reader, targets_TD: Embeddings, k: int | None, only: Filter | None
    ) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`."""
        with self._corpora.use(corpus, reader) as opened:
            return opened.nearest(targets_TD, k, only)

    def read(self, corpus: str, reader: Reader, sequences: Sequence[int]) -> Found:
        """As `Corpus.read`."""
        with self._corpora.use(corpus, reader) as opened:
            return opened.read(sequences)


class ShardedCorpus:
    """All shards of one corpus, as one: what a selector needs of it. Ids are the shards' own, told apart."""

    def __init__(self, name: str, reader: Reader, shards: Sequence[Ask], metas: Sequence[Mapping[str, str]]) -> None:
        self._name, self._reader, self._shards, self._metas = name, reader, shards, metas

    def meta(self) -> dict[str, str]:
        """As `Corpus.meta`; every shard remembers the same of what the whole remembers."""
        return dict(self._metas[0])

    def nearest(self, targets_TD: Embeddings, k: int | None, only: Filter | None = None) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`."""
        found = self._ask_all(Shard.nearest, targets_TD, k, only)
        ids_K = np.concatenate([ids * len(self._shards) + shard for shard, (ids, _) in enumerate(found)])
        vectors_KD = np.concatenate([vectors for _, vectors in found])
        similarity_K = np.abs(np.einsum("kd,td->kt", vectors_KD, targets_TD)).max(axis=1, initial=0.0)
        best = np.lexsort((ids_K, -similarity_K))[:k]
        return ids_K[best], vectors_KD[best]

    def read(self, sequences: Sequence[int]) -> Found:
        """As `Corpus.read`."""
        wanted: dict[int, list[int]] = {}
        for each in set(sequences):
            wanted.setdefault(each % len(self._shards), []).append(each // len(self._shards))
        asked = {
            shard: self._shards[shard](Shard.read, self._name, self._reader, theirs) for shard, theirs in wanted.items()
        }
        return {
            sequence * len(self._shards) + shard: found
            for shard, answer in asked.items()
            for sequence, found in answer.result().items()
        }

    def _ask_all(self, method: Callable[..., Any], *args: Any) -> list[Any]:
        return _all(self._shards, method, self._name, self._reader, *args)


class ShardedCorpora:
    """Corpora in shards, and beside them those that are whole, as one `OpenCorpora`.

    Args:
        shards: each asks one; all must hold parts of the same corpora.
        whole: corpora that are in no shard.
        embedder, tokenizer: as of `OpenCorpora`.
    """

    def __init__(self, shards: Sequence[Ask], whole: OpenCorpora, embedder: Embedder, tokenizer: str | None) -> None:
        self._shards, self._whole = shards, whole
        self._embedder, self._tokenizer = embedder, tokenizer

    @contextmanager
    def use(self, name: str, reader: Reader = EVERYTHING) -> Iterator[Corpus | ShardedCorpus]:
        """As `OpenCorpora.use`.

        Raises:
            CorpusError: as there, and where shards differ in what they are parts of.
        """
        try:
            metas = _all(self._shards, Shard.meta, name, reader)
        except CorpusNotFoundError:
            with self._whole.use(name, reader) as corpus:
                yield corpus
            return
        for number, meta in enumerate(metas):
            if (meta["id"], meta["shard"]) != (metas[0]["id"], _place(number, len(self._shards))):
                raise CorpusError(
                    f"shard {_place(number, len(self._shards))} of corpus {name!r} belongs elsewhere: "
                    f"run `mayfly corpus shard {name}` again"
                )
        check_identity(name, metas[0], self._embedder)
        if self._tokenizer is not None:
            check_tokenizer(name, metas[0], self._tokenizer)
        yield ShardedCorpus(name, reader, self._shards, metas)

    def close(self) -> None:
        """Close what is open here."""
        self._whole.close()


def folder_of(home: Path, shard: int, shards: int) -> Path:
    """The folder of a shard's corpora, below a home."""
    return home / "shards" / _place(shard, shards).replace("/", "-of-")


def follow(
    corpus: Corpus,
    roots: Sequence[Path],
    embedder: Embedder,
    on_document: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the shards of a corpus, one in each folder, or have them follow what has changed since.

    What was there is not added again, so a run that was broken off goes on. `on_document` is called with documents done
    and in all.

    Raises:
        CorpusError: a folder holds another corpus of that name, or a shard could not be written.
    """
    meta, documents = corpus.meta(), corpus.documents()
    about = {key: value for key, value in meta.items() if key not in ("generation", "uuid", "created")}
    parts = []
    for number, root in enumerate(roots):
        root.mkdir(parents=True, exist_ok=True)
        part = Corpus.create(
            root, corpus.name, embedder, meta["tokenizer"], {**about, "shard": _place(number, len(roots))}
        )
        if part.meta()["id"] != meta["id"]:
            raise CorpusError(f"{root.name} holds another corpus {corpus.name!r}: delete its folder there")
        part.remember({key: value for key, value in about.items() if key not in ("id", "embedder", "revision")})
        parts.append(part)
    there = [{entry.name: entry.metadata for entry in part.documents()} for part in parts]
    for done, entry in enumerate(documents, 1):
        whole, number = corpus.whole(entry.id), _shard_of(entry.name, len(parts))
        part, same = parts[number], there[number].get(entry.name) == entry.metadata
        if whole is not None and not (same and part.has(entry.name, whole.sha256)):
            part.add(entry.name, whole.sha256, whole.pieces, whole.embeddings, whole.metadata)
        on_document(done, len(documents))
    kept = {entry.name for entry in documents}
    for part in parts:
        for entry in part.documents():
            if entry.name not in kept:
                part.delete(entry.id)
        part.build_index()
        part.close()


def _all(shards: Sequence[Ask], method: Callable[..., Any], *args: Any) -> list[Any]:
    return [answer.result() for answer in [ask(method, *args) for ask in shards]]


def _shard_of(document: str, shards: int) -> int:
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % shards


def _place(shard: int, shards: int) -> str:
    return f"{shard}/{shards}"
