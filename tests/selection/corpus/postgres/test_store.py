"""The store in PostgreSQL: corpora beside one another, several processes, and lost connections."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import PipelineStatus

from selection.config import SelectorConfig
from selection.corpus.corpus import Corpus
from selection.corpus.postgres.store import PostgresStore
from selection.corpus.postgres.tables.deletion import delete_named
from selection.corpus.tables.attachment import Attachment
from selection.embedding import Embedder, Prompt
from selection.errors import CorpusError, CorpusNotFoundError, CorpusUnavailableError
from selection.location import DatabaseLocation
from selection.request import SelectionRequest
from selection.selector import Selector
from selection.threaded_embedder import ThreadedEmbedder
from tests.selection import brute_force
from tests.selection.brute_force import texts_near
from tests.selection.corpus.store_helpers import META, add, generation

_REPOSITORY = Path(__file__).resolve().parents[4]


def store_of(location: DatabaseLocation, name: str = "notes") -> PostgresStore:
    store = PostgresStore(location / name)
    store.initialise(META)
    return store


@pytest.fixture
def store(postgres: DatabaseLocation) -> PostgresStore:
    """An empty store of four dimensions."""
    return store_of(postgres)


@pytest.fixture
def admin(postgres: DatabaseLocation) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


def lose_connections(admin: psycopg.Connection[Any]) -> None:
    """End every other connection to the database, as a server that restarts does."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )


def test_corpora_do_not_see_one_another(store: PostgresStore, postgres: DatabaseLocation) -> None:
    other = store_of(postgres, "other")
    add(store, "a", "one", "two", language="de")
    add(other, "a", "three", language="de")

    assert other.counts() == (1, 1)
    assert store.read([1, 2, 3]).keys() == {1, 2}
    assert store.matching({"type": "eq", "key": "language", "value": "de"}).tolist() == [1, 2]
    assert other.embeddings()[0].tolist() == [1]
    assert len([*other.token_sequences()]) == 1

    assert other.delete("a")
    assert (store.counts(), store.removed(0).tolist()) == ((1, 2), [])
    other.remove()
    assert store.counts() == (1, 2)


