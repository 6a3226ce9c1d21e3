"""The store in SQLite: several processes, versions and damage of its file, its errors."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError, SQLiteStore
from tests.selection.corpus.store_helpers import META, add

_REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[SQLiteStore]:
    """An empty store of four dimensions."""
    store = SQLiteStore(folder)
    store.initialise(META)
    yield store
    store.close()


def test_a_writer_waits_for_another(store: SQLiteStore, folder: Path) -> None:
    # Another process holds the write lock until it reads a line.
    code = (
        "import sys; from pathlib import Path; from selection.corpus.sqlite_store import "
        "SQLiteStore\n"
        "store = SQLiteStore(Path(sys.argv[1]))\n"
        "with store.database.writing():\n"
        "    print('locked', flush=True)\n    sys.stdin.readline()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_REPOSITORY,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    writer = threading.Thread(target=add, args=(store, "a", "one"))

    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    other.communicate("go on\n")
    writer.join(30)

    assert not writer.is_alive()
    assert (other.returncode, store.counts()) == (0, (1, 1))


def test_concurrent_initialisation_creates_one_store(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from selection.corpus.sqlite_store import "
        "SQLiteStore\n"
        "sys.stdin.readline()\n"
        "store = SQLiteStore(Path(sys.argv[1]))\n"
        f"store.initialise({META!r})\n"
        "store.check_version()\n"
        "print(store.meta()['uuid'])\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )
        for _ in range(4)
    ]

    uuids = {process.communicate("go\n")[0] for process in processes}

    assert [process.returncode for process in processes] == [0] * 4
    assert len(uuids) == 1


def test_a_removed_store_refuses_reads_and_writes(store: SQLiteStore, folder: Path) -> None:
    # Writes to the deleted file would be lost, and another corpus may have its name by now.
    add(store, "a", "one")
    (folder / "corpus.db").unlink()
    uses: list[Callable[[], object]] = [
        lambda: add(store, "b", "two"),
        lambda: store.delete("a"),
        lambda: store.counts(),
        lambda: store.meta(),
        lambda: store.attachments.is_in_progress("file-" + 24 * "0"),
    ]
    for use in uses:
        with pytest.raises(CorpusNotFoundError, match="'notes' was removed in the meantime"):
            use()

    another = SQLiteStore(folder)
    another.initialise(META)
    add(another, "mine", "three")
    with pytest.raises(CorpusNotFoundError, match="'notes' was removed in the meantime"):
        add(store, "b", "two")
    store.close()

    assert [entry.name for entry in another.documents()] == ["mine"]
    another.close()


_V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL);
CREATE TABLE sequences (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    start INTEGER NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL, embedding BLOB NOT NULL);
CREATE INDEX sequences_by_document ON sequences(document);
INSERT INTO meta VALUES ('embedder', 'words'), ('revision', '1'), ('dimension', '4');
INSERT INTO meta VALUES ('tokenizer', 't');
INSERT INTO meta VALUES ('generation', '1');
INSERT INTO documents VALUES (1, 'a', 'digest');
"""


@pytest.mark.parametrize(
    "statements",
    [
        "",
        "CREATE TABLE mine (x)",
        _V1,
        "PRAGMA user_version = 1",
        "PRAGMA user_version = 1000",
    ],
    ids=[
        "nothing in it",
        "another database",
        "the first version's",
        "an older version's",
        "a newer version's",
    ],
)
def test_a_database_of_another_version_is_refused_and_not_changed(
    folder: Path, statements: str
) -> None:
    with sqlite3.connect(folder / "corpus.db") as database:
        database.executescript(statements)
    database.close()

    store = SQLiteStore(folder)
    if statements:
        store.initialise(META)
    with pytest.raises(
        CorpusError, match="is damaged, incomplete, or was made by another version of Mayfly"
    ) as refusal:
        store.check_version()
    store.close()

    assert "delete its folder and add its documents again" in str(refusal.value)
    assert str(folder) not in str(refusal.value)
    assert refusal.value.__notes__ == [f"its folder is {folder}"]

    with sqlite3.connect(folder / "corpus.db") as database:
        tables = {
            row[0]
            for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    database.close()
    assert "removed" not in tables


@pytest.mark.parametrize("missing", ["generation", "tokenizer", "uuid", "dimension"])
def test_a_database_without_required_metadata_is_refused(
    store: SQLiteStore, folder: Path, missing: str
) -> None:
    with sqlite3.connect(folder / "corpus.db") as database:
        database.execute("DELETE FROM meta WHERE key = ?", (missing,))
    database.close()

    with pytest.raises(CorpusError, match="'notes' is damaged"):
        store.check_version()


def test_a_file_that_is_not_a_database_is_reported_as_damaged(folder: Path) -> None:
    (folder / "corpus.db").write_bytes(b"garbage" * 1000)

    with pytest.raises(
        CorpusError, match="'notes' is damaged: file is not a database; delete"
    ) as refusal:
        SQLiteStore(folder)

    assert str(folder) not in str(refusal.value)
    assert refusal.value.__notes__ == [f"its folder is {folder}"]


def test_damaged_pages_are_reported_as_damage_by_every_method(
    store: SQLiteStore, folder: Path
) -> None:
    # Arrange: everything behind the first pages is overwritten, but for the schema, without which
    # nothing opens.
    for i in range(50):
        add(store, f"{i}", "one " * 200, language="de")
    store.close()
    content = bytearray((folder / "corpus.db").read_bytes())
    for page in range(8 * 4096, len(content), 4096):
        if b"CREATE " not in content[page : page + 4096]:
            content[page : page + 4096] = b"\xaa" * 4096
    (folder / "corpus.db").write_bytes(content)

    damaged = SQLiteStore(folder)
    refused = 0
    for call in (
        damaged.counts,
        damaged.documents,
        damaged.embeddings,
        lambda: list(damaged.token_sequences()),
        lambda: damaged.read(range(1, 50)),
        lambda: damaged.reembedding.pending(50),
        lambda: damaged.matching({"type": "eq", "key": "language", "value": "de"}),
        lambda: damaged.delete("30"),
        lambda: add(damaged, "30", "new"),
    ):
        try:
            call()
        except CorpusError as problem:
            assert "'notes' is damaged" in str(problem)  # noqa: PT017
            refused += 1
    damaged.close()

    assert refused >= 5  # some find what they need in the pages that are left


def test_a_closed_store_is_not_reported_as_damaged(store: SQLiteStore) -> None:
    store.close()

    with pytest.raises(sqlite3.ProgrammingError):
        store.counts()
