"""API keys in PostgreSQL: every change is seen, one follows another, and names are never SQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus.postgres import connections, migration
from selection.corpus.postgres.api_keys import ApiKeys, StoredKey
from selection.corpus.postgres.connections import close_pools
from selection.corpus.postgres.schema import MIGRATIONS, VERSION
from selection.corpus.postgres.store import PostgresStore
from selection.errors import CorpusError, CorpusUnavailableError
from selection.location import DatabaseLocation
from tests import postgres_server
from tests.selection.corpus.store_helpers import META

_ODD = st.sampled_from(
    ["'", '"', "\\", "%s", "%(name)s", "$1", "?", "a'; DROP TABLE api_keys; --", "{}", "(", ""]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def key(name: str, number: int = 0, **entries: Any) -> StoredKey:
    return StoredKey(name, f"{number:064x}", entries)


@pytest.fixture
def table(postgres: DatabaseLocation) -> ApiKeys:
    return ApiKeys(postgres)


@pytest.fixture
def admin(postgres: DatabaseLocation) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


def put(table: ApiKeys, *keys: StoredKey) -> None:
    with table.changing() as change:
        change.put(keys)


def read(table: ApiKeys, known: str = "") -> tuple[str, list[StoredKey]]:
    changed = table.changed(known)
    assert changed is not None
    return changed


def test_keys_are_read_with_their_entries_in_the_order_of_names(table: ApiKeys) -> None:
    bob = key("bob", 2, corpora=["nx", "ü"], max_seconds=1.5, requests_per_minute=60)
    put(table, bob, key("alice", 1), key("Zoe", 3))

    assert read(table)[1] == [key("Zoe", 3), key("alice", 1), bob]
    with table.changing() as change:
        assert [*change.all()] == ["Zoe", "alice", "bob"]


def test_every_change_is_seen_and_nothing_is_read_without_one(
    table: ApiKeys, admin: psycopg.Connection[Any]
) -> None:
    version, keys = read(table)
    assert keys == []
    assert table.changed(version) is None

    put(table, key("alice", 1), key("bob", 2))
    version, keys = read(table, version)
    assert (len(keys), table.changed(version)) == (2, None)

    put(table, key("alice", 1, max_steps=3))
    version, keys = read(table, version)
    assert keys[0] == key("alice", 1, max_steps=3)

    with table.changing() as change:
        assert change.remove("alice")
        assert not change.remove("alice")
    version, keys = read(table, version)
    assert keys == [key("bob", 2)]

    # An administrator may change rows, too.
    admin.execute("DELETE FROM mayfly.api_keys")
    assert read(table, version)[1] == []


def test_keys_are_required_from_the_first_one_on(table: ApiKeys) -> None:
    assert not table.required()

    put(table)
    assert not table.required()
    put(table, key("alice"))
    assert table.required()
    with table.changing() as change:
        change.remove("alice")

    assert table.required()


def test_a_change_that_fails_leaves_nothing(table: ApiKeys) -> None:
    put(table, key("alice", 1))

    def failing() -> None:
        with table.changing() as change:
            change.put([key("bob", 2)])
            change.remove("alice")
            raise KeyError

    with pytest.raises(KeyError):
        failing()

    assert read(table)[1] == [key("alice", 1)]


def test_secrets_may_be_exchanged_but_not_shared(table: ApiKeys) -> None:
    put(table, key("alice", 1), key("bob", 2))

    put(table, key("alice", 2), key("bob", 1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        put(table, key("carol", 1))

    assert read(table)[1] == [key("alice", 2), key("bob", 1)]


def test_changes_follow_one_another_and_reading_waits_for_none(table: ApiKeys) -> None:
    with table.changing() as change:
        change.put([key("alice", 1)])
        other = threading.Thread(target=put, args=(table, key("alice", 2)))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert read(table)[1] == []
    other.join(30)

    assert read(table)[1] == [key("alice", 2)]


def test_a_key_that_cannot_be_stored_is_refused(table: ApiKeys) -> None:
    with pytest.raises(CorpusError, match=r"the list of API keys was not changed: .*U\+0000"):
        put(table, key("alice", 1, corpora=["a\0b"]))

    assert read(table)[1] == []


def test_a_database_that_is_away_is_reported(
    table: ApiKeys, postgres: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(table, key("alice", 1))

    with postgres_server.away(postgres.url), monkeypatch.context() as impatient:
        impatient.setattr(connections, "_POOL_SECONDS", 0.1)
        for use in (table.changed, table.required, lambda: put(table, key("bob", 2))):
            with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
                use()

    assert read(table)[1] == [key("alice", 1)]


def test_a_database_of_the_first_version_gets_the_table(
    postgres_url: str, postgres: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_server.database(postgres_url) as url:
        location = DatabaseLocation(url, postgres.cache)
        with monkeypatch.context() as earlier:
            earlier.setattr(migration, "MIGRATIONS", MIGRATIONS[:1])
            earlier.setattr(migration, "VERSION", 1)
            PostgresStore(location / "notes").initialise(META)
        close_pools()

        put(ApiKeys(location), key("alice", 1))

        assert read(ApiKeys(location))[1] == [key("alice", 1)]
        assert PostgresStore(location / "notes").counts() == (0, 0)
        with psycopg.connect(url) as connection:
            versions = connection.execute("SELECT version FROM mayfly.schema_version").fetchall()
        assert versions == [(VERSION,)]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=_ODD, other=_ODD, entry=_ODD, value=_ODD)
def test_user_input_never_becomes_sql(
    table: ApiKeys, name: str, other: str, entry: str, value: str
) -> None:
    before, _ = read(table)
    mine = key(name, 1, **{entry: [value]})

    put(table, mine)

    version, keys = read(table, before)
    assert keys == [mine]
    with table.changing() as change:
        assert change.remove(other) == (other == name)
        change.put([mine])
    assert table.changed(version) is None
    with table.changing() as change:
        assert change.all() == {name: mine}
        assert change.remove(name)
    assert table.changed(before) is None
