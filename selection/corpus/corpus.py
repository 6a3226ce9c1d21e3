"""Corpus: documents and their embeddings in one folder, and the search over them.

The store (SQLite) is the truth; the index beside it is derived, and rebuilt when it is missing or
damaged. A corpus remembers the embedder and the tokenizer it was built with and refuses another.
Readers see a consistent state and follow changes at once, without a restart: what came after the
index was built is searched beside it, and what went is masked.

It knows nothing of files on disk (see `documents`) or of what is chosen from it (see `selector`).

Shapes: N sequences, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from selection.access import OPERATOR, Principal
from selection.corpus.faiss_index import Ids, Index, State, building
from selection.corpus.filters import Filter, Scalar
from selection.corpus.live_index import LiveIndex
from selection.corpus.positions import Deleted
from selection.corpus.replication import Copies
from selection.corpus.sqlite_store import (
    Chunk,
    CorpusError,
    CorpusNotFoundError,
    Entry,
    Source,
    Store,
)
from selection.embedding import Embedder, Embeddings

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ID = re.compile(r"vs_[0-9a-f]{24}")
# Sequences; fewer are cheaper to search beside the index than to build it anew.
_MANY_CHANGES = 10_000
_REEMBED_BATCH = 64


class Corpus:
    """One folder of documents. Open it with `create` or `open`; use it from one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self._store = Store(folder)
        self.attachments, self.batches = self._store.attachments, self._store.batches
        self._embedded = ""  # the uuid of the embeddings that were checked last
        self._view: tuple[str, LiveIndex] | None = None

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        embedder: Embedder,
        tokenizer: str,
        about: Mapping[str, str] | None = None,
    ) -> Corpus:
        """Make an empty corpus, or open the one that is there if it was made with the same embedder
        and tokenizer.

        Args:
            root: the folder of all corpora.
            name: letters, digits, '.', '_' and '-', 64 at most; or the id of a corpus that is
                there.
            embedder: the embedder whose vectors it will hold.
            tokenizer: an identity of the tokenizer, such as a digest of its file.
            about: what a new corpus remembers of itself besides (`remember`).

        Raises:
            CorpusError: a name that is not one, or a corpus made with another embedder or
                tokenizer.
        """
        check_name(name)
        given = ID.fullmatch(name) and (about or {}).get("id") != name
        folder = find_corpus(root, name) if given else root / name  # an id is given, never chosen
        folder.mkdir(parents=True, exist_ok=True)
        corpus = cls(folder)
        try:
            corpus._store.initialise(
                {**(about or {}), **_identity(embedder), "tokenizer": tokenizer}
            )
            corpus._store.check_version()
            corpus.check(embedder, tokenizer)
        except CorpusError:
            corpus.close()
            raise
        return corpus

    @classmethod
    def create_part(cls, root: Path, whole: Corpus) -> Corpus:
        """Make an empty corpus that takes copies of another's documents: of its name, id, embedder
        and tokenizer.

        It remembers as `of` which embeddings of the whole it holds.
        """
        meta = whole.meta()
        (root / whole.name).mkdir(parents=True, exist_ok=True)
        part = cls(root / whole.name)
        same = ("id", "embedder", "revision", "dimension", "tokenizer")
        part._store.initialise({**{key: meta[key] for key in same}, "of": meta["uuid"]})
        part._store.check_version()
        return part

    @classmethod
    def open(cls, root: Path, name: str, reader: Principal = OPERATOR) -> Corpus:
        """Open the corpus of that name, id or display name (`find_corpus`).

        Raises:
            CorpusNotFoundError: there is none, or none that the reader sees.
            CorpusError: several have that display name; or its database is damaged, was never
                finished, or is another version's.
        """
        corpus = cls(find_corpus(root, name, reader))
        try:
            corpus._store.check_version()
            meta = corpus._store.meta()
            if not reader.sees(corpus.name, meta):  # another took its place just now
                raise CorpusNotFoundError(f"there is no corpus {name!r}")
            corpus._embedded = meta["uuid"]
        except CorpusError:
            corpus.close()
            raise
        return corpus

    def close(self) -> None:
        """Close the database; the corpus stays on disk."""
        self._store.close()

    def remove(self) -> None:
        """Delete the corpus and everything in it from disk."""
        about = {
            key: value
            for key, value in self.meta().items()
            if key in ("id", "created", "name", "owner")
        }
        Deleted(self.folder.parent).remember("vs_", {**about, "folder": self.name})
        self.close()
        # First: killed in the middle, it must not leave an older state.
        (self.folder / "corpus.db").unlink()
        shutil.rmtree(self.folder)

    def check(self, embedder: Embedder, tokenizer: str | None = None) -> None:
        """Refuse an embedder or tokenizer other than the one this corpus was made with.

        Raises:
            CorpusError: naming both, and what to do.
        """
        mine = self._store.meta()
        for key, theirs in _identity(embedder).items():
            if mine[key] != theirs:
                raise CorpusError(
                    f"corpus {self.name!r} was made with {key} {_told(mine[key])!r}, not {_told(theirs)!r}: "
                    f"use that embedder, or run `mayfly corpus reembed {self.name}`"
                )
        self._embedded = mine["uuid"]
        if tokenizer is not None:
            self.check_tokenizer(tokenizer)

    def check_tokenizer(self, tokenizer: str) -> None:
        """Refuse a tokenizer other than the one this corpus was made with, as `check` does."""
        if self._store.meta()["tokenizer"] != tokenizer:
            raise CorpusError(
                f"corpus {self.name!r} holds the tokens of another model's tokenizer: "
                "serve that model, or add the documents to a new corpus with --model"
            )

    def add(
        self,
        name: str,
        sha256: str,
        pieces: Sequence[Chunk],
        embeddings_ND: Embeddings,
        metadata: Mapping[str, Scalar] | None = None,
        file: str | None = None,
    ) -> int:
        """Add a document, replacing the one of the same name; returns its id. Durable once it
        returns.

        Args:
            name: the document's name, unique in the corpus.
            sha256: digest of its content, so that `has` can tell a change.
            pieces: its sequences, in order.
            embeddings_ND: one unit vector a piece.
            metadata: flat; what filters compare.
            file: the attachment it belongs to.

        Raises:
            DetachedError: that attachment is not being read any more.
            CorpusError: it could not be written (a full disk), or the corpus was embedded anew
                since it was opened or checked; it is as it was.
            ValueError: metadata that is no JSON.
        """
        return self._store.add(
            name, sha256, pieces, embeddings_ND, metadata or {}, self._embedded, file
        )

    def delete(self, document: str | int) -> bool:
        """Delete a document by name or id; False if there is none. It never comes back."""
        return self._store.delete(document)

    def has(self, name: str, sha256: str) -> bool:
        """Whether this very document is there already, so that adding can resume."""
        return self._store.has(name, sha256)

    def holds(self, name: str) -> bool:
        """Whether a document of that name is there, whatever its content."""
        return self._store.holds(name)

    def names(self, file: str) -> list[str]:
        """The names of the documents that belong to an attachment."""
        return self._store.names(file)

    def token_sequences(self, name: str | None = None) -> Counter[bytes]:
        """How often a sequence's tokens, int32, as bytes, are there: in the corpus, or in one
        document.
        """
        return Counter(self._store.token_sequences(name))

    def counts(self) -> tuple[int, int]:
        """Documents and sequences."""
        return self._store.counts()

    def documents(self) -> list[Entry]:
        """Every document, by name."""
        return self._store.documents()

    def meta(self) -> dict[str, str]:
        """What it remembers of itself: `id`, which stays its own, `created` (seconds since 1970,
        UTC) and more.
        """
        return self._store.meta()

    def remember(self, changes: Mapping[str, str]) -> None:
        """Change what it remembers of itself: `name`, the display name, and what else its users
        keep there.
        """
        self._store.remember(changes)

    @property
    def embedder(self) -> str:
        """Name of the embedder it was made with."""
        return self._store.meta()["embedder"]

    def nearest(
        self, targets_TD: Embeddings, k: int | None, only: Filter | None = None
    ) -> tuple[Ids, Embeddings]:
        """The k sequences (None: all) of largest absolute similarity to any target: ids [K],
        embeddings [K, D].

        Args:
            targets_TD: unit vectors.
            k: how many.
            only: a filter on the documents' metadata (`selection.corpus.filters`), applied inside
                the search.

        Raises:
            ValueError: not a filter.
        """
        view, allowed = self._current_view(only)
        return view.nearest(targets_TD, k, allowed)

    def read(self, sequences: Sequence[int]) -> dict[int, tuple[Source, tuple[int, ...]]]:
        """Provenance and tokens of sequences by id; one deleted meanwhile is left out."""
        return self._store.read(sequences)

    @property
    def copies(self) -> Copies:
        """Documents to be searched elsewhere, or taken from elsewhere."""
        return self._store.copies

    def build_index(self) -> None:
        """Build and save the index where it is missing or damaged, or where much has changed since
        it was built.
        """
        if self._current_view()[0].changes > max(_MANY_CHANGES, self.counts()[1] // 10):
            with building(self.folder):
                self._view = self._build()

    def reembedded(self, embedder: Embedder) -> int:
        """How many new embeddings a run for this embedder that was broken off has left."""
        return self._store.reembedded(_identity(embedder))

    def reembed(
        self, embedder: Embedder, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Replace every embedding by another embedder's. Until it is done, or if it is broken off,
        nothing changes.

        A run that was broken off goes on where it was. `on_progress` is called with sequences done
        and in all.

        Raises:
            CorpusError: another process embeds it anew at the same time.
        """
        identity = _identity(embedder)
        self._store.begin_reembedding(identity)
        total = self.counts()[1]
        while not self._store.finish_reembedding(identity):
            while waiting := self._store.not_reembedded(_REEMBED_BATCH):
                vectors_ND = embedder.embed([text for _, text in waiting])
                self._store.keep_reembedded(
                    identity, [sequence for sequence, _ in waiting], vectors_ND
                )
                on_progress(len(waiting), total)
        self.check(embedder)
        self.build_index()

    def _current_view(self, only: Filter | None = None) -> tuple[LiveIndex, Ids | None]:
        """The view of this moment, and which sequences a filter allows in it."""
        while True:
            with self._store.reading():
                meta = self._store.meta()
                view = self._view_at_hand(meta)
                if view is not None:
                    return self._follow(view, meta), None if only is None else self._store.matching(
                        only
                    )
            with building(self.folder):
                meta = self._store.meta()  # another may have built it while this one waited
                loaded = self._load(meta)
                self._view = self._build() if loaded is None else (meta["uuid"], loaded)

    def _view_at_hand(self, meta: Mapping[str, str]) -> LiveIndex | None:
        """The last view, if there is no much better one on disk, else the index on disk."""
        if self._view is not None and self._view[0] == meta["uuid"]:
            view = self._view[1]
            if view.changes <= _MANY_CHANGES or Index.saved_generation(self.folder) <= view.built:
                return view
        loaded = self._load(meta)
        if loaded is not None:
            self._view = (meta["uuid"], loaded)
        return loaded

    def _load(self, meta: Mapping[str, str]) -> LiveIndex | None:
        loaded = Index.load(self.folder, meta["uuid"], int(meta["dimension"]))
        if loaded is None or loaded[0] > int(meta["generation"]):
            return None
        return LiveIndex(*loaded)

    def _follow(self, view: LiveIndex, meta: Mapping[str, str]) -> LiveIndex:
        generation = int(meta["generation"])
        if view.generation != generation:
            view.follow(
                generation,
                *self._store.embeddings(view.newest),
                self._store.removed(view.generation),
            )
        return view

    def _build(self) -> tuple[str, LiveIndex]:
        """A new index of everything, saved. Within `building`."""
        with self._store.reading():
            meta = self._store.meta()
            ids_N, vectors_ND = self._store.embeddings()
        index, generation = Index.build(ids_N, vectors_ND), int(meta["generation"])
        try:
            index.save(self.folder, State(meta["uuid"], generation))
        except OSError as problem:
            log.warning(
                "the index of corpus %r cannot be saved (%s): it will be built again",
                self.name,
                problem,
            )
        return meta["uuid"], LiveIndex(generation, index)


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a corpus.

    Raises:
        CorpusError: it has other characters, or too many.
    """
    if not NAME.fullmatch(name):
        raise CorpusError(
            f"{name!r} is not a corpus name: use letters, digits, '.', '_' and '-', 64 at most"
        )


def list_corpora(root: Path) -> list[str]:
    """Names of the corpora under a folder, sorted."""
    return sorted(path.parent.name for path in root.glob("*/corpus.db"))


def find_corpus(root: Path, name: str, reader: Principal = OPERATOR) -> Path:
    """The folder of a corpus: the one of that name, else that whose id it is, else the only one so
    displayed.

    Args:
        root: the folder of all corpora.
        name: its name, its id or its display name.
        reader: what they do not see is passed over.

    Raises:
        CorpusNotFoundError: there is none.
        CorpusError: several have that display name.
    """
    named = root / name
    there = NAME.fullmatch(name) and (named / "corpus.db").is_file()
    if there and (reader.corpora is None or reader.sees(name, _meta_of(named))):
        return named
    known: list[str] = []
    displayed: list[Path] = []
    for folder in (root / each for each in list_corpora(root)):
        meta = _meta_of(folder)
        if not reader.sees(folder.name, meta):
            continue
        if meta.get("id") == name:
            return folder
        if meta.get("name") == name:
            displayed.append(folder)
        known.append(folder.name)
    if len(displayed) > 1:
        raise CorpusError(f"{len(displayed)} corpora are called {name!r}: name one by its id")
    if not displayed:
        others = ", ".join(known) or "none yet"
        raise CorpusNotFoundError(
            f"there is no corpus {name!r} (there are: {others}); `mayfly corpus add` makes one"
        )
    return displayed[0]


def _meta_of(folder: Path) -> dict[str, str]:
    try:
        store = Store(folder)
    except CorpusError:
        return {}
    try:
        return store.meta()
    except CorpusError:
        return {}
    finally:
        store.close()


def _told(value: str) -> str:
    """As an error says it: an embedder's folder by its last part, as others than the server's owner
    may read it.
    """
    return Path(value).name if Path(value).is_absolute() else value


def _identity(embedder: Embedder) -> dict[str, str]:
    return {
        "embedder": embedder.name,
        "revision": embedder.revision,
        "dimension": str(embedder.dimension),
    }
