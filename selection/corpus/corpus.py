"""Corpus: documents and their embeddings, and the search over them.

Its store is the truth; the index beside it is derived, and rebuilt when it is missing or
damaged. A corpus records the embedder and the tokenizer it was made with and refuses others.
Readers see a consistent state and follow changes at once, without a restart: newer sequences are
searched beside the index, and removed ones are masked. It depends neither on files on disk
(`selection.ingest`) nor on what is selected from it (`selection.selector`).

Shapes: N sequences, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from selection.access import OPERATOR, Principal
from selection.corpus.filters import Filter, Scalar
from selection.corpus.index.faiss_index import Ids
from selection.corpus.index.manager import IndexManager
from selection.corpus.lookup import ID, check_name, find_corpus
from selection.corpus.sequences import Chunk, DocumentInfo, StoredSequence, embedded_text
from selection.corpus.stores.places import corpora_at, make_place, open_store
from selection.corpus.tables.reembedding import check_identity, identity_of
from selection.corpus.trained.adapter import TrainedAdapter
from selection.corpus.trained.training import AdapterTraining
from selection.embedding import Embedder, Embeddings
from selection.errors import CorpusError, CorpusNotFoundError
from selection.location import Location, Place

# Texts that are embedded at once when a corpus is embedded again.
_BATCH = 64


class Corpus:
    """One corpus. Open it with `create` or `open`; use it from one thread at a time.

    Attributes:
        folder: the folder of what is derived from it.
        name: its name.
        attachments: its files, as a vector store.
        file_batches: its file batches, as a vector store.
        replication: exports its documents into shards and imports those of another corpus.
        retokenization: replaces its tokens by another tokenizer's.
        trained: its adapter, for requests that start from it.
        training: the training of its adapter.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._store = open_store(place)
        self.folder = self._store.folder
        self.name = self._store.name
        self.attachments = self._store.attachments
        self.file_batches = self._store.file_batches
        self.replication = self._store.replication
        self.retokenization = self._store.retokenization
        self.trained = TrainedAdapter(self._store)
        self.training = AdapterTraining(self._store)
        self._index = IndexManager(self._store)
        # The uuid of the embeddings for which the embedder was last checked.
        self._checked_uuid = ""
        # Digests of the tokenizer and the chat template that were last checked, if any.
        self._checked_tokenizer: str | None = None
        self._checked_template: str | None = None

    @classmethod
    def create(
        cls,
        root: Location,
        name: str,
        embedder: Embedder,
        tokenizer: str,
        meta: Mapping[str, str] | None = None,
    ) -> Corpus:
        """Create an empty corpus, or open an existing one that was made with the same embedder and
        tokenizer.

        Args:
            root: where all corpora are.
            name: letters, digits, '.', '_' and '-', 64 at most; or the id of an existing corpus.
            embedder: the embedder of its vectors.
            tokenizer: an identity of the tokenizer, such as a digest of its file.
            meta: further metadata of a new corpus.

        Raises:
            CorpusError: an invalid name, or a corpus made with another embedder or tokenizer.
        """
        check_name(name)
        # Ids are generated, never chosen: this one must belong to an existing corpus.
        is_existing_id = ID.fullmatch(name) and (meta or {}).get("id") != name
        place = find_corpus(root, name) if is_existing_id else root / name
        make_place(place)
        corpus = cls(place)
        try:
            corpus._store.initialise(
                {**(meta or {}), **identity_of(embedder), "tokenizer": tokenizer}
            )
            corpus._store.check_version()
            corpus.check(embedder, tokenizer)
        except CorpusError:
            corpus.close()
            raise
        return corpus

    @classmethod
    def create_partition(cls, root: Location, source: Corpus) -> Corpus:
        """Create an empty corpus for a shard of another one, with its name, id, embedder and
        tokenizer, to import some of its documents.

        Its metadata refers to the embeddings of the source as `of`.
        """
        meta = source.meta()
        make_place(root / source.name)
        partition = cls(root / source.name)
        shared = ("id", "embedder", "revision", "dimension", "tokenizer")
        partition._store.initialise({**{key: meta[key] for key in shared}, "of": meta["uuid"]})
        partition._store.check_version()
        return partition

    @classmethod
    def open(cls, root: Location, name: str, principal: Principal = OPERATOR) -> Corpus:
        """Open the corpus of that name, id or display name (`selection.corpus.lookup`).

        Raises:
            CorpusNotFoundError: no such corpus, or the principal does not see it.
            CorpusError: several corpora have that display name; or the database is damaged,
                incomplete, or another version's.
        """
        corpus = cls(find_corpus(root, name, principal))
        try:
            corpus._store.check_version()
            meta = corpus._store.meta()
            # Another corpus may have taken the folder since it was found.
            if not principal.sees(corpus.name, meta):
                raise CorpusNotFoundError(f"there is no corpus {name!r}")
            corpus._checked_uuid = meta["uuid"]
        except CorpusError:
            corpus.close()
            raise
        return corpus

    def close(self) -> None:
        """Close the store; the corpus stays."""
        self._store.close()

    def remove(self) -> None:
        """Delete the corpus and everything in it, as `CorpusStore.remove`."""
        kept = ("id", "created", "name", "owner")
        tombstone = {key: value for key, value in self.meta().items() if key in kept}
        tombstone["folder"] = self.name
        corpora_at(self._place.parent).tombstones.record("vs_", tombstone)
        self._store.remove()

    @property
    def is_in_place(self) -> bool:
        """Whether the corpus was neither removed nor replaced since it was opened."""
        return self._store.is_in_place

    def size(self) -> int:
        """Its size in bytes."""
        return self._store.size()

    def check(
        self,
        embedder: Embedder,
        tokenizer: str | None = None,
        template: str | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse an embedder other than the one this corpus was made with, and a tokenizer or a
        chat template as `check_tokenizer` does.

        Raises CorpusError if they differ. `meta` is the metadata if it was just read.
        """
        meta = meta or self._store.meta()
        check_identity(self.name, meta, embedder)
        self._checked_uuid = meta["uuid"]
        if tokenizer is not None:
            self.check_tokenizer(tokenizer, template, meta)

    def check_tokenizer(
        self, tokenizer: str, template: str | None = None, meta: Mapping[str, str] | None = None
    ) -> None:
        """Refuse the digest of a tokenizer other than the one this corpus was made with, and that
        of a chat template (`Renderer.digest`, None to skip it) other than the one of its examples.

        Raises CorpusError if they differ. `meta` is the metadata if it was just read.
        """
        meta = meta or self._store.meta()
        if meta["tokenizer"] != tokenizer:
            raise CorpusError(
                f"corpus {self.name!r} contains tokens of another model's tokenizer: "
                f"serve that model, or run `mayfly corpus retokenize {self.name} --model MODEL`"
            )
        if template is not None and meta.get("template", template) != template:
            raise CorpusError(
                f"corpus {self.name!r} contains examples in another chat template: "
                f"serve that model, or run `mayfly corpus retokenize {self.name} --model MODEL`"
            )
        self._checked_tokenizer, self._checked_template = tokenizer, template

    def add(
        self,
        name: str,
        sha256: str,
        chunks: Sequence[Chunk],
        embeddings_ND: Embeddings,
        metadata: Mapping[str, Scalar] | None = None,
        file: str | None = None,
    ) -> int:
        """Add a document, replacing the one of the same name; returns its id. Durable once it
        returns.

        Args:
            name: name of the document, unique in the corpus.
            sha256: digest of its content, so that `has` can detect a change.
            chunks: its sequences, in order.
            embeddings_ND: one unit vector per chunk.
            metadata: a flat object, which filters compare.
            file: the attachment it belongs to.

        Raises:
            DetachedError: the attachment is no longer in progress.
            CorpusError: it could not be written, for example because the disk is full, or the
                corpus was re-embedded or retokenized since it was opened or checked, or has
                examples of another template; nothing was changed.
            ValueError: the metadata is not valid JSON.
        """
        return self._store.add(
            name,
            sha256,
            chunks,
            embeddings_ND,
            metadata or {},
            self._checked_uuid,
            file,
            self._checked_tokenizer,
            self._checked_template,
        )

    def delete(self, document: str | int) -> bool:
        """Delete a document by name or id; False if it does not exist. Durable once it returns."""
        return self._store.delete(document)

    def has(self, name: str, sha256: str) -> bool:
        """Whether a document of that name and content exists, so that adding can resume."""
        return self._store.has(name, sha256)

    def has_name(self, name: str) -> bool:
        """Whether a document of that name exists, whatever its content."""
        return self._store.has_name(name)

    def names(self, file: str) -> list[str]:
        """The names of the documents that belong to an attachment."""
        return self._store.names(file)

    def token_sequences(self, name: str | None = None) -> Counter[bytes]:
        """The number of sequences with the same tokens, in the corpus or in one document; the keys
        are the bytes of int32 token ids.
        """
        return Counter(self._store.token_sequences(name))

    def counts(self) -> tuple[int, int]:
        """The numbers of documents and of sequences."""
        return self._store.counts()

    def documents(self) -> list[DocumentInfo]:
        """Every document, by name."""
        return self._store.documents()

    def meta(self) -> dict[str, str]:
        """Its metadata: `id`, which never changes, `created` (seconds since 1970, UTC) and more."""
        return self._store.meta()

    def update_meta(self, changes: Mapping[str, str]) -> None:
        """Add or replace metadata, such as `name`, the display name."""
        self._store.update_meta(changes)

    @property
    def embedder(self) -> str:
        """Name of the embedder it was made with."""
        return self._store.meta()["embedder"]

    def nearest(
        self,
        targets_TD: Embeddings,
        k: int | None,
        filter: Filter | None = None,
        on_search: Callable[[], None] = lambda: None,
    ) -> tuple[Ids, Embeddings]:
        """The k sequences of largest absolute similarity to any target: ids [K], embeddings [K, D].

        Args:
            targets_TD: unit vectors.
            k: number of sequences; None returns all.
            filter: a filter on the documents' metadata (`selection.corpus.filters`), applied inside
                the search.
            on_search: called in the read transaction of the search.

        Raises:
            ValueError: an invalid filter.
        """
        index, allowed = self._index.current(filter, on_search)
        return index.nearest(targets_TD, k, allowed)

    def read(self, sequences: Sequence[int]) -> dict[int, StoredSequence]:
        """Sequences by id; deleted ones are left out. Raises CorpusError if the corpus was
        retokenized since its tokenizer was checked.
        """
        found = self._store.read(sequences)
        if self._checked_tokenizer is not None:
            self.check_tokenizer(self._checked_tokenizer, self._checked_template)
        return found

    def sequences_of(self, document: int) -> list[StoredSequence]:
        """The sequences of a document, in order; raises as `read`."""
        return list(self.read(self._store.sequences_of(document)).values())

    def build_index(self) -> None:
        """As `IndexManager.rebuild_if_stale`."""
        self._index.rebuild_if_stale()

    def reembedded_count(self, embedder: Embedder) -> int:
        """The number of new embeddings that an interrupted run for this embedder has left."""
        return self._store.reembedding.count(identity_of(embedder))

    def reembed(
        self, embedder: Embedder, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Replace every embedding by another embedder's. Until all are complete nothing changes,
        and an interrupted run resumes.

        Args:
            embedder: the new embedder.
            on_progress: called with the number of sequences just embedded and of all sequences.

        Raises:
            CorpusError: another process re-embeds the corpus at the same time.
        """
        identity, new = identity_of(embedder), self._store.reembedding
        total = self.counts()[1]
        new.begin(identity)
        while not new.finish(identity):
            while pending := new.pending(_BATCH):
                texts = [embedded_text(text, example, embedder) for _, text, example in pending]
                new.save(identity, [row[0] for row in pending], embedder.embed(texts))
                on_progress(len(pending), total)
        self.check(embedder)
        self.build_index()
