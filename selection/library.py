"""Library: corpora as vector stores, after OpenAI's model of them: stores, uploaded files, files attached to stores.

A store is a corpus, whoever made it; its id is the corpus's own and stays when the corpus is embedded anew. A file is
uploaded once and attached to any number of stores: it is cut, embedded and added in the background (`intake`). A
search finds sequences by meaning and by their file's attributes.

Plain and synchronous, without HTTP. Use it from one thread at a time; others may use the corpora meanwhile.

Shapes: T targets, D embedding dimensions.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selection.attachments import STATES, Attachment
from selection.catalogue import AttachedFile, Batch, Page, Part, StoreEntry, Wanted
from selection.corpus import ID, NAME, Corpus, find_corpus, list_corpora
from selection.documents import Cut, tokenizer_digest
from selection.embedding import Embedder, Prompt
from selection.filters import Filter, Scalar, to_sql
from selection.intake import Intake
from selection.search import Found, most_similar
from selection.shared import OpenCorpora, SharedEmbedder
from selection.store import CorpusError, CorpusNotFoundError
from selection.uploads import LibraryError, MissingError, UploadedFile, Uploads, checked_attributes, checked_text

log = logging.getLogger(__name__)

_BATCH = re.compile(r"vsfb_[0-9a-f]{24}")
_SHORTEST, _LONGEST = 8, 4096  # tokens of a sequence
_QUERIES, _QUERY = 16, 1 << 15  # queries of one search, characters of one
_FILES = 2000  # attached at once


class Library:
    """The corpora under one folder, and the files that were uploaded for them.

    Args:
        root: the folder of all corpora.
        embedder: theirs; those of another are listed, but take no files and are not searched.
        tokenizer: the base model's; the library must be the only one to use it.
        files: the folder of uploaded files.
        corpora: the open corpora to search in, to share their indexes; None opens its own.
    """

    def __init__(
        self, root: Path, embedder: Embedder, tokenizer: Any, files: Path, corpora: OpenCorpora | None = None
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._embedder = SharedEmbedder(embedder)  # the intake's thread uses it, too
        self._tokenizer = tokenizer_digest(tokenizer)
        self._corpora = corpora or OpenCorpora(root, self._embedder, self._tokenizer)
        self._uploads = Uploads(files)
        self._intake = Intake(root, self._embedder, tokenizer, self._uploads)

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
        wanted: Sequence[Wanted] = (),
    ) -> StoreEntry:
        """Make a store. Its corpus has its name, where that is free and a corpus's name can be it, else its id.

        Raises:
            LibraryError: a name, metadata or a description that is none.
            MissingError: there is no file of that id.
        """
        about = {"id": f"vs_{secrets.token_hex(12)}"}
        about["name"] = about["id"] if name is None else checked_text(name, "`name`", 256)
        about["metadata"] = json.dumps(checked_attributes(metadata, "metadata", (str,)))
        about["description"] = "" if description is None else checked_text(description, "`description`", 1024)
        files = [self._checked(each) for each in wanted]
        folder = self._folder(about["name"], about["id"])
        try:
            corpus = Corpus.create(self._root, folder.name, self._embedder, self._tokenizer, about)
        except CorpusError:
            try:
                Corpus.open(self._root, folder.name).close()  # another process was faster: it is theirs
            except CorpusError:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            self._attach(corpus, files)
            return _entry(corpus)
        finally:
            corpus.close()

    def stores(self, part: Part) -> Page[StoreEntry]:
        """Stores by the time they were made; those that can be opened."""
        known = [_entry(corpus) for corpus in self._every()]
        return part.of(sorted(known, key=lambda entry: (entry.created, entry.id)), lambda entry: entry.id)

    def store(self, store: str) -> StoreEntry:
        """The store of that id or name.

        Raises:
            MissingError: there is none; so does every method that names a store, a file or a batch.
        """
        with self._opened(store) as corpus:
            return _entry(corpus)

    def modify_store(
        self, store: str, *, name: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> StoreEntry:
        """Give a store another display name or metadata. The name of its corpus stays, and goes on to find it.

        Raises:
            LibraryError: a name or metadata that is none.
        """
        changes = {}
        if name is not None:
            changes["name"] = checked_text(name, "`name`", 256)
        if metadata is not None:
            changes["metadata"] = json.dumps(checked_attributes(metadata, "metadata", (str,)))
        with self._opened(store) as corpus:
            corpus.remember(changes)
            return _entry(corpus)

    def delete_store(self, store: str) -> str:
        """Delete a store and everything in it but the uploaded files; returns its id."""
        with self._opened(store) as corpus:
            identity = corpus.meta()["id"]
            self._cancel(corpus)
            try:
                corpus.remove()
            except OSError as problem:
                if (corpus.folder / "corpus.db").exists():
                    raise
                log.warning("corpus %r is deleted, but its folder is left: %s", corpus.name, problem)
            return identity

    def upload(self, name: str, content: bytes, purpose: str = "assistants") -> UploadedFile:
        """Keep a file, as `Uploads.add`."""
        return self._uploads.add(name, content, purpose)

    def uploads(self, part: Part, purpose: str | None = None) -> Page[UploadedFile]:
        """Uploaded files by the time they came."""
        kept = [upload for upload in self._uploads.every() if purpose in (None, upload.purpose)]
        return part.of(kept, lambda upload: upload.id)

    def uploaded(self, file: str) -> UploadedFile:
        """The record of an uploaded file."""
        return self._uploads.get(file)

    def content(self, file: str) -> bytes:
        """The content of an uploaded file."""
        return self._uploads.path(self._uploads.get(file)).read_bytes()

    def delete_upload(self, file: str) -> None:
        """Delete an uploaded file, and take it out of every store."""
        self._uploads.get(file)
        for corpus in self._every():
            with suppress(CorpusNotFoundError):  # removed just now
                corpus.attachments.detach(file)
        self._uploads.delete(file)

    def attach(self, store: str, wanted: Wanted) -> AttachedFile:
        """Attach an uploaded file, or attach it anew with other attributes; it is read in the background.

        Raises:
            LibraryError: attributes or a cut that are none, or a store of another embedder or tokenizer.
        """
        attachment = self._checked(wanted)
        with self._opened(store) as corpus:
            self._attach(corpus, [attachment])
            return _attached(corpus, wanted.file)

    def attach_batch(self, store: str, wanted: Sequence[Wanted]) -> Batch:
        """Attach several files, as `attach`: all or none."""
        if not 1 <= len(wanted) <= _FILES:
            raise LibraryError(f"a batch has 1 to {_FILES} files")
        name = f"vsfb_{secrets.token_hex(12)}"
        files = [self._checked(each, name) for each in wanted]
        with self._opened(store) as corpus:
            self._attach(corpus, files)
            return _batch(corpus, name)

    def batch(self, store: str, batch: str) -> Batch:
        """The files that were attached together."""
        with self._opened(store) as corpus:
            return _batch(corpus, batch)

    def cancel_batch(self, store: str, batch: str) -> Batch:
        """Give up the files of a batch that are still in progress."""
        with self._opened(store) as corpus:
            self._cancel(corpus, batch)
            return _batch(corpus, batch)

    def files(
        self, store: str, part: Part, *, status: str | None = None, batch: str | None = None
    ) -> Page[AttachedFile]:
        """The files of a store by the time they were attached; of one status, of one batch."""
        if status is not None and status not in STATES:
            raise LibraryError(f"`filter` is one of {', '.join(STATES)}")
        with self._opened(store) as corpus:
            if batch is not None:
                _batch(corpus, batch)
            page = part.of(corpus.attachments.ids(status, batch), str)
            return Page(tuple(_attached(corpus, file) for file in page.items), page.more)

    def file(self, store: str, file: str) -> AttachedFile:
        """A file of a store."""
        with self._opened(store) as corpus:
            return _attached(corpus, file)

    def texts(self, store: str, file: str) -> tuple[str, ...]:
        """The texts of a file's sequences, in order."""
        with self._opened(store) as corpus:
            _attached(corpus, file)
            return tuple(corpus.attachments.texts(file))

    def modify_file(self, store: str, file: str, attributes: Mapping[str, Scalar]) -> AttachedFile:
        """Give a file other attributes; it is read anew in the background.

        Raises:
            LibraryError: attributes that are none, or a file that was not uploaded.
        """
        with self._opened(store) as corpus:
            seen = _attached(corpus, file).file
            if seen.cut is None:
                raise LibraryError(f"{file} was not uploaded: its attributes are those it was added with")
            self._attach(corpus, [self._checked(Wanted(file, attributes, seen.cut), seen.batch)])
            return _attached(corpus, file)

    def detach(self, store: str, file: str) -> None:
        """Take a file out of a store, with its documents; the uploaded file stays."""
        with self._opened(store) as corpus:
            _attached(corpus, file)
            corpus.attachments.detach(file) or corpus.delete(int(file.removeprefix("doc-")))

    def search(
        self, store: str, queries: Sequence[str], *, limit: int = 10, threshold: float = 0.0, only: Filter | None = None
    ) -> tuple[Found, ...]:
        """The sequences most similar to any of the queries, most similar first.

        Args:
            store: its id or name.
            queries: each is embedded as a prompt is (`selection.embedding.segments`).
            limit: the most sequences.
            threshold: the lowest score.
            only: a filter on attributes (`selection.filters`).

        Raises:
            LibraryError: queries or a filter that are none, or a store of another embedder or tokenizer.
        """
        if not 1 <= len(queries) <= _QUERIES or not all(0 < len(query) <= _QUERY for query in queries):
            raise LibraryError(f"`query` is a text of 1 to {_QUERY} characters, or a list of 1 to {_QUERIES} of them")
        try:
            if only is not None:
                to_sql(only)
        except ValueError as problem:
            raise LibraryError(f"`filters`: {problem}") from problem
        with self._opened(store) as corpus:
            self._check(corpus)
            name = corpus.name
        targets_TD = self._embedder.embed([text for q in queries for text in self._embedder.segments(Prompt(q))])
        with self._corpora.use(name) as corpus:
            found = most_similar(corpus, targets_TD, limit, only)
        return tuple(each for each in found if each.score >= threshold)

    @contextmanager
    def _opened(self, store: str) -> Iterator[Corpus]:
        try:
            corpus = Corpus.open(self._root, self._name(store))
            try:
                yield corpus
            finally:
                corpus.close()
        except CorpusNotFoundError:
            raise MissingError(f"there is no vector store {store!r}") from None

    def _every(self) -> Iterator[Corpus]:
        """Each corpus that can be opened; the log tells of the others."""
        for name in list_corpora(self._root):
            try:
                with self._opened(name) as corpus:
                    yield corpus
            except MissingError:  # removed just now
                continue
            except CorpusError as problem:
                log.warning("%s", problem)

    def _name(self, store: str) -> str:
        try:
            return find_corpus(self._root, store).name
        except CorpusNotFoundError:
            raise
        except CorpusError as problem:  # several have that display name
            raise LibraryError(str(problem)) from problem

    def _folder(self, name: str, identity: str) -> Path:
        """A new, empty folder: of that name, if it can be one and is not taken, else of that id."""
        if NAME.fullmatch(name) and not ID.fullmatch(name):
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

    def _checked(self, wanted: Wanted, batch: str | None = None) -> Attachment:
        length, overlap = wanted.cut or (Cut().max_length, Cut().overlap)
        if not _SHORTEST <= length <= _LONGEST or not 0 <= overlap <= length // 2:
            raise LibraryError(
                f"a chunk has {_SHORTEST} to {_LONGEST} tokens of the served model and overlaps by half of them at most"
            )
        attributes = checked_attributes(wanted.attributes, "attributes")
        upload = self._uploads.get(wanted.file)
        return Attachment(upload.id, upload.name, attributes, (length, overlap), batch)

    def _attach(self, corpus: Corpus, files: Sequence[Attachment]) -> None:
        self._check(corpus)
        corpus.attachments.attach(files)
        self._intake.put(corpus.name, [file.id for file in files])

    def _cancel(self, corpus: Corpus, batch: str | None = None) -> None:
        for file in corpus.attachments.ids("in_progress", batch):
            seen = corpus.attachments.get(file)
            if seen is not None:
                corpus.attachments.settle(seen, "cancelled")


def _entry(corpus: Corpus) -> StoreEntry:
    meta = corpus.meta()
    return StoreEntry(
        id=meta["id"],
        name=meta.get("name", corpus.name),
        created=float(meta["created"]),
        metadata=json.loads(meta.get("metadata", "{}")),
        description=meta.get("description", ""),
        counts=corpus.attachments.counts(),
        bytes=sum(file.stat().st_size for file in corpus.folder.glob("corpus.db*")),
    )


def _attached(corpus: Corpus, file: str) -> AttachedFile:
    attachment = corpus.attachments.get(file)
    if attachment is None:
        raise MissingError(f"vector store {corpus.name!r} has no file {file!r}")
    return AttachedFile(corpus.meta()["id"], attachment)


def _batch(corpus: Corpus, batch: str) -> Batch:
    files = corpus.attachments.ids(batch=batch) if _BATCH.fullmatch(batch) else []
    first = corpus.attachments.get(files[0]) if files else None
    if first is None:
        raise MissingError(f"vector store {corpus.name!r} has no file batch {batch!r}")
    return Batch(batch, corpus.meta()["id"], first.created, corpus.attachments.counts(batch))
