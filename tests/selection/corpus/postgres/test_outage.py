"""A database that does not answer: callers wait for it side by side instead of one after the other,
and not without end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.corpus.pool import CorpusPool
from selection.corpus.postgres import connections, outage
from selection.corpus.postgres.outage import Outage
from selection.embedding import Embedder
from selection.errors import CorpusUnavailableError
from selection.location import DatabaseLocation
from serving.calls import SerialExecutor
from tests import postgres_server


@pytest.fixture(autouse=True)
def _new_pools() -> Iterator[None]:
    """After an outage a pool waits for a while before it tries again."""
    connections.close_pools()
    yield
    connections.close_pools()


@contextmanager
def away(url: str) -> Iterator[None]:
    """As `postgres_server.away`, where callers wait for less than five seconds."""
    with postgres_server.away(url), pytest.MonkeyPatch.context() as patched:
        patched.setattr(connections, "_POOL_SECONDS", 0.2)
        yield


@pytest.fixture
def pool(postgres: DatabaseLocation, words: Embedder) -> Iterator[CorpusPool]:
    """A pool with an open corpus."""
    Corpus.create(postgres, "notes", words, "tokens").close()
    pool = CorpusPool(postgres, words, "tokens")
    with pool.open("notes"):
        pass
    yield pool
    pool.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Why callers have waited for a connection in vain, while outages are remembered."""
    waits: list[Exception] = []
    checked = connections.Pool._checked

    def counted(pool: connections.Pool) -> Any:
        try:
            return checked(pool)
        except Exception as problem:
            waits.append(problem)
            raise

    monkeypatch.setattr(connections.Pool, "_checked", counted)
    monkeypatch.setattr(outage, "_OUTAGE_SECONDS", 3600.0)
    return waits


@contextmanager
def stopped(url: str) -> Iterator[None]:
    """Let the server's processes for a database do nothing within the `with` block, but no longer
    than half a minute; the kernel still acknowledges what is sent to them.
    """
    if postgres_server.SERVER in os.environ:
        pytest.skip("the server's processes are not ours")
    with postgres_server.administrator(url) as (admin, _):
        rows = admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s", (urlsplit(url).path[1:],)
        ).fetchall()

    def send(number: signal.Signals) -> None:
        for (pid,) in rows:
            os.kill(pid, number)

    guard = threading.Timer(30, send, [signal.SIGCONT])
    guard.start()
    send(signal.SIGSTOP)
    try:
        yield
    finally:
        guard.cancel()
        send(signal.SIGCONT)


def pool_has_idle_connections(location: DatabaseLocation) -> bool:
    return connections.pool_of(location)._pool.get_stats()["pool_available"] > 0


def test_an_outage_is_remembered_for_a_moment() -> None:
    now = 100.0
    outage = Outage(lambda: now)
    outage.check()

    outage.remember(PoolTimeout("after 5 seconds"))
    now += 0.9
    with pytest.raises(PoolTimeout, match="after 5 seconds"):
        outage.check()
    now += 0.2
    outage.check()

    outage.remember(PoolTimeout("after 5 seconds"))
    outage.end()
    outage.check()


def test_concurrent_callers_of_a_corpus_wait_once(
    pool: CorpusPool, postgres: DatabaseLocation, waits: list[Exception]
) -> None:
    def use(_: int) -> None:
        with pytest.raises(CorpusUnavailableError, match="cannot be reached"), pool.open("notes"):
            pass

    with away(postgres.url), ThreadPoolExecutor(10) as threads:
        [*threads.map(use, range(10))]

    # One that looks for removed corpora, and one that has locked the corpus, side by side.
    assert 1 <= len(waits) <= 2


async def test_calls_one_after_the_other_wait_once(
    postgres: DatabaseLocation, waits: list[Exception]
) -> None:
    list_corpora(postgres)
    executor = SerialExecutor(postgres)
    with away(postgres.url):
        for _ in range(5):
            with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
                await executor.call(list_corpora)

    assert len(waits) == 1


def test_a_database_that_is_back_is_used(
    pool: CorpusPool,
    postgres: DatabaseLocation,
    waits: list[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with away(postgres.url), pytest.raises(CorpusUnavailableError):
        list_corpora(postgres)
    monkeypatch.setattr(outage, "_OUTAGE_SECONDS", 0.0)

    assert list_corpora(postgres) == ["notes"]
    monkeypatch.setattr(outage, "_OUTAGE_SECONDS", 3600.0)
    with pool.open("notes") as corpus:
        assert corpus.counts() == (0, 0)
    assert len(waits) == 1


def test_a_first_connection_that_fails_is_remembered(
    postgres_url: str, postgres: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_OUTAGE_SECONDS", 3600.0)
    attempts: list[str] = []
    connect = psycopg.connect

    def counted(conninfo: str, **options: Any) -> Any:
        attempts.append(conninfo)
        return connect(conninfo, **options)

    connections.close_pools()
    with away(postgres_url):
        monkeypatch.setattr(psycopg, "connect", counted)
        for _ in range(3):
            with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
                list_corpora(postgres)

    assert len(attempts) == 1
    connections.close_pools()
    assert list_corpora(postgres) == []


def test_a_pool_whose_connections_are_all_in_use_is_no_outage(
    postgres: DatabaseLocation, waits: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", 3)
    pool = connections.pool_of(postgres)

    def hold(count: int) -> None:
        with pool.connection():
            if count > 1:
                hold(count - 1)
                return
            monkeypatch.setattr(connections, "_POOL_SECONDS", 0.2)
            with pytest.raises(PoolTimeout), pool.connection():
                pass

    hold(connections._MAX_CONNECTIONS)

    with pool.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert len(waits) == 1


@pytest.mark.parametrize("use", ["a corpus", "its list", "a transaction"])
def test_a_server_that_is_stopped_is_not_waited_for(
    pool: CorpusPool, postgres: DatabaseLocation, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    for module in ("connections", "corpora", "database"):
        monkeypatch.setattr(f"selection.corpus.postgres.{module}.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(outage, "_OUTAGE_SECONDS", 0.0)
    corpus = Corpus.open(postgres, "notes")

    def read() -> None:
        with corpus._store.reading():
            pass

    def use_corpus() -> None:
        with pool.open("notes"):
            pass

    uses: dict[str, Callable[[], object]] = {
        "a corpus": use_corpus,
        "its list": partial(list_corpora, postgres),
        "a transaction": read,
    }
    with stopped(postgres.url):
        for _ in range(connections._MAX_CONNECTIONS):
            with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
                uses[use]()
            if not pool_has_idle_connections(postgres):
                break
        # Each has closed its connection; a new one answers.
        uses[use]()