def test_a_removed_corpus_leaves_no_row(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    add(store, "a", "one")
    store.delete("a")
    add(store, "b", "two")

    store.remove()

    tables = admin.execute(
        "SELECT table_name FROM information_schema.tables "
        "WHERE table_schema = 'mayfly' AND table_name <> 'schema_version'"
    ).fetchall()
    assert len(tables) > 5
    assert [admin.execute(f"SELECT * FROM mayfly.{name}").fetchall() for (name,) in tables] == (
        [[]] * len(tables)
    )


def test_a_removed_store_refuses_reads_and_writes(
    store: PostgresStore, postgres: DatabaseLocation
) -> None:
    add(store, "a", "one")
    PostgresStore(postgres / "notes").remove()
    another = store_of(postgres)
    add(another, "mine", "three")
    uses: list[Callable[[], object]] = [
        lambda: add(store, "b", "two"),
        lambda: store.delete("a"),
        store.counts,
        store.meta,
        store.size,
        store.documents,
        lambda: store.read([1]),
        lambda: store.embeddings(),
        lambda: store.attachments.is_in_progress("file-" + 24 * "0"),
    ]

    for use in uses:
        with pytest.raises(CorpusNotFoundError, match="'notes' was removed in the meantime"):
            use()

    assert not store.is_in_place
    assert another.is_in_place
    assert [entry.name for entry in another.documents()] == ["mine"]


def test_reading_sequences_looks_up_only_these_and_their_documents(store: PostgresStore) -> None:
    # PostgreSQL may read a small table from beginning to end instead of using its index.
    with store.database.writing():
        store.database.execute(
            "INSERT INTO documents (corpus, id, name, sha256, metadata, fields) "
            "SELECT %(corpus)s, n, n::text, '', '{}', '{}' FROM generate_series(1, 5000) n"
        )
        store.database.execute(
            "INSERT INTO sequences (corpus, id, document, start, text, tokens) "
            "SELECT %(corpus)s, n, 1 + mod(n, 5000), 0, 'one', '' "
            "FROM generate_series(1, 50000) n"
        )
        # As PostgreSQL does within a minute; it may have counted the rows of an earlier test.
        store.database.execute("ANALYZE documents, sequences")

    def rows_read() -> dict[str, int]:
        return dict(
            store.database.rows(
                "SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
                "FROM pg_stat_xact_user_tables WHERE relname IN ('sequences', 'documents')"
            )
        )

    with store.reading():
        before = rows_read()
        found = store.read(range(2, 4802, 120))
        after = rows_read()

    assert [each.source.document for each in found.values()] == [*range(3, 4803, 120)]
    read = {name: after[name] - before[name] for name in after}
    assert read == {"sequences": 40, "documents": 40}


def test_documents_are_looked_up_by_the_index_of_names(store: PostgresStore) -> None:
    with store.database.writing():
        store.database.execute(
            "INSERT INTO documents (corpus, id, name, sha256, metadata, fields) "
            "SELECT %(corpus)s, n, n::text, '', '{}', '{}' FROM generate_series(1, 5000) n"
        )
        store.database.execute("ANALYZE documents")

    def rows_read() -> int:
        ((count,),) = store.database.rows(
            "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
            "FROM pg_stat_xact_user_tables WHERE relname = 'documents'"
        )
        return int(count)

    lookups: list[tuple[object, int]] = []
    with store.database.writing():
        for lookup in (
            lambda: store.has("70", ""),
            lambda: store.has_name("71"),
            lambda: list(store.token_sequences("72")),
            # By name, and twice by its id: to read and to delete it.
            lambda: delete_named(store.database, "73"),
        ):
            before = rows_read()
            found = lookup()
            lookups.append((found, rows_read() - before))

    assert [found for found, _ in lookups] == [True, True, [], True]
    assert all(read <= most for (_, read), most in zip(lookups, (1, 1, 1, 3), strict=True))


def test_a_selection_asks_the_database_eight_times(
    postgres: DatabaseLocation, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once more with a base model, whose tokenizer is compared with the corpus's.
    with closing(Corpus.create(postgres, "notes", words, "tokens")) as corpus:
        brute_force.add(corpus, words, "a", "one word", "another word")
    selector = Selector(SelectorConfig(postgres), embedder=ThreadedEmbedder(lambda: words))
    request = SelectionRequest([Prompt("a word")], "notes", steps=2)
    selector.select(request)
    round_trips: list[object] = []
    execute, pipeline = psycopg.Connection.execute, psycopg.Connection.pipeline

    def counted_execute(connection: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        if connection.info.pipeline_status is PipelineStatus.OFF:
            round_trips.append(query)
        return execute(connection, query, *args, **kwargs)

    def counted_pipeline(connection: Any) -> Any:
        round_trips.append("pipeline")
        return pipeline(connection)

    monkeypatch.setattr(psycopg.Connection, "execute", counted_execute)
    monkeypatch.setattr(psycopg.Connection, "pipeline", counted_pipeline)

    chosen = selector.select(request)

    assert len(chosen.ids) == 2
    assert len(round_trips) == 8, round_trips


def test_a_pipeline_follows_rows_that_were_read_one_by_one(store: PostgresStore) -> None:
    add(store, "a", "one", "two")

    with store.database.pinned():
        all_rows = [*store.token_sequences()]
        after_all = store.counts()
        first_row = next(store.token_sequences())
        after_one = store.counts()

    assert (len(all_rows), after_all, len(first_row), after_one) == (2, (1, 2), 12, (1, 2))


def test_the_size_is_that_of_what_is_stored(store: PostgresStore) -> None:
    add(store, "a", "one", "é")
    add(store, "b", "three")
    first = (3 + 2 + 5) + 4 * (3 + 1 + 5) + 3 * 4 * 4

    assert store.size() == first
    store.delete("b")
    assert store.size() == first - 5 - 4 * 5 - 4 * 4
    store.delete("a")
    assert store.size() == 0


def test_writers_follow_one_another(
    store: PostgresStore, admin: psycopg.Connection[Any], postgres: DatabaseLocation
) -> None:
    # Somebody else changes the corpus and does not commit yet.
    other = PostgresStore(postgres / "notes")
    writer = threading.Thread(target=add, args=(other, "a", "one"))
    with admin.transaction():
        admin.execute("SELECT * FROM mayfly.corpora FOR UPDATE")
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        assert store.counts() == (0, 0)
    writer.join(30)

    assert store.counts() == (1, 1)


def test_several_processes_add_at_once(store: PostgresStore, postgres: DatabaseLocation) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from selection.corpus.postgres.store import PostgresStore\n"
        "from selection.location import DatabaseLocation\n"
        "from tests.selection.corpus.store_helpers import META, add\n"
        "store = PostgresStore(DatabaseLocation(sys.argv[1], Path(sys.argv[2])) / 'notes')\n"
        "sys.stdin.readline()\n"
        "for i in range(20): add(store, f'{sys.argv[3]} {i}', 'one', 'two')\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, postgres.url, str(postgres.cache), str(number)],
            stdin=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )
        for number in range(3)
    ]

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    # A reader that catches up by the last id misses nothing.
    seen, newest = 0, 0
    while any(process.poll() is None for process in processes):
        ids, _ = store.embeddings(newest)
        seen, newest = seen + len(ids), max([newest, *ids.tolist()])
    seen += len(store.embeddings(newest)[0])

    assert [process.wait() for process in processes] == [0, 0, 0]
    assert seen == 120
    assert store.counts() == (60, 120)
    assert generation(store) == 60
    assert store.embeddings()[0].tolist() == [*range(1, 121)]


def test_lost_connections_are_replaced(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    add(store, "a", "one")

    lose_connections(admin)
    assert store.counts() == (1, 1)

    def interrupted_read() -> None:
        with store.reading():
            lose_connections(admin)
            store.counts()

    with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
        interrupted_read()
    assert add(store, "b", "two") == 2
    assert store.counts() == (2, 2)


def test_many_lost_connections_are_replaced_at_once(
    store: PostgresStore, admin: psycopg.Connection[Any], postgres: DatabaseLocation
) -> None:
    count = 10
    together = threading.Barrier(count)

    def use_a_connection() -> None:
        with PostgresStore(postgres / "notes").reading():
            together.wait(30)

    users = [threading.Thread(target=use_a_connection) for _ in range(count)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)

    lose_connections(admin)

    started = time.monotonic()
    assert store.counts() == (0, 0)
    assert time.monotonic() - started < 4


def test_whether_a_corpus_is_in_place_is_told_while_it_is_read(store: PostgresStore) -> None:
    for number in range(100):
        add(store, str(number), "one")
    with store.reading():
        rows = store.database.copy(
            "COPY (SELECT id, text FROM sequences WHERE corpus = %(corpus)s) TO STDOUT"
        )
        read = [next(rows)]
        # As another thread asks that opens the corpus.
        assert store.is_in_place
        read += rows
        assert store.counts() == (100, 100)

    assert b"".join(read).count(b"\n") == 100


def test_an_index_of_a_later_state_is_not_used_once_the_database_was_restored(
    postgres: DatabaseLocation, admin: psycopg.Connection[Any], words: Embedder
) -> None:
    with closing(Corpus.create(postgres, "notes", words, "tokens")) as corpus:
        brute_force.add(corpus, words, "a", "cats purr")
        before = admin.execute(
            "SELECT generation, last_document, last_sequence FROM mayfly.corpora"
        ).fetchone()
        assert before is not None
        brute_force.add(corpus, words, "b", "ships sail")
        assert texts_near(corpus, words, "ships") == ["ships sail", "cats purr"]

        admin.execute("DELETE FROM mayfly.documents WHERE name = 'b'")
        admin.execute(
            "UPDATE mayfly.corpora SET generation = %s, last_document = %s, last_sequence = %s",
            before,
        )

        assert texts_near(corpus, words, "ships") == ["cats purr"]


def test_the_folder_of_the_index_may_be_deleted_at_any_time(
    postgres: DatabaseLocation, words: Embedder
) -> None:
    with closing(Corpus.create(postgres, "notes", words, "tokens")) as corpus:
        brute_force.add(corpus, words, "a", "cats purr")
        shutil.rmtree(postgres.cache, ignore_errors=True)
        assert texts_near(corpus, words, "cats") == ["cats purr"]

        with closing(Corpus.open(postgres, "notes")) as other:
            shutil.rmtree(postgres.cache)
            assert texts_near(other, words, "cats") == ["cats purr"]
        assert texts_near(corpus, words, "cats") == ["cats purr"]
        assert (postgres.cache / "notes" / "index.json").is_file()


def test_a_transaction_that_is_interrupted_leaves_no_trace(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    def interrupted_change() -> None:
        with store.database.writing():
            store.database.update_meta({"name": "never"})
            lose_connections(admin)

    with pytest.raises(CorpusUnavailableError, match="a change under way may not have been made"):
        interrupted_change()

    assert "name" not in store.meta()


def test_what_exceeds_a_limit_of_postgres_is_not_taken_for_a_lost_connection(
    store: PostgresStore,
) -> None:
    # Random, since PostgreSQL compresses what is longer than an entry of an index may be.
    long = hashlib.shake_256(b"an id").hexdigest(4000)

    with pytest.raises(
        CorpusError, match=r"corpus 'notes' was not changed: index row size .* exceeds"
    ) as caught:
        store.attachments.attach([Attachment(f"file-{long}", "a.md")])

    assert not isinstance(caught.value, CorpusUnavailableError)
    assert store.attachments.ids("in_progress") == []


def test_a_text_that_postgres_cannot_store_is_refused(store: PostgresStore) -> None:
    with pytest.raises(
        CorpusError, match=r"corpus 'notes' was not changed: .*cannot store the character U\+0000"
    ):
        add(store, "a", "one\0two")

    assert (store.counts(), generation(store)) == ((0, 0), 0)
