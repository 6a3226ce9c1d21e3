"""VectorStores: the corpora at one location, created, listed, opened and deleted on behalf of
principals.

Nothing is cached: each call opens the corpus anew, so other processes may change and remove corpora
at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.lookup import ID, NAME, find_corpus, list_corpora
from selection.corpus.positions import Position, new_id
from selection.corpus.stores.places import corpora_at
from selection.embedding import Embedder
from selection.errors import (
    CorpusError,
    CorpusNotFoundError,
    CorpusUnavailableError,
    LibraryError,
    MissingError,
    ReadOnlyError,
)
from selection.library.records import Page, PageRequest, VectorStoreInfo
from selection.library.validation import checked_attributes, checked_text
from selection.location import Location

log = logging.getLogger(__name__)


class VectorStores:
    """The corpora at one location.

    Args:
        root: where all corpora are.
        embedder: the embedder of new corpora.
        tokenizer: digest of the tokenizer of new corpora.
        template: digest of the chat template of their examples.
    """

    def __init__(self, root: Location, embedder: Embedder, tokenizer: str, template: str) -> None:
        self._root, self._embedder = root, embedder
        self._corpora = corpora_at(root)
        self._tokenizer, self._template = tokenizer, template

    @contextmanager
    def create(
        self,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        description: str | None = None,
        owner: str | None = None,
    ) -> Iterator[Corpus]:
        """Create a corpus and open it within the `with` block. It is called by its display name if
        possible, and else by its id.

        Args:
            name: its display name; None takes its id.
            metadata: key-value pairs for its owner.
            description: a text for its owner.
            owner: its owner's name.

        Raises:
            LibraryError: an invalid name, description or metadata.
            CorpusError: it could not be written; nothing is left of it.
        """
        identity, created = new_id("vs_")
        meta = {"id": identity, "created": str(created), "name": identity, "description": ""}
        meta.update(_checked_meta(name, metadata or {}))
        if description is not None:
            meta["description"] = checked_text(description, "`description`", 1024)
        if owner is not None:
            meta["owner"] = owner
        free = self._reserve(meta)
        try:
            corpus = Corpus.create(self._root, free, self._embedder, self._tokenizer, meta)
        except CorpusError:
            try:
                # Another process may have created a corpus of this name in the meantime.
                Corpus.open(self._root, free).close()
            except CorpusError:
                self._corpora.release(free)
            raise
        try:
            yield corpus
        finally:
            corpus.close()

    @contextmanager
    def open(self, store: str, principal: Principal = OPERATOR) -> Iterator[Corpus]:
        """Open a corpus within the `with` block.

        Args:
            store: its id, name or display name.
            principal: on whose behalf.

        Raises:
            MissingError: it does not exist, or the principal does not see it.
            LibraryError: several have that display name.
            CorpusError: it is damaged.
        """
        try:
            corpus = Corpus.open(self._root, self._name(store, principal), principal)
            try:
                yield corpus
            finally:
                corpus.close()
        except CorpusNotFoundError:
            raise MissingError(f"there is no vector store {store!r}") from None

    @contextmanager
    def open_owned(self, store: str, principal: Principal = OPERATOR) -> Iterator[Corpus]:
        """As `open`, to change it.

        Raises:
            ReadOnlyError: the principal sees it but does not own it.
        """
        with self.open(store, principal) as corpus:
            if not principal.owns(corpus.meta().get("owner")):
                raise ReadOnlyError(f"vector store {store!r} is yours to read, not to change")
            yield corpus

    def all(self, principal: Principal = OPERATOR) -> Iterator[Corpus]:
        """Each corpus that the principal sees, open; damaged ones are logged and left out."""
        for name in list_corpora(self._root):
            try:
                with self.open(name) as corpus:
                    if principal.sees(corpus.name, corpus.meta()):
                        yield corpus
            except MissingError:
                # Removed since it was listed.
                continue
            except CorpusUnavailableError:
                # A list that lacks those would be wrong.
                raise
            except CorpusError as problem:
                log.warning("%s (%s)", problem, self._root / name)

    def page(self, request: PageRequest, principal: Principal = OPERATOR) -> Page[VectorStoreInfo]:
        """A page of the vector stores that the principal sees, by creation time."""
        stores: dict[str, VectorStoreInfo] = {}
        for corpus in self.all(principal):
            # A corpus that was removed since it was listed is left out.
            with suppress(CorpusNotFoundError):
                info = self.info(corpus)
                stores[info.id] = info

        def find(cursor: str) -> Position | None:
            if cursor in stores:
                return stores[cursor].position
            return self._corpora.tombstones.position(
                cursor, "vs_", lambda deleted: principal.sees(deleted["folder"], deleted)
            )

        oldest_first = sorted(stores.values(), key=lambda info: info.position)
        return request.of(oldest_first, lambda info: info.position, find)

    def modify(
        self,
        store: str,
        name: str | None,
        metadata: Mapping[str, str] | None,
        principal: Principal = OPERATOR,
    ) -> VectorStoreInfo:
        """Change the display name or the metadata of a corpus; None leaves them unchanged.

        Raises:
            LibraryError: an invalid name or metadata.
        """
        changes = _checked_meta(name, metadata)
        with self.open_owned(store, principal) as corpus:
            corpus.update_meta(changes)
            return self.info(corpus)

    def delete(self, store: str, principal: Principal = OPERATOR) -> str:
        """Delete a corpus; returns its id."""
        with self.open_owned(store, principal) as corpus:
            identity = corpus.meta()["id"]
            corpus.attachments.cancel_all()
            try:
                corpus.remove()
            except OSError as problem:
                if corpus.is_in_place:
                    raise
                log.warning("corpus %r is deleted except for its folder: %s", corpus.name, problem)
            return identity

    def info(self, corpus: Corpus) -> VectorStoreInfo:
        """The vector store of a corpus, and whether it can be used."""
        try:
            self.check(corpus)
        except LibraryError as problem:
            return VectorStoreInfo.of(corpus, str(problem))
        return VectorStoreInfo.of(corpus)

    def check(self, corpus: Corpus) -> None:
        """Refuse a corpus of another embedder, tokenizer or chat template.

        Raises:
            LibraryError: they differ; the message names both.
        """
        try:
            corpus.check(self._embedder, self._tokenizer, self._template)
        except (CorpusNotFoundError, CorpusUnavailableError):
            raise
        except CorpusError as problem:
            raise LibraryError(str(problem)) from problem

    def _name(self, store: str, principal: Principal) -> str:
        try:
            return find_corpus(self._root, store, principal).name
        except (CorpusNotFoundError, CorpusUnavailableError):
            raise
        except CorpusError as problem:
            # Several have that display name.
            raise LibraryError(str(problem)) from problem

    def _reserve(self, meta: Mapping[str, str]) -> str:
        """The name of a new corpus, which no other can take."""
        name, identity = meta["name"], meta["id"]
        # An owned corpus is always called by its id: its name must neither block that of a later
        # `mayfly corpus add`, nor reveal which names are taken.
        is_free = NAME.fullmatch(name) and not ID.fullmatch(name) and "owner" not in meta
        if is_free and self._corpora.reserve(name):
            return name
        if not self._corpora.reserve(identity):
            raise LibraryError(f"there is a vector store {identity!r}: try again")
        return identity


def _checked_meta(name: str | None, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The entries of a corpus's metadata for a display name and its owner's metadata; None adds
    none.
    """
    meta = {}
    if name is not None:
        meta["name"] = checked_text(name, "`name`", 256)
    if metadata is not None:
        meta["metadata"] = json.dumps(checked_attributes(metadata, "metadata", (str,)))
    return meta
