"""Copying a corpus from one place into another, in one transaction there, and comparing both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import TypeAlias

from selection.corpus.contents import Contents, Row
from selection.corpus.lookup import find_corpus
from selection.corpus.stores.places import corpora_at, open_store
from selection.corpus.stores.protocols import CorpusStore
from selection.corpus.trained.places import copy_adapter
from selection.location import Location

# Shows work of a kind on a number of sequences; the function that it gives counts them.
ShowProgress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Copied:
    """A corpus that was copied.

    Attributes:
        name: its name.
        documents: number of documents.
        sequences: number of sequences.
        sha256: digest of everything in it, the same in both places.
    """

    name: str
    documents: int
    sequences: int
    sha256: str


def copy_corpus(
    source: Location, name: str, destination: Location, show_progress: ShowProgress
) -> Copied:
    """Copy a corpus with everything that belongs to it. Until all of it was copied and compared,
    the destination has none of it.

    Args:
        source: where it is.
        name: its name, its id or its display name.
        destination: where it is to be, under the same name.
        show_progress: shows the progress of copying and of verifying.

    Raises:
        CorpusNotFoundError: no such corpus.
        CorpusError: the destination has a corpus of that name, files of the source are being
            ingested, it is damaged, or the copy differs from it.
        OSError: a folder could not be written.
    """
    with closing(open_store(find_corpus(source, name))) as store:
        store.check_version()
        with corpora_at(destination).receiving(store.name) as copy:
            contents = _copy(store, copy, show_progress)
    tables = contents.tables
    return Copied(store.name, tables["documents"].rows, tables["sequences"].rows, contents.sha256)


def _copy(source: CorpusStore, copy: CorpusStore, show_progress: ShowProgress) -> Contents:
    with source.reading():
        if source.attachments.any_in_progress():
            raise source.unusable("has files that are being ingested: wait until they are")
        total = source.counts()[1]
        with show_progress("copying", total) as advance:
            contents = Contents.of(source.transfer.export, advance, copy.transfer.import_)
        copy_adapter(source, copy)
    with show_progress("verifying", total) as advance:
        differs = contents.difference(Contents.of(copy.transfer.export, advance, _read))
    if differs is not None:
        raise source.unusable(f"was not copied: the {differs} of the copy differ from its own")
    return contents


def _read(table: str, rows: Iterator[Row]) -> None:
    deque(rows, maxlen=0)
