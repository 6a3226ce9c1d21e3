"""Limits of time that the server keeps: those of Mayfly, and those of its role or database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from selection.corpus.postgres import connections
from selection.corpus.postgres.store import PostgresStore
from selection.errors import CorpusUnavailableError
from selection.location import DatabaseLocation
from tests.selection.corpus.store_helpers import META, add


@pytest.fixture
def admin(postgres: DatabaseLocation) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def open_store(postgres: DatabaseLocation) -> Iterator[Any]:
    """Opens the store with new connections, for which limits that have been set are in force."""

    def opened() -> PostgresStore:
        connections.close_pools()
        store = PostgresStore(postgres / "notes")
        store.initialise(META)
        return store

    yield opened
    connections.close_pools()


@pytest.mark.parametrize("limit", ["statement_timeout", "idle_session_timeout"])
def test_limits_of_the_database_do_not_apply(
    open_store: Any, postgres: DatabaseLocation, admin: psycopg.Connection[Any], limit: str
) -> None:
    open_store()
    name, setting = sql.Identifier(urlsplit(postgres.url).path[1:]), sql.Identifier(limit)
    admin.execute(sql.SQL("ALTER DATABASE {} SET {} = 100").format(name, setting))
    try:
        store = open_store()
        assert store.database.rows("SELECT current_setting(%(name)s)", name=limit) == [("0",)]
        assert store.database.rows("SELECT pg_sleep(0.2)") == [("",)]
    finally:
        admin.execute(sql.SQL("ALTER DATABASE {} RESET {}").format(name, setting))


def test_a_change_that_waits_too_long_for_another_is_reported(
    open_store: Any, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_LOCK", 100)
    store = open_store()

    with (
        admin.transaction(),
        admin.cursor() as cursor,
    ):
        cursor.execute("SELECT id FROM mayfly.corpora FOR UPDATE")
        with pytest.raises(
            CorpusUnavailableError, match="another change of it takes too long; try again"
        ):
            add(store, "a", "one")

    add(store, "a", "one")


def test_a_query_that_an_administrator_cancels_is_reported(
    open_store: Any, admin: psycopg.Connection[Any]
) -> None:
    store = open_store()
    ((pid,),) = store.database.rows("SELECT pg_backend_pid()")

    def cancel() -> None:
        # An earlier statement of the connection may still be active.
        state = (
            "SELECT state = 'active' AND query LIKE '%%pg_sleep%%' "
            "FROM pg_stat_activity WHERE pid = %s"
        )
        while admin.execute(state, (pid,)).fetchone() != (True,):
            pass
        admin.execute("SELECT pg_cancel_backend(%s)", (pid,))

    administrator = threading.Thread(target=cancel)
    administrator.start()
    with pytest.raises(
        CorpusUnavailableError,
        match=r"has cancelled a query, and corpus 'notes' was not changed: .*user request",
    ):
        store.database.rows("SELECT pg_sleep(30)")
    administrator.join()


def test_a_transaction_that_was_idle_for_too_long_is_reported(
    open_store: Any, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE", 100)
    store = open_store()

    def change() -> None:
        with store.database.writing():
            ((pid,),) = store.database.rows("SELECT pg_backend_pid()")
            there = "SELECT pid FROM pg_stat_activity WHERE pid = %s"
            while admin.execute(there, (pid,)).fetchone() is not None:
                pass
            store.database.update_meta({"name": "never"})

    with pytest.raises(CorpusUnavailableError, match="a change under way may not have been made"):
        change()

    assert "name" not in store.meta()
