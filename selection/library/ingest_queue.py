"""IngestQueue: the order in which the ingest worker of a process takes attached files.

The corpora record which files are in progress. Those of a folder are queued in memory: what a kill
interrupted is queued again at the next start, and an idle worker takes over files that have been in
progress for a while, because their process may be gone. In a database the queue is a table, from
which every server takes the next file that no other has.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.errors import CorpusError, CorpusUnavailableError
from selection.location import DatabaseLocation, Location

if TYPE_CHECKING:
    from selection.corpus.postgres.ingest_queue import IngestQueue as Table

log = logging.getLogger(__name__)

# The interval at which an idle worker looks for files to take over.
_TAKEOVER_SECONDS = 60.0
# The interval at which an idle worker looks for files that other servers have attached.
_POLL_SECONDS = 2.0


class ClosedError(Exception):
    """The worker was closed; its file stays in progress."""


@dataclass(frozen=True, order=True)
class QueuedFile:
    """An attached file that is to be ingested: the name of its corpus, and its id."""

    corpus: str
    file: str


class IngestQueue(Protocol):
    """A queue for the worker of one process."""

    def put(self, files: Iterable[QueuedFile]) -> None:
        """Announce files that were attached."""

    def taken(self, *, wait: bool) -> AbstractContextManager[QueuedFile | None]:
        """Take the next file within the `with` block; None if there is none.

        If the block fails, the file is taken again later: after the others if the database could
        not be used, and otherwise by another process, or by this one once it has restarted.

        Args:
            wait: whether to wait for a file, for some time.

        Raises:
            CorpusError: the database cannot be used.
        """

    def close(self) -> None:
        """End a wait of the worker."""


def ingest_queue_at(corpora: Location) -> IngestQueue:
    """The queue of the files of the corpora at a location."""
    return LocalQueue(corpora) if isinstance(corpora, Path) else DatabaseQueue(corpora)


class LocalQueue:
    """A queue in memory.

    Args:
        root: the folder of all corpora, whose files in progress are queued.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # None ends a wait.
        self._queue: queue.SimpleQueue[QueuedFile | None] = queue.SimpleQueue()
        # Files on which this process failed unexpectedly; it leaves them to others.
        self._failed: set[QueuedFile] = set()
        # What was in progress when files to take over were last looked for.
        self._seen_in_progress = set(_in_progress(root, log.warning))
        self.put(sorted(self._seen_in_progress))

    def put(self, files: Iterable[QueuedFile]) -> None:
        """As `IngestQueue.put`."""
        for file in files:
            self._queue.put(file)

    @contextmanager
    def taken(self, *, wait: bool) -> Iterator[QueuedFile | None]:
        """As `IngestQueue.taken`."""
        file = self._next(wait)
        try:
            yield file
        except (ClosedError, CorpusUnavailableError):
            self._queue.put(file)
            raise
        except Exception:
            if file is not None:
                self._failed.add(file)
            raise

    def close(self) -> None:
        """As `IngestQueue.close`."""
        self._queue.put(None)

    def _next(self, wait: bool) -> QueuedFile | None:
        try:
            return self._queue.get(timeout=_TAKEOVER_SECONDS) if wait else self._queue.get_nowait()
        except queue.Empty:
            if wait:
                self._take_over()
            return None

    def _take_over(self) -> None:
        """Queue files that have been in progress since the last call, the last first, because their
        own process begins with the first.
        """
        before, self._seen_in_progress = self._seen_in_progress, set(_in_progress(self._root))
        self.put(sorted((before & self._seen_in_progress) - self._failed, reverse=True))


class DatabaseQueue:
    """The queue of a database.

    Args:
        location: the database.
    """

    def __init__(self, location: DatabaseLocation) -> None:
        # PostgreSQL's client is imported only where it is needed.
        from selection.corpus.postgres.ingest_queue import IngestQueue as Table

        self._table: Table = Table(location)
        self._failed: set[int] = set()
        self._woken = threading.Event()

    def put(self, files: Iterable[QueuedFile]) -> None:
        """As `IngestQueue.put`: attaching them has queued them."""
        self._woken.set()

    @contextmanager
    def taken(self, *, wait: bool) -> Iterator[QueuedFile | None]:
        """As `IngestQueue.taken`."""
        if wait:
            self._woken.wait(_POLL_SECONDS)
        # Cleared before it looks, so that no file attached from now on is overlooked.
        self._woken.clear()
        with self._table.taken(frozenset(self._failed)) as row:
            if row is None or row.corpus is None:
                yield None
                return
            try:
                yield QueuedFile(row.corpus, row.file)
            except (ClosedError, CorpusUnavailableError):
                raise
            except Exception:
                self._failed.add(row.number)
                raise

    def close(self) -> None:
        """As `IngestQueue.close`."""
        self._woken.set()


def _in_progress(
    root: Path, warn: Callable[[str, object], None] = log.debug
) -> Iterator[QueuedFile]:
    """Each file in progress."""
    for name in list_corpora(root):
        try:
            corpus = Corpus.open(root, name)
            files = corpus.attachments.ids("in_progress")
            corpus.close()
        except CorpusError as problem:
            warn("%s", problem)
            continue
        yield from (QueuedFile(name, file) for file in files)
