"""Connections: the pool of one PostgreSQL database, whose schema is up to date.

It is shared by all corpora that this process has open there. No message contains the password, nor
anything that libpq quotes of an invalid URL, in which the password may be.
"""

from __future__ import annotations

import atexit
import re
import select
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from pgvector.psycopg import register_vector
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from selection.corpus.postgres.errors import translated
from selection.corpus.postgres.migration import Connection, check_server, migrate, set_search_path
from selection.corpus.postgres.outage import BoundedConnection, NoAnswerError, Outage
from selection.errors import CorpusError
from selection.location import SCHEMES, DatabaseLocation

# Seconds that a connection may take, and that a caller waits for one of the pool.
_CONNECT_SECONDS, _POOL_SECONDS = 5, 5.0
# Seconds that the server may take to answer a query that reads a few rows.
ANSWER_SECONDS = 5.0
_MAX_CONNECTIONS = 16
# Milliseconds after which a transaction whose client is gone gives up what it has locked, and
# after which another stops waiting for it.
_IDLE, _LOCK = 60_000, 30_000
# Milliseconds for which the server's machine may not take what was sent. A server that is busy
# with the disk does not read, either, so this is no less than the wait for a lock.
_UNSENT = 30_000
_PORTS = re.compile(r"[0-9,]*")

_pools: dict[str, Pool] = {}
# By URL, as the pools, which there may be none of yet.
_outages: defaultdict[str, Outage] = defaultdict(Outage)
_lock = threading.Lock()


class Pool:
    """Connections that threads take turns to use.

    Args:
        conninfo: parameters of libpq.
        outage: remembers that there are none to be had.
    """

    def __init__(self, conninfo: str, outage: Outage) -> None:
        self._outage = outage
        # Number of connections that callers have.
        self._given = 0
        self._lock = threading.Lock()
        self._pool: ConnectionPool[BoundedConnection] = ConnectionPool(
            conninfo,
            connection_class=BoundedConnection,
            kwargs={"autocommit": True},
            min_size=0,
            max_size=_MAX_CONNECTIONS,
            max_idle=60,
            timeout=_POOL_SECONDS,
            # Then the next caller tries again, instead of waiting for a later attempt.
            reconnect_timeout=_POOL_SECONDS,
            configure=_configure,
            name="corpora",
            open=True,
        )

    @contextmanager
    def connection(self, answer_seconds: float | None = None) -> Iterator[BoundedConnection]:
        """Have a connection within the `with` block; at its end a transaction under way is
        committed, or rolled back if the block fails.

        Args:
            answer_seconds: how long the server may take to answer; None for no limit.

        Raises:
            PoolTimeout: there is none for too long, or another caller has just waited in vain.
            NoAnswerError: the server took too long to answer.
        """
        self._outage.check()
        try:
            connection = self._checked()
        except PoolTimeout as problem:
            # If callers have them all, the server need not be away.
            if self._given < _MAX_CONNECTIONS:
                self._outage.remember(problem)
            raise
        self._outage.end()
        self._count(1)
        try:
            with connection, connection.answering(answer_seconds):
                yield connection
        except NoAnswerError as problem:
            self._outage.remember(problem)
            raise
        finally:
            self._count(-1)
            self._pool.putconn(connection)

    def _checked(self) -> BoundedConnection:
        """A connection that works: those of a server that has restarted are dead. The pool's own
        check waits longer before each further connection that it tries.
        """
        end = time.monotonic() + _POOL_SECONDS
        while True:
            connection = self._pool.getconn(max(0.0, end - time.monotonic()))
            try:
                if _has_news(connection):
                    with connection.answering(ANSWER_SECONDS):
                        connection.execute("")
                return connection
            except BaseException as problem:
                # It is replaced if it is dead.
                self._pool.putconn(connection)
                if not isinstance(problem, psycopg.Error):
                    raise

    def _count(self, change: int) -> None:
        with self._lock:
            self._given += change

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def pool_of(location: DatabaseLocation) -> Pool:
    """This process's pool for a database, whose schema is up to date.

    Raises:
        CorpusError: the URL is invalid, the server or the database cannot be used, or the role
            lacks rights; the message says what to do.
        CorpusUnavailableError: the server cannot be reached.
    """
    with _lock:
        pool, outage = _pools.get(location.url), _outages[location.url]
    if pool is not None:
        return pool
    conninfo = _conninfo(location)
    # Without the lock: while the server cannot be reached, no caller waits for another's attempt.
    with translated(location), _connect(conninfo, outage) as connection:
        _set_timeouts(connection)
        check_server(connection)
        migrate(connection)
    with _lock:
        if location.url not in _pools:
            _pools[location.url] = Pool(conninfo, outage)
        return _pools[location.url]


def close_pools() -> None:
    """Close this process's connections; they are opened again when they are needed."""
    with _lock:
        _outages.clear()
        while _pools:
            _pools.popitem()[1].close()


atexit.register(close_pools)


def _conninfo(location: DatabaseLocation) -> str:
    try:
        given = conninfo_to_dict(location.url)
    except psycopg.Error:
        # libpq quotes the part that it cannot read.
        given = {}
    # A password that is not escaped may become the port, or a part of the host.
    is_split_well = _PORTS.fullmatch(str(given.get("port") or "")) and "@" not in str(
        given.get("host") or ""
    )
    if not location.url.startswith(SCHEMES) or not given or not is_split_well:
        raise CorpusError(
            "the URL of the corpora's database is invalid: write postgresql://USER:PASSWORD@HOST:"
            "PORT/DATABASE, with %-escapes for special characters of the password"
        ) from None
    defaults: dict[str, str | int | None] = {
        "connect_timeout": _CONNECT_SECONDS,
        "application_name": "mayfly",
        # The connection to a machine that is gone ends.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": _UNSENT,
    }
    return make_conninfo("", **(defaults | given))


def _connect(conninfo: str, outage: Outage) -> Connection:
    """A connection that belongs to no pool.

    Raises:
        psycopg.OperationalError: there is none, or another caller has just tried in vain.
    """
    outage.check()
    try:
        connection = psycopg.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as problem:
        outage.remember(problem)
        raise
    outage.end()
    return connection


def _has_news(connection: BoundedConnection) -> bool:
    """Whether the server has sent something to an idle connection, as it does at the latest when it
    ends: a look that costs no round trip.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _configure(connection: BoundedConnection) -> None:
    """Prepare a new connection of the pool."""
    with connection.answering(ANSWER_SECONDS):
        set_search_path(connection)
        register_vector(connection)
        _set_timeouts(connection)
        connection.execute(
            "SELECT set_config('idle_in_transaction_session_timeout', %s, false), "
            "set_config('lock_timeout', %s, false), "
            # The server, too, notices that a machine is gone, whose locks end then.
            "set_config('tcp_keepalives_idle', '10', false), "
            "set_config('tcp_keepalives_interval', '5', false), "
            "set_config('tcp_keepalives_count', '3', false), "
            # What was committed survives a crash of the server, whatever its default is.
            "CASE current_setting('synchronous_commit') WHEN 'off' "
            "THEN set_config('synchronous_commit', 'on', false) END",
            (str(_IDLE), str(_LOCK)),
        )


def _set_timeouts(connection: Connection) -> None:
    """Lift the limits that the role or the database may have: reading a large corpus, or changing
    it, takes longer than the queries that they are meant for.
    """
    connection.execute(
        "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN "
        # PostgreSQL 15 does not know the last.
        "('statement_timeout', 'idle_session_timeout', 'transaction_timeout')"
    )
