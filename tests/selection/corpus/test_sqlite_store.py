"""The store: one transaction per change, records of removals, SQLite's errors in plain words."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from selection.corpus.filters import Scalar
from selection.corpus.sqlite_store import Chunk, CorpusError, CorpusNotFoundError, SQLiteStore

_REPOSITORY = Path(__file__).resolve().parents[3]
_META = {"embedder": "words", "revision": "1", "dimension": "4", "tokenizer": "t"}
_NEW = {"embedder": "words", "revision": "2", "dimension": "3"}


def vectors(count: int, value: float = 1.0, dimension: int = 4) -> npt.NDArray[np.float32]:
    return np.full((count, dimension), value, np.float32)


def add(store: SQLiteStore, name: str, *texts: str, value: float = 1.0, **metadata: Scalar) -> int:
    """Add a document of one sequence per text, whose tokens are code points."""
    chunks = [Chunk(10 * i, text, tuple(map(ord, text))) for i, text in enumerate(texts)]
    return store.add(
        name,
        f"digest of {texts}",
        chunks,
        vectors(len(texts), value),
        metadata,
        store.meta()["uuid"],
    )


def generation(store: SQLiteStore) -> int:
    return int(store.meta()["generation"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[SQLiteStore]:
    """An empty store of four dimensions."""
    store = SQLiteStore(folder)
    store.initialise(_META)
    yield store
    store.close()


def test_a_new_store_is_empty_and_has_the_given_metadata(store: SQLiteStore) -> None:
    store.check_version()

    meta = store.meta()
    assert {key: meta[key] for key in _META} == _META
    assert (meta["generation"], len(meta["uuid"])) == ("0", 32)
    assert (store.counts(), store.documents(), list(store.token_sequences())) == ((0, 0), [], [])


def test_initialising_again_changes_nothing(store: SQLiteStore, folder: Path) -> None:
    add(store, "a", "one")
    before = store.meta()

    again = SQLiteStore(folder)
    again.initialise({**_META, "embedder": "another"})

    assert again.meta() == before
    assert again.counts() == (1, 1)
    again.close()


def test_documents_are_listed_by_name_with_metadata_and_time(store: SQLiteStore) -> None:
    started = int(time.time())
    second = add(store, "b", "one", "two", language="de", year=2024, score=0.5, draft=True)
    first = add(store, "a", "three")

    documents = store.documents()

    assert [(entry.id, entry.name, entry.sequences) for entry in documents] == [
        (first, "a", 1),
        (second, "b", 2),
    ]
    assert documents[1].metadata == {"language": "de", "year": 2024, "score": 0.5, "draft": True}
    assert all(started <= entry.added <= time.time() for entry in documents)


def test_what_was_added_is_read_with_its_provenance(store: SQLiteStore) -> None:
    document = add(store, "a", "one", "two", language="de")

    read = store.read([2, 1, 2, 99])

    assert set(read) == {1, 2}
    source, tokens = read[2].source, read[2].tokens
    assert (source.sequence, source.document, source.name, source.start, source.text) == (
        2,
        document,
        "a",
        10,
        "two",
    )
    assert (source.metadata, tokens) == ({"language": "de"}, tuple(map(ord, "two")))


def test_only_changes_advance_the_generation(
    store: SQLiteStore,
) -> None:
    add(store, "a", "one")
    add(store, "a", "two")
    assert generation(store) == 2

    assert store.delete("nothing") is False
    assert generation(store) == 2

    assert store.delete("a") is True
    assert generation(store) == 3


def test_removed_sequences_are_recorded_with_their_generation(store: SQLiteStore) -> None:
    add(store, "a", "one", "two")
    add(store, "b", "three")
    add(store, "a", "four")
    store.delete("b")

    assert store.removed(0).tolist() == [1, 2, 3]
    assert store.removed(2).tolist() == [1, 2, 3]
    assert store.removed(3).tolist() == [3]
    assert store.removed(4).tolist() == []


def test_ids_are_never_reused(store: SQLiteStore, folder: Path) -> None:
    first = add(store, "a", "one", "two")
    store.delete("a")
    store.close()

    again = SQLiteStore(folder)
    second = add(again, "a", "one", "two")

    assert second > first
    assert again.embeddings()[0].tolist() == [3, 4]
    again.close()


@pytest.mark.parametrize("by_id", [False, True])
def test_a_document_is_deleted_by_name_or_id_with_its_sequences(
    store: SQLiteStore, by_id: bool
) -> None:
    document = add(store, "a", "one", "two")
    add(store, "b", "three")

    assert store.delete(document if by_id else "a") is True

    assert store.delete(document if by_id else "a") is False
    assert store.counts() == (1, 1)
    assert store.read([1, 2]) == {}


@pytest.mark.parametrize("document", [0, -1, 99, 10**30, "", "99", "A"])
def test_deleting_a_missing_document_changes_nothing(
    store: SQLiteStore, document: str | int
) -> None:
    add(store, "a", "one")

    assert store.delete(document) is False
    assert store.counts() == (1, 1)


def test_a_number_can_be_a_name(store: SQLiteStore) -> None:
    add(store, "a", "one")
    add(store, "1", "two")

    assert store.delete("1") is True
    assert [entry.name for entry in store.documents()] == ["a"]


def test_a_document_is_recognised_by_name_and_content(store: SQLiteStore) -> None:
    add(store, "a", "one")

    assert store.has("a", "digest of ('one',)")
    assert not store.has("a", "another digest")
    assert not store.has("b", "digest of ('one',)")


def test_embeddings_are_returned_by_ascending_id(store: SQLiteStore) -> None:
    for i, name in enumerate(["a", "b", "c"]):
        add(store, name, "one", "two", value=i)
    store.delete("b")

    ids_N, vectors_ND = store.embeddings()
    assert ids_N.tolist() == [1, 2, 5, 6]
    assert vectors_ND[:, 0].tolist() == [0, 0, 2, 2]
    assert vectors_ND.shape == (4, 4)
    assert store.embeddings(after=2)[0].tolist() == [5, 6]
    assert store.embeddings(after=6)[1].shape == (0, 4)


def test_sequences_are_found_by_the_metadata_of_their_document(store: SQLiteStore) -> None:
    add(store, "a", "one", "two", language="de")
    add(store, "b", "three", language="en")
    add(store, "c", "four")

    assert store.matching({"type": "eq", "key": "language", "value": "de"}).tolist() == [1, 2]
    assert store.matching({"type": "ne", "key": "language", "value": "de"}).tolist() == [3, 4]
    assert store.matching({"type": "eq", "key": "none", "value": 1}).tolist() == []
    with pytest.raises(ValueError, match="a filter"):
        store.matching({"type": "eq"})


def test_tokens_are_returned_for_all_sequences_or_one_document(store: SQLiteStore) -> None:
    add(store, "a", "x", "y")
    add(store, "b", "x")
    x, y = (np.array([ord(c)], np.int32).tobytes() for c in "xy")

    assert sorted(store.token_sequences()) == [x, x, y]
    assert sorted(store.token_sequences("a")) == [x, y]
    assert list(store.token_sequences("c")) == []


def test_a_failed_addition_leaves_no_trace(store: SQLiteStore) -> None:
    add(store, "a", "the words that stay")
    before = store.meta()
    unstorable = Chunk(0, "text", (1 << 40, 2))  # no token id is that large

    with pytest.raises((OverflowError, ValueError)):
        store.add(
            "a", "digest", [Chunk(0, "fine", (1, 2)), unstorable], vectors(2), {}, before["uuid"]
        )

    assert store.meta() == before
    assert [each.source.text for each in store.read([1]).values()] == ["the words that stay"]
    assert store.removed(0).tolist() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_metadata_that_is_not_json_is_refused(store: SQLiteStore, value: float) -> None:
    add(store, "a", "one", score=1)

    with pytest.raises(ValueError, match="JSON"):
        add(store, "b", "two", score=value)

    assert store.counts() == (1, 1)
    assert store.matching({"type": "gt", "key": "score", "value": 0}).tolist() == [1]


def test_a_reader_sees_one_state_during_a_write(store: SQLiteStore, folder: Path) -> None:
    add(store, "a", "one")
    reader = SQLiteStore(folder)

    with reader.reading():
        before = reader.counts(), generation(reader)
        add(store, "b", "two")
        assert (reader.counts(), generation(reader)) == before

    assert (reader.counts(), generation(reader)) == ((2, 2), 2)
    reader.close()


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
        f"store.initialise({_META!r})\n"
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


def test_new_embeddings_replace_the_old_all_at_once(store: SQLiteStore) -> None:
    add(store, "a", "one", "two", "three")
    before = store.meta()
    store.reembedding.begin(_NEW)

    waiting = store.reembedding.pending(2)
    assert waiting == [(1, "one", None), (2, "two", None)]
    store.reembedding.save(_NEW, [1, 2], vectors(2, 9.0, 3))
    assert store.reembedding.finish(_NEW) is False
    assert store.embeddings()[1].tolist() == vectors(3).tolist()
    assert store.reembedding.pending(2) == [(3, "three", None)]
    store.reembedding.save(_NEW, [3], vectors(1, 9.0, 3))
    assert store.reembedding.finish(_NEW) is True

    after = store.meta()
    assert store.embeddings()[1].tolist() == vectors(3, 9.0, 3).tolist()
    assert {key: after[key] for key in _NEW} == _NEW
    assert after["uuid"] != before["uuid"]
    assert int(after["generation"]) == int(before["generation"]) + 1
    assert "reembedding" not in after


def test_documents_changed_during_a_reembedding_are_included(
    store: SQLiteStore,
) -> None:
    add(store, "a", "one", "two")
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1, 2], vectors(2, 9.0, 3))

    add(store, "b", "three")
    store.delete("a")

    assert store.reembedding.finish(_NEW) is False
    assert store.reembedding.pending(10) == [(3, "three", None)]
    store.reembedding.save(_NEW, [3], vectors(1, 9.0, 3))
    assert store.reembedding.finish(_NEW) is True
    assert store.embeddings()[0].tolist() == [3]


def test_a_reembedding_resumes_for_the_same_embedder_only(
    store: SQLiteStore,
) -> None:
    add(store, "a", "one", "two")
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1], vectors(1, 9.0, 3))

    store.reembedding.begin(_NEW)
    assert store.reembedding.pending(10) == [(2, "two", None)]

    store.reembedding.begin({**_NEW, "revision": "3"})
    assert store.reembedding.pending(10) == [(1, "one", None), (2, "two", None)]


def test_embeddings_for_two_embedders_are_never_mixed(store: SQLiteStore) -> None:
    # Two processes re-embed the corpus for different embedders; the one that began first fails.
    add(store, "a", "one", "two")
    other = {**_NEW, "revision": "3"}
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1], vectors(1, 9.0, 3))
    store.reembedding.begin(other)

    with pytest.raises(
        CorpusError, match="being re-embedded, or was in the meantime, by another process"
    ):
        store.reembedding.save(_NEW, [2], vectors(1, 9.0, 3))
    with pytest.raises(
        CorpusError, match="being re-embedded, or was in the meantime, by another process"
    ):
        store.reembedding.finish(_NEW)

    store.reembedding.save(other, [1, 2], vectors(2, 7.0, 3))
    assert store.reembedding.finish(other) is True
    assert store.embeddings()[1].tolist() == vectors(2, 7.0, 3).tolist()


def test_vectors_of_the_old_embedder_are_refused_after_a_reembedding(
    store: SQLiteStore,
) -> None:
    add(store, "a", "one")
    old = store.meta()["uuid"]
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1], vectors(1, 9.0, 3))
    store.reembedding.finish(_NEW)

    with pytest.raises(CorpusError, match="'notes' was re-embedded in the meantime: add 'b' again"):
        store.add("b", "digest", [Chunk(0, "x", (1, 2))], vectors(1), {}, old)

    assert store.counts() == (1, 1)


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
    another.initialise(_META)
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
        store.initialise(_META)
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
