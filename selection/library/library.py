"""Library: corpora as vector stores, after OpenAI's model of them: stores, uploaded files, files
attached to stores.

A store is a corpus, whoever made it; its id is the corpus's own and stays when the corpus is
embedded anew. A file is uploaded once and attached to any number of stores: it is cut, embedded and
added in the background (`intake`). A search finds sequences by meaning and by their file's
attributes.

Plain and synchronous, without HTTP. Use it from one thread at a time; others may use the corpora
meanwhile, and any number of them may `search`.

Shapes: T targets, D embedding dimensions.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selection.access import OPERATOR, Principal
from selection.corpus.attachments import STATES, Attachment
from selection.corpus.corpus import ID, NAME, Corpus, find_corpus, list_corpora
from selection.corpus.filters import Filter, Scalar
from selection.corpus.pool import CorpusPool
from selection.corpus.positions import Deleted, Position, new_id
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Prompt
from selection.ingest.ingest import Chunking, tokenizer_digest
from selection.library.ingest_worker import IngestWorker
from selection.library.records import (
    AttachedFile,
    AttachmentRequest,
    Batch,
    Page,
    PageRequest,
    StoreEntry,
    page_of_batch,
    page_of_files,
    parse_chunking,
)
from selection.library.search import SearchResult, check_query, most_similar
from selection.library.uploads import (
    LibraryError,
    MissingError,
    ReadOnlyError,
    UploadedFile,
    Uploads,
    checked_attributes,
    checked_text,
)
from selection.limit import UNLIMITED, Limit
from selection.threaded_embedder import ThreadedEmbedder

log = logging.getLogger(__name__)

_FILES = 2000  # attached at once


class Library:
    """The corpora under one folder, and the files that were uploaded for them.

    Args:
        root: the folder of all corpora.
        embedder: theirs; those of another are listed, but take no files and are not searched.
        tokenizer: the base model's; the library must be the only one to use it.
        files: the folder of uploaded files.
        corpora: the open corpora to search in, to share their indexes; None opens its own.

    Every method takes the `reader` on whose behalf it acts: what they do not see is not there
    (MissingError), what they see without owning it they may not change (ReadOnlyError).
    """

    def __init__(
        self,
        root: Path,
        embedder: Embedder,
        tokenizer: Any,
        files: Path,
        corpora: CorpusPool | None = None,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        # The intake's thread uses it, too. One that is shared already is used as it is: of two in a
        # row the outer one would have a single turn in the inner one, for all that is searched and
        # read here.
        self._embedder = (
            embedder
            if isinstance(embedder, ThreadedEmbedder)
            else ThreadedEmbedder(lambda: embedder)
        )
        self._tokenizer = tokenizer_digest(tokenizer)
        self._corpora = corpora or CorpusPool(root, self._embedder, self._tokenizer)
        self._uploads = Uploads(files)
        self._intake = IngestWorker(root, self._embedder, tokenizer, self._uploads)

    def close(self) -> None:
        """End the reading of files; what was not read yet is read when the library is opened again."""
        self._intake.close()
        self._corpora.close()

    def create_store(
        self,
        name: str | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        description: str | None = None,
        wanted: Sequence[AttachmentRequest] = (),
        reader: Principal = OPERATOR,
    ) -> StoreEntry:
        """Make a store of the reader's. Its corpus has its name, where that is free and can be one,
        else its id.

        An owned corpus always has its id.

        Raises:
            LibraryError: a name, metadata or a description that is none.
            MissingError: there is no file of that id.
        """
        identity, created = new_id("vs_")
        about = {"id": identity, "created": str(created)}
        about["name"] = about["id"] if name is None else checked_text(name, "`name`", 256)
        about["metadata"] = json.dumps(checked_attributes(metadata, "metadata", (str,)))
        about["description"] = (
            "" if description is None else checked_text(description, "`description`", 1024)
        )
        files = [self._checked(each, reader) for each in wanted]
        if reader.owner is not None:
            about["owner"] = reader.owner
        folder = self._folder(about)
        try:
            corpus = Corpus.create(self._root, folder.name, self._embedder, self._tokenizer, about)
        except CorpusError:
            try:
                # Another process was faster: it is theirs.
                Corpus.open(self._root, folder.name).close()
            except CorpusError:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            self._attach(corpus, files)
            return StoreEntry.of(corpus)
        finally:
            corpus.close()

    def stores(self, part: PageRequest, *, reader: Principal = OPERATOR) -> Page[StoreEntry]:
        """Stores by the time they were made; those that can be opened."""
        known = {entry.id: entry for entry in map(StoreEntry.of, self._every(reader))}

        def find(cursor: str) -> Position | None:
            if cursor in known:
                return known[cursor].position
            return Deleted(self._root).position(
                cursor, "vs_", lambda gone: reader.sees(gone["folder"], gone)
            )

        oldest_first = sorted(known.values(), key=lambda entry: entry.position)
        return part.of(oldest_first, lambda entry: entry.position, find)

    def store(self, store: str, *, reader: Principal = OPERATOR) -> StoreEntry:
        """The store of that id or name.

        Raises:
            MissingError: there is none; so does every method that names a store, a file or a batch.
        """
        with self._opened(store, reader) as corpus:
            return StoreEntry.of(corpus)

    def modify_store(
        self,
        store: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        reader: Principal = OPERATOR,
    ) -> StoreEntry:
        """Give a store another display name or metadata. The name of its corpus stays, and goes on
        to find it.

        Raises:
            LibraryError: a name or metadata that is none.
        """
        changes = {}
        if name is not None:
            changes["name"] = checked_text(name, "`name`", 256)
        if metadata is not None:
            changes["metadata"] = json.dumps(checked_attributes(metadata, "metadata", (str,)))
        with self._owned(store, reader) as corpus:
            corpus.remember(changes)
            return StoreEntry.of(corpus)

    def delete_store(self, store: str, *, reader: Principal = OPERATOR) -> str:
        """Delete a store and everything in it but the uploaded files; returns its id."""
        with self._owned(store, reader) as corpus:
            identity = corpus.meta()["id"]
            corpus.attachments.cancel()
            try:
                corpus.remove()
            except OSError as problem:
                if (corpus.folder / "corpus.db").exists():
                    raise
                log.warning(
                    "corpus %r is deleted, but its folder is left: %s", corpus.name, problem
                )
            return identity

    def upload(
        self,
        name: str,
        content: bytes,
        purpose: str = "assistants",
        *,
        reader: Principal = OPERATOR,
    ) -> UploadedFile:
        """Keep a file, the reader's, as `Uploads.add`."""
        return self._uploads.add(name, content, purpose, reader.owner)

    def uploads(
        self, part: PageRequest, purpose: str | None = None, *, reader: Principal = OPERATOR
    ) -> Page[UploadedFile]:
        """Uploaded files by the time they came."""
        kept = [
            upload for upload in self._uploads.every(reader) if purpose in (None, upload.purpose)
        ]
        return part.of(
            kept,
            lambda upload: upload.position,
            lambda cursor: self._uploads.position(cursor, reader),
        )

    def uploaded(self, file: str, *, reader: Principal = OPERATOR) -> UploadedFile:
        """The record of an uploaded file."""
        return self._uploads.get(file, reader)

    def content(self, file: str, *, reader: Principal = OPERATOR) -> bytes:
        """The content of an uploaded file."""
        return self._uploads.path(self._uploads.get(file, reader)).read_bytes()

    def delete_upload(self, file: str, *, reader: Principal = OPERATOR) -> None:
        """Delete an uploaded file, and take it out of every store, whoever attached it."""
        self._uploads.get(file, reader)
        for corpus in self._every():
            with suppress(CorpusNotFoundError):  # removed just now
                corpus.attachments.detach(file)
        self._uploads.delete(file)

    def attach(
        self, store: str, wanted: AttachmentRequest, *, reader: Principal = OPERATOR
    ) -> AttachedFile:
        """Attach an uploaded file, or attach it anew with other attributes; it is read in the
        background.

        Raises:
            LibraryError: attributes or a cut that are none, or a store of another embedder or
                tokenizer.
        """
        attachment = self._checked(wanted, reader)
        with self._owned(store, reader) as corpus:
            self._attach(corpus, [attachment])
            return AttachedFile.of(corpus, wanted.file)

    def attach_batch(
        self, store: str, wanted: Sequence[AttachmentRequest], *, reader: Principal = OPERATOR
    ) -> Batch:
        """Attach several files, as `attach`: all or none."""
        if not 1 <= len(wanted) <= _FILES:
            raise LibraryError(f"a batch has 1 to {_FILES} files")
        name, _ = new_id("vsfb_")
        files = {each.file: self._checked(each, reader, name) for each in wanted}
        with self._owned(store, reader) as corpus:
            self._attach(corpus, [*files.values()])
            return Batch.of(corpus, name)

    def batch(self, store: str, batch: str, *, reader: Principal = OPERATOR) -> Batch:
        """The batch of that id: what became of the files that were attached together."""
        with self._opened(store, reader) as corpus:
            return Batch.of(corpus, batch)

    def cancel_batch(self, store: str, batch: str, *, reader: Principal = OPERATOR) -> Batch:
        """Give up the files of a batch that are still in progress; one that was attached again
        since is read on.
        """
        with self._owned(store, reader) as corpus:
            Batch.of(corpus, batch)
            corpus.batches.cancel(batch)
            return Batch.of(corpus, batch)

    def files(
        self,
        store: str,
        part: PageRequest,
        *,
        status: str | None = None,
        batch: str | None = None,
        reader: Principal = OPERATOR,
    ) -> Page[AttachedFile]:
        """The files of a store by the time they were first attached, of one status.

        Of a batch those that were attached with it, as they were then, and what became of that.
        """
        if status is not None and status not in STATES:
            raise LibraryError(f"`filter` is one of {', '.join(STATES)}")
        with self._opened(store, reader) as corpus:
            if batch is None:
                return page_of_files(corpus, part, status)
            return page_of_batch(corpus, Batch.of(corpus, batch), part, status)

    def file(self, store: str, file: str, *, reader: Principal = OPERATOR) -> AttachedFile:
        """A file of a store."""
        with self._opened(store, reader) as corpus:
            return AttachedFile.of(corpus, file)

    def texts(self, store: str, file: str, *, reader: Principal = OPERATOR) -> tuple[str, ...]:
        """The texts of a file's sequences, in order."""
        with self._opened(store, reader) as corpus:
            AttachedFile.of(corpus, file)
            return tuple(corpus.attachments.texts(file))

    def modify_file(
        self,
        store: str,
        file: str,
        attributes: Mapping[str, Scalar],
        *,
        reader: Principal = OPERATOR,
    ) -> AttachedFile:
        """Give a file other attributes; it is read anew in the background.

        Raises:
            LibraryError: attributes that are none, or a file that was not uploaded.
        """
        with self._owned(store, reader) as corpus:
            seen = AttachedFile.of(corpus, file).file
            if seen.cut is None:
                raise LibraryError(
                    f"{file} was not uploaded: its attributes are those it was added with"
                )
            # The file is in their store already, whoever attached it.
            self._attach(
                corpus,
                [
                    self._checked(
                        AttachmentRequest(file, attributes, seen.cut), OPERATOR, seen.batch
                    )
                ],
            )
            return AttachedFile.of(corpus, file)

    def detach(self, store: str, file: str, *, reader: Principal = OPERATOR) -> None:
        """Take a file out of a store, with its documents; the uploaded file stays."""
        with self._owned(store, reader) as corpus:
            AttachedFile.of(corpus, file)
            corpus.attachments.detach(file) or corpus.delete(int(file.removeprefix("doc-")))

    def search(
        self,
        store: str,
        queries: Sequence[str],
        *,
        limit: int = 10,
        threshold: float = 0.0,
        only: Filter | None = None,
        reader: Principal = OPERATOR,
        until: Limit = UNLIMITED,
    ) -> tuple[SearchResult, ...]:
        """The sequences most similar to any of the queries, most similar first.

        Args:
            store: its id or name.
            queries: each is embedded as a prompt is (`selection.embedding.split_windows`).
            limit: the most sequences.
            threshold: the lowest score.
            only: a filter on attributes (`selection.corpus.filters`).
            reader: who searches.
            until: how long it may take; looked at between units of work.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached.
            LibraryError: queries or a filter that are none, or a store of another embedder or
                tokenizer.
        """
        check_query(queries, only)
        with self._opened(store, reader) as corpus:
            self._check(corpus)
            identity = corpus.meta()["id"]
        # Nothing is held meanwhile: other searches take their turns between the parts of this one.
        windows = [
            text for query in queries for text in self._embedder.windows(Prompt(query), until)
        ]
        targets_TD = self._embedder.embed(windows, until)
        try:
            with self._corpora.use(identity, reader, until) as shared:
                found = most_similar(shared, targets_TD, limit, only)
        except CorpusNotFoundError:
            raise MissingError(f"there is no vector store {store!r}") from None
        return tuple(each for each in found if each.score >= threshold)

    @contextmanager
    def _opened(self, store: str, reader: Principal) -> Iterator[Corpus]:
        try:
            corpus = Corpus.open(self._root, self._name(store, reader), reader)
            try:
                yield corpus
            finally:
                corpus.close()
        except CorpusNotFoundError:
            raise MissingError(f"there is no vector store {store!r}") from None

    @contextmanager
    def _owned(self, store: str, reader: Principal) -> Iterator[Corpus]:
        with self._opened(store, reader) as corpus:
            if not reader.owns(corpus.meta().get("owner")):
                raise ReadOnlyError(f"vector store {store!r} is yours to read, not to change")
            yield corpus

    def _every(self, reader: Principal = OPERATOR) -> Iterator[Corpus]:
        """Each corpus that the reader sees and that can be opened; the log tells of the others."""
        for name in list_corpora(self._root):
            try:
                with self._opened(name, OPERATOR) as corpus:
                    if reader.sees(corpus.name, corpus.meta()):
                        yield corpus
            except MissingError:  # removed just now
                continue
            except CorpusError as problem:
                log.warning("%s (%s)", problem, self._root / name)

    def _name(self, store: str, reader: Principal) -> str:
        try:
            return find_corpus(self._root, store, reader).name
        except CorpusNotFoundError:
            raise
        except CorpusError as problem:  # several have that display name
            raise LibraryError(str(problem)) from problem

    def _folder(self, about: Mapping[str, str]) -> Path:
        """A new, empty folder: of a store's name, if it can be one and is not taken, else of its
        id.
        """
        name, identity = about["name"], about["id"]
        # An owner takes no name from others: neither from `mayfly corpus add`, nor to learn which
        # there are.
        if NAME.fullmatch(name) and not ID.fullmatch(name) and "owner" not in about:
            try:
                (self._root / name).mkdir()
                return self._root / name
            except FileExistsError:
                pass
        (self._root / identity).mkdir()
        return self._root / identity

    def _check(self, corpus: Corpus) -> None:
        try:
            corpus.check(self._embedder, self._tokenizer)
        except CorpusNotFoundError:
            raise
        except CorpusError as problem:
            raise LibraryError(str(problem)) from problem

    def _checked(
        self, wanted: AttachmentRequest, reader: Principal, batch: str | None = None
    ) -> Attachment:
        cut = parse_chunking(*(wanted.cut or (Chunking().max_length, Chunking().overlap)))
        attributes = checked_attributes(wanted.attributes, "attributes")
        upload = self._uploads.get(wanted.file, reader)
        return Attachment(upload.id, upload.name, attributes, cut, batch)

    def _attach(self, corpus: Corpus, files: Sequence[Attachment]) -> None:
        self._check(corpus)
        corpus.attachments.attach(files)
        self._intake.put(corpus.name, [file.id for file in files])
