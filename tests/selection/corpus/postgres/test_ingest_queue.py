"""The queue of attached files in PostgreSQL: each file has one worker, and always gets one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from selection.corpus.postgres.ingest_queue import IngestQueue
from selection.corpus.postgres.store import PostgresStore
from selection.corpus.tables.attachment import Attachment
from selection.errors import CorpusUnavailableError
from selection.location import DatabaseLocation
from tests.selection.corpus.store_helpers import META

_REPOSITORY = Path(__file__).resolve().parents[4]
_FILES = [f"file-{number:024x}" for number in range(40)]


@pytest.fixture
def store(postgres: DatabaseLocation) -> PostgresStore:
    store = PostgresStore(postgres / "notes")
    store.initialise(META)
    return store


@pytest.fixture
def queue(postgres: DatabaseLocation) -> IngestQueue:
    return IngestQueue(postgres)


@pytest.fixture
def admin(postgres: DatabaseLocation) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


def attach(store: PostgresStore, *files: str) -> None:
    store.attachments.attach([Attachment(file, "a.md") for file in files])


def taken(queue: IngestQueue, *left_out: int) -> str | None:
    """Take the next file for good."""
    with queue.taken(frozenset(left_out)) as file:
        return None if file is None else file.file


def test_files_are_taken_once_and_in_order(store: PostgresStore, queue: IngestQueue) -> None:
    attach(store, *_FILES[:3])

    with queue.taken() as first, queue.taken() as second:
        assert first is not None
        assert second is not None
        assert [first.file, second.file] == _FILES[:2]
        assert first.corpus == "notes"
        assert taken(queue) == _FILES[2]
        assert taken(queue) is None

    assert taken(queue) is None


def test_a_file_whose_worker_fails_is_taken_again(store: PostgresStore, queue: IngestQueue) -> None:
    attach(store, *_FILES[:2])

    def failing() -> None:
        with queue.taken() as file:
            assert file is not None
            numbers.append(file.number)
            raise KeyError

    numbers: list[int] = []
    with pytest.raises(KeyError):
        failing()

    assert taken(queue, *numbers) == _FILES[1]
    assert taken(queue, *numbers) is None
    assert taken(queue) == _FILES[0]


def test_a_file_for_which_the_database_cannot_be_used_goes_behind_the_others(
    store: PostgresStore, queue: IngestQueue
) -> None:
    attach(store, *_FILES[:3])

    def unavailable() -> None:
        with queue.taken() as file:
            assert file is not None
            found.append(file.file)
            raise CorpusUnavailableError("away")

    found: list[str] = []
    for _ in range(4):
        with pytest.raises(CorpusUnavailableError, match="away"):
            unavailable()

    assert found == [*_FILES[:3], _FILES[0]]
    assert [taken(queue) for _ in range(4)] == [_FILES[1], _FILES[2], _FILES[0], None]


def test_a_file_that_is_attached_again_is_not_taken_twice_at_once(
    store: PostgresStore, queue: IngestQueue
) -> None:
    attach(store, _FILES[0])
    with queue.taken() as file:
        assert file is not None
        attach(store, _FILES[0], _FILES[1])
        assert taken(queue) == _FILES[1]
        assert taken(queue) is None

    assert taken(queue) == _FILES[0]
    assert taken(queue) is None


def test_other_changes_of_a_corpus_do_not_wait_for_an_ingestion(
    store: PostgresStore, queue: IngestQueue
) -> None:
    attach(store, *_FILES[:3])
    with queue.taken() as file:
        assert file is not None
        store.attachments.cancel_all()
        assert store.attachments.detach(_FILES[0])
        attach(store, _FILES[0])
        store.remove()

    with queue.taken() as orphan:
        assert orphan is not None
        assert orphan.corpus is None
    while taken(queue) is not None:
        pass


def test_the_file_of_a_killed_process_is_free_at_once(
    store: PostgresStore, queue: IngestQueue, postgres: DatabaseLocation
) -> None:
    attach(store, _FILES[0])
    code = (
        "import sys; from pathlib import Path\n"
        "from selection.corpus.postgres.ingest_queue import IngestQueue\n"
        "from selection.location import DatabaseLocation\n"
        "with IngestQueue(DatabaseLocation(sys.argv[1], Path(sys.argv[2]))).taken() as file:\n"
        "    print(file.file, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, postgres.url, str(postgres.cache)],
        cwd=_REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == f"{_FILES[0]}\n"
    assert taken(queue) is None

    child.kill()
    child.communicate()

    for _ in range(100):
        if (found := taken(queue)) is not None:
            break
        time.sleep(0.05)
    assert found == _FILES[0]


def test_many_workers_share_the_files(store: PostgresStore, queue: IngestQueue) -> None:
    attach(store, *_FILES)
    found: list[str] = []

    def work() -> None:
        while (file := taken(queue)) is not None:
            found.append(file)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert sorted(found) == _FILES


def test_a_worker_that_loses_its_connection_is_told(
    store: PostgresStore, queue: IngestQueue, admin: psycopg.Connection[Any]
) -> None:
    attach(store, _FILES[0])

    def interrupted() -> None:
        with queue.taken() as file:
            assert file is not None
            admin.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )

    with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
        interrupted()

    assert taken(queue) == _FILES[0]
