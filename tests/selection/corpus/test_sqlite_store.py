"""The store: one transaction a change, what it removes is remembered, and SQLite's complaints in
plain words.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from selection.corpus.filters import Scalar
from selection.corpus.sqlite_store import Chunk, CorpusError, CorpusNotFoundError, Store

_REPOSITORY = Path(__file__).resolve().parents[3]
_META = {"embedder": "words", "revision": "1", "dimension": "4", "tokenizer": "t"}
_NEW = {"embedder": "words", "revision": "2", "dimension": "3"}


def vectors(count: int, value: float = 1.0, dimension: int = 4) -> npt.NDArray[np.float32]:
    return np.full((count, dimension), value, np.float32)


def add(store: Store, name: str, *texts: str, value: float = 1.0, **metadata: Scalar) -> int:
    """Add a document of one sequence a text; its tokens are its characters' code points."""
    pieces = [Chunk(10 * i, text, tuple(map(ord, text))) for i, text in enumerate(texts)]
    return store.add(
        name,
        f"digest of {texts}",
        pieces,
        vectors(len(texts), value),
        metadata,
        store.meta()["uuid"],
    )


def generation(store: Store) -> int:
    return int(store.meta()["generation"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "notes"
    made.mkdir()
    return made


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """An empty store of four dimensions."""
    made = Store(folder)
    made.initialise(_META)
    yield made
    made.close()


def test_a_new_store_is_empty_and_remembers_what_it_was_given(store: Store) -> None:
    store.check_version()

    meta = store.meta()
    assert {key: meta[key] for key in _META} == _META
    assert (meta["generation"], len(meta["uuid"])) == ("0", 32)
    assert (store.counts(), store.documents(), list(store.token_sequences())) == ((0, 0), [], [])


def test_making_it_again_changes_nothing(store: Store, folder: Path) -> None:
    add(store, "a", "one")
    before = store.meta()

    again = Store(folder)
    again.initialise({**_META, "embedder": "another"})

    assert again.meta() == before
    assert again.counts() == (1, 1)
    again.close()


def test_documents_are_listed_by_name_with_metadata_and_time(store: Store) -> None:
    started = int(time.time())
    second = add(store, "b", "one", "two", language="de", year=2024, score=0.5, draft=True)
    first = add(store, "a", "three")

    entries = store.documents()

    assert [(entry.id, entry.name, entry.sequences) for entry in entries] == [
        (first, "a", 1),
        (second, "b", 2),
    ]
    assert entries[1].metadata == {"language": "de", "year": 2024, "score": 0.5, "draft": True}
    assert all(started <= entry.added <= time.time() for entry in entries)


def test_what_was_added_is_read_with_its_provenance(store: Store) -> None:
    document = add(store, "a", "one", "two", language="de")

    read = store.read([2, 1, 2, 99])

    assert set(read) == {1, 2}
    source, tokens = read[2]
    assert (source.sequence, source.document, source.name, source.start, source.text) == (
        2,
        document,
        "a",
        10,
        "two",
    )
    assert (source.metadata, tokens) == ({"language": "de"}, tuple(map(ord, "two")))


def test_every_change_advances_the_generation_and_what_changes_nothing_does_not(
    store: Store,
) -> None:
    add(store, "a", "one")
    add(store, "a", "two")
    assert generation(store) == 2

    assert store.delete("nothing") is False
    assert generation(store) == 2

    assert store.delete("a") is True
    assert generation(store) == 3


def test_what_went_is_remembered_by_the_generation_it_went_in(store: Store) -> None:
    add(store, "a", "one", "two")
    add(store, "b", "three")
    add(store, "a", "four")
    store.delete("b")

    assert store.removed(0).tolist() == [1, 2, 3]
    assert store.removed(2).tolist() == [1, 2, 3]
    assert store.removed(3).tolist() == [3]
    assert store.removed(4).tolist() == []


def test_numbers_are_never_given_twice(store: Store, folder: Path) -> None:
    first = add(store, "a", "one", "two")
    store.delete("a")
    store.close()

    again = Store(folder)
    second = add(again, "a", "one", "two")

    assert second > first
    assert again.embeddings()[0].tolist() == [3, 4]
    again.close()


@pytest.mark.parametrize("by_id", [False, True])
def test_a_document_goes_by_name_or_id_with_its_sequences(store: Store, by_id: bool) -> None:
    document = add(store, "a", "one", "two")
    add(store, "b", "three")

    assert store.delete(document if by_id else "a") is True

    assert store.delete(document if by_id else "a") is False
    assert store.counts() == (1, 1)
    assert store.read([1, 2]) == {}


@pytest.mark.parametrize("document", [0, -1, 99, 10**30, "", "99", "A"])
def test_what_is_not_there_cannot_be_deleted(store: Store, document: str | int) -> None:
    add(store, "a", "one")

    assert store.delete(document) is False
    assert store.counts() == (1, 1)


def test_a_number_can_be_a_name(store: Store) -> None:
    add(store, "a", "one")
    add(store, "1", "two")

    assert store.delete("1") is True
    assert [entry.name for entry in store.documents()] == ["a"]


def test_it_knows_a_document_by_name_and_content(store: Store) -> None:
    add(store, "a", "one")

    assert store.has("a", "digest of ('one',)")
    assert not store.has("a", "another digest")
    assert not store.has("b", "digest of ('one',)")


def test_embeddings_come_by_ascending_id_above_another(store: Store) -> None:
    for i, name in enumerate(["a", "b", "c"]):
        add(store, name, "one", "two", value=i)
    store.delete("b")

    ids_N, vectors_ND = store.embeddings()
    assert ids_N.tolist() == [1, 2, 5, 6]
    assert vectors_ND[:, 0].tolist() == [0, 0, 2, 2]
    assert vectors_ND.shape == (4, 4)
    assert store.embeddings(after=2)[0].tolist() == [5, 6]
    assert store.embeddings(after=6)[1].shape == (0, 4)


def test_sequences_are_found_by_the_metadata_of_their_document(store: Store) -> None:
    add(store, "a", "one", "two", language="de")
    add(store, "b", "three", language="en")
    add(store, "c", "four")

    assert store.matching({"type": "eq", "key": "language", "value": "de"}).tolist() == [1, 2]
    assert store.matching({"type": "ne", "key": "language", "value": "de"}).tolist() == [3, 4]
    assert store.matching({"type": "eq", "key": "none", "value": 1}).tolist() == []
    with pytest.raises(ValueError, match="a filter"):
        store.matching({"type": "eq"})


def test_tokens_are_those_of_all_sequences_or_of_one_document(store: Store) -> None:
    add(store, "a", "x", "y")
    add(store, "b", "x")
    x, y = (np.array([ord(c)], np.int32).tobytes() for c in "xy")

    assert sorted(store.token_sequences()) == [x, x, y]
    assert sorted(store.token_sequences("a")) == [x, y]
    assert list(store.token_sequences("c")) == []


def test_a_failed_addition_leaves_no_trace(store: Store) -> None:
    add(store, "a", "the words that stay")
    before = store.meta()
    unstorable = Chunk(0, "text", (1 << 40, 2))  # no token id is that large

    with pytest.raises((OverflowError, ValueError)):
        store.add(
            "a", "digest", [Chunk(0, "fine", (1, 2)), unstorable], vectors(2), {}, before["uuid"]
        )

    assert store.meta() == before
    assert [source.text for source, _ in store.read([1]).values()] == ["the words that stay"]
    assert store.removed(0).tolist() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_metadata_that_is_no_json_is_refused(store: Store, value: float) -> None:
    add(store, "a", "one", score=1)

    with pytest.raises(ValueError, match="JSON"):
        add(store, "b", "two", score=value)

    assert store.counts() == (1, 1)
    assert store.matching({"type": "gt", "key": "score", "value": 0}).tolist() == [1]


def test_a_reader_sees_one_state_while_another_writes(store: Store, folder: Path) -> None:
    add(store, "a", "one")
    reader = Store(folder)

    with reader.reading():
        before = reader.counts(), generation(reader)
        add(store, "b", "two")
        assert (reader.counts(), generation(reader)) == before

    assert (reader.counts(), generation(reader)) == ((2, 2), 2)
    reader.close()


def test_a_writer_waits_for_another(store: Store, folder: Path) -> None:
    # The other process holds the write lock until it is told to go on.
    code = (
        "import sys; from pathlib import Path; from selection.corpus.sqlite_store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "with store.writing():\n    print('held', flush=True)\n    __import__('time').sleep(0.3)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd=_REPOSITORY
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"

    started = time.monotonic()
    add(store, "a", "one")

    assert time.monotonic() - started > 0.1
    assert (other.wait(), store.counts()) == (0, (1, 1))
    other.stdout.close()


def test_processes_that_make_it_at_once_make_one(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from selection.corpus.sqlite_store import Store\n"
        "sys.stdin.readline()\n"
        "store = Store(Path(sys.argv[1]))\n"
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


def test_new_embeddings_take_the_place_of_the_old_all_at_once(store: Store) -> None:
    add(store, "a", "one", "two", "three")
    before = store.meta()
    store.begin_reembedding(_NEW)

    waiting = store.not_reembedded(2)
    assert waiting == [(1, "one"), (2, "two")]
    store.keep_reembedded(_NEW, [1, 2], vectors(2, 9.0, 3))
    assert store.finish_reembedding(_NEW) is False
    assert store.embeddings()[1].tolist() == vectors(3).tolist()
    assert store.not_reembedded(2) == [(3, "three")]
    store.keep_reembedded(_NEW, [3], vectors(1, 9.0, 3))
    assert store.finish_reembedding(_NEW) is True

    after = store.meta()
    assert store.embeddings()[1].tolist() == vectors(3, 9.0, 3).tolist()
    assert {key: after[key] for key in _NEW} == _NEW
    assert after["uuid"] != before["uuid"]
    assert int(after["generation"]) == int(before["generation"]) + 1
    assert "reembedding" not in after


def test_documents_that_come_and_go_meanwhile_are_embedded_anew_or_forgotten(store: Store) -> None:
    add(store, "a", "one", "two")
    store.begin_reembedding(_NEW)
    store.keep_reembedded(_NEW, [1, 2], vectors(2, 9.0, 3))

    add(store, "b", "three")
    store.delete("a")

    assert store.finish_reembedding(_NEW) is False
    assert store.not_reembedded(10) == [(3, "three")]
    store.keep_reembedded(_NEW, [3], vectors(1, 9.0, 3))
    assert store.finish_reembedding(_NEW) is True
    assert store.embeddings()[0].tolist() == [3]


def test_begun_again_for_the_same_embedder_it_goes_on_and_for_another_it_begins_anew(
    store: Store,
) -> None:
    add(store, "a", "one", "two")
    store.begin_reembedding(_NEW)
    store.keep_reembedded(_NEW, [1], vectors(1, 9.0, 3))

    store.begin_reembedding(_NEW)
    assert store.not_reembedded(10) == [(2, "two")]

    store.begin_reembedding({**_NEW, "revision": "3"})
    assert store.not_reembedded(10) == [(1, "one"), (2, "two")]


def test_embeddings_for_two_embedders_are_never_mixed(store: Store) -> None:
    # Two processes embed the corpus anew for different embedders; the one that began first loses.
    add(store, "a", "one", "two")
    other = {**_NEW, "revision": "3"}
    store.begin_reembedding(_NEW)
    store.keep_reembedded(_NEW, [1], vectors(1, 9.0, 3))
    store.begin_reembedding(other)

    with pytest.raises(CorpusError, match="embedded anew by another process"):
        store.keep_reembedded(_NEW, [2], vectors(1, 9.0, 3))
    with pytest.raises(CorpusError, match="embedded anew by another process"):
        store.finish_reembedding(_NEW)

    store.keep_reembedded(other, [1, 2], vectors(2, 7.0, 3))
    assert store.finish_reembedding(other) is True
    assert store.embeddings()[1].tolist() == vectors(2, 7.0, 3).tolist()


def test_vectors_of_the_old_embedder_are_refused_once_the_new_ones_are_in_place(
    store: Store,
) -> None:
    add(store, "a", "one")
    old = store.meta()["uuid"]
    store.begin_reembedding(_NEW)
    store.keep_reembedded(_NEW, [1], vectors(1, 9.0, 3))
    store.finish_reembedding(_NEW)

    with pytest.raises(CorpusError, match="'notes' was embedded anew meanwhile: add 'b' again"):
        store.add("b", "digest", [Chunk(0, "x", (1, 2))], vectors(1), {}, old)

    assert store.counts() == (1, 1)


def test_a_store_that_was_removed_takes_nothing_more(store: Store, folder: Path) -> None:
    # Written to the deleted file, it would be lost, though another corpus of that name may be there
    # by now.
    add(store, "a", "one")
    (folder / "corpus.db").unlink()
    changes: list[Callable[[], object]] = [
        lambda: add(store, "b", "two"),
        lambda: store.delete("a"),
    ]
    for change in changes:
        with pytest.raises(CorpusNotFoundError, match="'notes' was removed meanwhile"):
            change()

    another = Store(folder)
    another.initialise(_META)
    add(another, "mine", "three")
    with pytest.raises(CorpusNotFoundError, match="'notes' was removed meanwhile"):
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
INSERT INTO meta VALUES ('embedder', 'words'), ('revision', '1'), ('dimension', '4'), ('tokenizer', 't');
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
def test_another_versions_database_is_refused_and_left_alone(folder: Path, statements: str) -> None:
    with sqlite3.connect(folder / "corpus.db") as database:
        database.executescript(statements)
    database.close()

    store = Store(folder)
    if statements:
        store.initialise(_META)
    with pytest.raises(
        CorpusError, match="another version of Mayfly, or making it was broken off"
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
def test_a_database_that_has_forgotten_what_it_is_is_refused(
    store: Store, folder: Path, missing: str
) -> None:
    with sqlite3.connect(folder / "corpus.db") as database:
        database.execute("DELETE FROM meta WHERE key = ?", (missing,))
    database.close()

    with pytest.raises(CorpusError, match="'notes' is damaged"):
        store.check_version()


def test_a_file_that_is_no_database_is_called_damaged(folder: Path) -> None:
    (folder / "corpus.db").write_bytes(b"garbage" * 1000)

    with pytest.raises(
        CorpusError, match="'notes' is damaged: file is not a database; delete"
    ) as refusal:
        Store(folder)

    assert str(folder) not in str(refusal.value)
    assert refusal.value.__notes__ == [f"its folder is {folder}"]


def test_damaged_pages_are_called_damaged_whatever_is_asked(store: Store, folder: Path) -> None:
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

    damaged = Store(folder)
    refused = 0
    for ask in (
        damaged.counts,
        damaged.documents,
        damaged.embeddings,
        lambda: list(damaged.token_sequences()),
        lambda: damaged.read(range(1, 50)),
        lambda: damaged.not_reembedded(50),
        lambda: damaged.matching({"type": "eq", "key": "language", "value": "de"}),
        lambda: damaged.delete("30"),
        lambda: add(damaged, "30", "new"),
    ):
        try:
            ask()
        except CorpusError as problem:
            assert "'notes' is damaged" in str(problem)  # noqa: PT017
            refused += 1
    damaged.close()

    assert refused >= 5  # some find what they need in the pages that are left


def test_after_closing_it_is_not_called_damaged(store: Store) -> None:
    store.close()

    with pytest.raises(sqlite3.ProgrammingError):
        store.counts()
