"""Library: corpora as vector stores, after OpenAI's model: vector stores, uploaded files, files
attached to vector stores.

Each corpus is a vector store, however it was created; its id never changes, not even when the
corpus is re-embedded. A file is uploaded once and attached to any number of vector stores; it is
chunked, embedded and added in the background (`ingest_worker`). A search finds sequences by
similarity and by their file's attributes.

Plain and synchronous, without HTTP. Use it from one thread at a time, except for `search`, which
any number of threads may call; other processes may use the corpora at the same time.

Shapes: T targets, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.filters import Filter, Scalar
from selection.corpus.pool import CorpusPool
from selection.corpus.positions import new_id
from selection.corpus.tables.attachment import STATUSES, Attachment
from selection.embedding import Prompt
from selection.errors import CorpusNotFoundError, LibraryError, MissingError
from selection.ingest.examples import ExampleChunker
from selection.ingest.ingest import Chunking, tokenizer_digest
from selection.library.ingest_worker import IngestWorker
from selection.library.records import (
    AttachedFile,
    AttachmentRequest,
    FileBatch,
    Page,
    PageRequest,
    VectorStoreInfo,
    page_of_batch,
    page_of_files,
)
from selection.library.search import SearchResult, check_query, most_similar
from selection.library.trainings import StoreTrainings
from selection.library.uploads.base import UploadedFile
from selection.library.uploads.places import uploads_at
from selection.library.validation import checked_attributes, parse_chunking
from selection.library.vector_stores import VectorStores
from selection.limit import UNLIMITED, Limit
from selection.location import Location
from selection.threaded_embedder import ThreadedEmbedder

# Maximum number of files of one batch.
_FILES = 2000


class Library:
    """The corpora at one location and the files uploaded for them.

    Args:
        root: where all corpora are.
        embedder: the embedder of the corpora; those of another one are listed, but files can
            neither be attached to them nor searched in them.
        tokenizer: the base model's tokenizer, which nothing else may use.
        files: folder of uploaded files; they are in the database if the corpora are.
        corpora: a pool of open corpora to search in, to share their indexes; None creates one.
        max_tokens: the base model's context, into which an example must fit; None for no limit.

    Every method takes the `principal` on whose behalf it acts: what they do not see does not exist
    for them (MissingError), and what they see without owning it they may not change
    (ReadOnlyError). Methods that take a vector store, a file or a batch raise MissingError if it
    does not exist; a vector store is given by its id or its name.
    """

    def __init__(
        self,
        root: Location,
        embedder: ThreadedEmbedder,
        tokenizer: Any,
        files: Path,
        corpora: CorpusPool | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._embedder = embedder
        examples = ExampleChunker(tokenizer, max_tokens)
        digests = tokenizer_digest(tokenizer), examples.digest
        self._stores = VectorStores(root, self._embedder, *digests)
        self.trainings = StoreTrainings(self._stores)
        self._corpora = corpora or CorpusPool(root, self._embedder, *digests)
        self._uploads = uploads_at(root, files)
        self._worker = IngestWorker(root, self._embedder, tokenizer, examples, self._uploads)

    def close(self) -> None:
        """Stop ingesting; files in progress are ingested when the library is opened again."""
        self._worker.close()
        self._corpora.close()

    def create_store(
        self,
        name: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        description: str | None = None,
        attachments: Sequence[AttachmentRequest] = (),
        principal: Principal = OPERATOR,
    ) -> VectorStoreInfo:
        """Create a vector store that the principal owns.

        Its corpus is called by its name if that is a valid and unused name of a corpus and the
        principal has no owner name, and else by its id.

        Raises:
            LibraryError: an invalid name, description, attachment or metadata.
            MissingError: a file to attach does not exist.
        """
        files = [self._attachment(each, principal) for each in attachments]
        with self._stores.create(name, metadata, description, principal.owner) as corpus:
            self._attach(corpus, files)
            return self._stores.info(corpus)

    def stores(
        self, page: PageRequest, *, principal: Principal = OPERATOR
    ) -> Page[VectorStoreInfo]:
        """Vector stores by creation time; damaged ones are left out."""
        return self._stores.page(page, principal)

    def store(self, store: str, *, principal: Principal = OPERATOR) -> VectorStoreInfo:
        """A vector store."""
        with self._stores.open(store, principal) as corpus:
            return self._stores.info(corpus)

    def modify_store(
        self,
        store: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        principal: Principal = OPERATOR,
    ) -> VectorStoreInfo:
        """Change the display name or the metadata of a vector store. The name of its corpus does
        not change, and still finds it.

        Raises:
            LibraryError: an invalid name or metadata.
        """
        return self._stores.modify(store, name, metadata, principal)

    def delete_store(self, store: str, *, principal: Principal = OPERATOR) -> str:
        """Delete a vector store and its contents except for the uploaded files; returns its id."""
        return self._stores.delete(store, principal)

    def upload(
        self,
        name: str,
        content: bytes,
        purpose: str = "assistants",
        *,
        principal: Principal = OPERATOR,
    ) -> UploadedFile:
        """Store a file that the principal owns, as `Uploads.add`."""
        return self._uploads.add(name, content, purpose, principal.owner)

    def uploads(
        self, page: PageRequest, purpose: str | None = None, *, principal: Principal = OPERATOR
    ) -> Page[UploadedFile]:
        """Uploaded files, or those of one purpose, by creation time."""
        return self._uploads.page(page, purpose, principal)

    def uploaded(self, file: str, *, principal: Principal = OPERATOR) -> UploadedFile:
        """The record of an uploaded file."""
        return self._uploads.get(file, principal)

    def content(self, file: str, *, principal: Principal = OPERATOR) -> bytes:
        """The content of an uploaded file."""
        return self._uploads.content(self._uploads.get(file, principal))

    def delete_upload(self, file: str, *, principal: Principal = OPERATOR) -> None:
        """Delete an uploaded file, and detach it from every vector store of every owner."""
        self._uploads.get(file, principal)
        for corpus in self._stores.all():
            # A corpus that was removed since it was listed has no attachments any more.
            with suppress(CorpusNotFoundError):
                corpus.attachments.detach(file)
        self._uploads.delete(file)

    def attach(
        self, store: str, attachment: AttachmentRequest, *, principal: Principal = OPERATOR
    ) -> AttachedFile:
        """Attach an uploaded file, or attach it again with other attributes; it is ingested in the
        background.

        Raises:
            LibraryError: invalid attributes or chunking, or a vector store of another embedder or
                tokenizer.
        """
        file = self._attachment(attachment, principal)
        with self._stores.open_owned(store, principal) as corpus:
            self._attach(corpus, [file])
            return AttachedFile.of(corpus, file.id)

    def attach_batch(
        self,
        store: str,
        attachments: Sequence[AttachmentRequest],
        *,
        principal: Principal = OPERATOR,
    ) -> FileBatch:
        """Attach several files as `attach` does: all of them or none."""
        if not 1 <= len(attachments) <= _FILES:
            raise LibraryError(f"a batch has 1 to {_FILES} files")
        batch, _ = new_id("vsfb_")
        files = {each.file: self._attachment(each, principal, batch) for each in attachments}
        with self._stores.open_owned(store, principal) as corpus:
            self._attach(corpus, [*files.values()])
            return FileBatch.of(corpus, batch)

    def batch(self, store: str, batch: str, *, principal: Principal = OPERATOR) -> FileBatch:
        """A batch of files that were attached together, with their outcome."""
        with self._stores.open(store, principal) as corpus:
            return FileBatch.of(corpus, batch)

    def cancel_batch(self, store: str, batch: str, *, principal: Principal = OPERATOR) -> FileBatch:
        """Cancel the files of a batch that are in progress, except for those that were attached
        again since.
        """
        with self._stores.open_owned(store, principal) as corpus:
            FileBatch.of(corpus, batch)
            corpus.file_batches.cancel(batch)
            return FileBatch.of(corpus, batch)

    def files(
        self,
        store: str,
        page: PageRequest,
        *,
        status: str | None = None,
        batch: str | None = None,
        principal: Principal = OPERATOR,
    ) -> Page[AttachedFile]:
        """The files of a vector store, or those of one status, by the time they were first
        attached.

        With a batch, the files that were attached with it, as they were then, and their outcome.
        """
        if status is not None and status not in STATUSES:
            raise LibraryError(f"`filter` must be one of {', '.join(STATUSES)}")
        with self._stores.open(store, principal) as corpus:
            if batch is None:
                return page_of_files(corpus, page, status)
            return page_of_batch(corpus, FileBatch.of(corpus, batch), page, status)

    def file(self, store: str, file: str, *, principal: Principal = OPERATOR) -> AttachedFile:
        """A file of a vector store."""
        with self._stores.open(store, principal) as corpus:
            return AttachedFile.of(corpus, file)

    def texts(self, store: str, file: str, *, principal: Principal = OPERATOR) -> tuple[str, ...]:
        """The texts of a file's sequences, in order."""
        with self._stores.open(store, principal) as corpus:
            AttachedFile.of(corpus, file)
            return tuple(corpus.attachments.texts(file))

    def modify_file(
        self,
        store: str,
        file: str,
        attributes: Mapping[str, Scalar],
        *,
        principal: Principal = OPERATOR,
    ) -> AttachedFile:
        """Change the attributes of a file; it is ingested again in the background.

        Raises:
            LibraryError: invalid attributes, or a file that was not uploaded.
        """
        with self._stores.open_owned(store, principal) as corpus:
            now = AttachedFile.of(corpus, file).file
            if now.chunking is None:
                raise LibraryError(
                    f"{file} was not uploaded: its attributes are those it was added with"
                )
            request = AttachmentRequest(file, attributes, now.chunking)
            # The operator may use every upload. This file is in the principal's vector store
            # already, whichever principal uploaded it.
            self._attach(corpus, [self._attachment(request, OPERATOR, now.batch)])
            return AttachedFile.of(corpus, file)

    def detach(self, store: str, file: str, *, principal: Principal = OPERATOR) -> None:
        """Remove a file from a vector store, with its documents; the uploaded file stays."""
        with self._stores.open_owned(store, principal) as corpus:
            AttachedFile.of(corpus, file)
            corpus.attachments.detach(file) or corpus.delete(int(file.removeprefix("doc-")))

    def search(
        self,
        store: str,
        queries: Sequence[str],
        *,
        max_results: int = 10,
        threshold: float = 0.0,
        filter: Filter | None = None,
        principal: Principal = OPERATOR,
        limit: Limit = UNLIMITED,
    ) -> tuple[SearchResult, ...]:
        """The sequences most similar to any of the queries, most similar first.

        Args:
            store: id or name of the vector store.
            queries: texts, each embedded like a prompt (`selection.embedding.split_windows`).
            max_results: largest number of sequences.
            threshold: lowest score.
            filter: a filter on attributes (`selection.corpus.filters`).
            principal: on whose behalf.
            limit: how long it may take; checked between units of work.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached.
            LibraryError: invalid queries or an invalid filter, or a vector store of another
                embedder or tokenizer.
        """
        check_query(queries, filter)
        with self._stores.open(store, principal) as corpus:
            self._stores.check(corpus)
            identity = corpus.meta()["id"]
        # No corpus is locked while the queries are embedded, which may take long.
        windows = [
            text for query in queries for text in self._embedder.windows(Prompt(query), limit)
        ]
        targets_TD = self._embedder.embed(windows, limit)
        try:
            with self._corpora.open(identity, principal, limit) as shared:
                found = most_similar(shared, targets_TD, max_results, filter)
        except CorpusNotFoundError:
            raise MissingError(f"there is no vector store {store!r}") from None
        return tuple(each for each in found if each.score >= threshold)

    def _attachment(
        self, request: AttachmentRequest, principal: Principal, batch: str | None = None
    ) -> Attachment:
        chunking = request.chunking or (Chunking().max_length, Chunking().overlap)
        attributes = checked_attributes(request.attributes, "attributes")
        upload = self._uploads.get(request.file, principal)
        return Attachment(upload.id, upload.name, attributes, parse_chunking(*chunking), batch)

    def _attach(self, corpus: Corpus, files: Sequence[Attachment]) -> None:
        self._stores.check(corpus)
        corpus.attachments.attach(files)
        self._worker.put(corpus.name, [file.id for file in files])
