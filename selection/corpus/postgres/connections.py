"""Connections: the pool of one PostgreSQL database, its schema, and its errors.

The pool is shared by all corpora that this process has open there. PostgreSQL's errors become
CorpusErrors that say what to do; none contains the password, nor anything that libpq quotes of an
invalid URL, in which the password may be.
"""

from __future__ import annotations

import atexit
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from selection.corpus.postgres.schema import MIGRATIONS, SCHEMA, VERSION
from selection.errors import CorpusError, CorpusUnavailableError, first_line
from selection.location import SCHEMES, DatabaseLocation

Connection: TypeAlias = psycopg.Connection[tuple[object, ...]]

# Seconds that a connection may take, and that a caller waits for one of the pool.
_CONNECT_SECONDS, _POOL_SECONDS = 5, 5.0
_MAX_CONNECTIONS = 16
# Milliseconds after which a transaction whose client is gone gives up what it has locked, and
# after which another stops waiting for it.
_IDLE, _LOCK = 60_000, 30_000
_OLDEST_SERVER = 150_000
_PORTS = re.compile(r"[0-9,]*")
# The key of the lock of the one process that migrates: "mayfly" in ASCII.
_MIGRATION_LOCK = int.from_bytes(b"mayfly")

_pools: dict[str, ConnectionPool[Connection]] = {}
_lock = threading.Lock()


def pool_of(location: DatabaseLocation) -> ConnectionPool[Connection]:
    """This process's pool for a database, whose schema is up to date.

    Raises:
        CorpusError: the URL is invalid, the server or the database cannot be used, or the role
            lacks rights; the message says what to do.
        CorpusUnavailableError: the server cannot be reached.
    """
    with _lock:
        pool = _pools.get(location.url)
        if pool is None:
            conninfo = _conninfo(location)
            with translated(location), psycopg.connect(conninfo, autocommit=True) as connection:
                _check_server(location, connection)
                _migrate(location, connection)
            pool = ConnectionPool(
                conninfo,
                kwargs={"autocommit": True},
                min_size=0,
                max_size=_MAX_CONNECTIONS,
                max_idle=60,
                timeout=_POOL_SECONDS,
                # Then the next caller tries again, instead of waiting for a later attempt.
                reconnect_timeout=_POOL_SECONDS,
                # Connections of a server that has restarted are found to be dead.
                check=ConnectionPool.check_connection,
                configure=_configure,
                name="corpora",
                open=True,
            )
            _pools[location.url] = pool
        return pool


def close_pools() -> None:
    """Close this process's connections; they are opened again when they are needed."""
    with _lock:
        while _pools:
            _pools.popitem()[1].close()


atexit.register(close_pools)


@contextmanager
def translated(location: DatabaseLocation, change: str = "the corpora") -> Iterator[None]:
    """Turn PostgreSQL's errors into CorpusErrors.

    Args:
        location: the database.
        change: what was not changed, for messages.
    """
    try:
        yield
    except psycopg.Error as problem:
        translation = _translation(problem, change)
        if translation is None:
            raise
        translation.add_note(f"their database is {location}")
        raise translation from problem


def _translation(problem: psycopg.Error, change: str) -> CorpusError | None:
    """The error for users; None for a bug of ours."""
    if isinstance(problem, errors.InsufficientPrivilege):
        return CorpusError(
            f"the role of the corpora's database lacks a right: {first_line(problem)}; let it own "
            f"the schema {SCHEMA} and its tables"
        )
    if isinstance(problem, errors.UndefinedTable | errors.InvalidSchemaName):
        return CorpusError(
            f"the corpora's database lacks tables of Mayfly: {first_line(problem)}; start again "
            "to create them, or restore the database"
        )
    if isinstance(problem, errors.DiskFull | errors.ReadOnlySqlTransaction):
        return CorpusError(f"{change} was not changed: {first_line(problem)}")
    if isinstance(problem, errors.LockNotAvailable | errors.QueryCanceled):
        return CorpusUnavailableError(
            f"{change} was not changed: another change of it takes too long; try again"
        )
    if isinstance(problem, errors.InvalidPassword | errors.InvalidAuthorizationSpecification):
        return _refused(problem)
    if isinstance(problem, PoolTimeout | psycopg.OperationalError | psycopg.InterfaceError):
        # Before a connection is made, libpq's error has no code.
        if any(each in str(problem) for each in ("authentication failed", '" does not exist')):
            return _refused(problem)
        return _because(
            problem,
            CorpusUnavailableError(
                "the corpora's database cannot be reached; a change under way may not have been "
                "made: try again"
            ),
        )
    if isinstance(problem, psycopg.DataError) and "NUL" in str(problem):
        return CorpusError(
            f"{change} was not changed: PostgreSQL cannot store the character U+0000; remove it"
        )
    return None


def _refused(problem: psycopg.Error) -> CorpusError:
    return _because(
        problem,
        CorpusError(
            "the corpora's database refuses the connection: check user, password and database in "
            "its URL"
        ),
    )


def _because(problem: psycopg.Error, translation: CorpusError) -> CorpusError:
    """An error with the server's own words as a note: not every client may see who and where."""
    translation.add_note(first_line(problem).rpartition("failed: ")[2])
    return translation


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
        "tcp_user_timeout": 30_000,
    }
    return make_conninfo("", **(defaults | given))


def _check_server(location: DatabaseLocation, connection: Connection) -> None:
    version, encoding = connection.info.server_version, connection.info.parameter_status
    if version < _OLDEST_SERVER:
        raise CorpusError(
            f"the corpora's database is PostgreSQL {version // 10_000}: use 15 or newer"
        )
    if encoding("server_encoding") != "UTF8":
        raise CorpusError(
            f"the corpora's database has the encoding {encoding('server_encoding')}: create it "
            "with ENCODING 'UTF8'"
        )


def _migrate(location: DatabaseLocation, connection: Connection) -> None:
    """Bring the schema up to date; needs no right to change it where it is."""
    if _version(connection) == VERSION:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        # Another process may have migrated it while this one waited for the lock.
        version = _version(connection)
        if version > VERSION:
            raise CorpusError(
                f"the corpora's database has the schema {version} of a newer version of Mayfly "
                f"(this one knows {VERSION}): update Mayfly"
            )
        if version < VERSION:
            _create_extension(connection)
            _create_schema(connection)
            _set_search_path(connection)
            for migration in MIGRATIONS[version:]:
                connection.execute(sql.SQL(migration))
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version VALUES (%s)", (VERSION,))


def _version(connection: Connection) -> int:
    exists = connection.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.schema_version",)).fetchone()
    if exists == (None,):
        return 0
    query = sql.SQL("SELECT version FROM {}.schema_version").format(sql.Identifier(SCHEMA))
    found = connection.execute(query).fetchone()
    return 0 if found is None else int(str(found[0]))


def _create_extension(connection: Connection) -> None:
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except errors.InsufficientPrivilege as problem:
        raise CorpusError(
            "the corpora's database lacks pgvector, which its role may not create: let an "
            f"administrator run `CREATE EXTENSION vector` in {connection.info.dbname}"
        ) from problem
    except (errors.FeatureNotSupported, errors.UndefinedFile) as problem:
        raise CorpusError(
            "the server of the corpora's database does not have pgvector: install it there"
        ) from problem


def _create_schema(connection: Connection) -> None:
    name = sql.Identifier(SCHEMA)
    exists = connection.execute("SELECT to_regnamespace(%s)", (SCHEMA,)).fetchone()
    try:
        with connection.transaction():
            if exists == (None,):
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
            create = "CREATE TABLE IF NOT EXISTS {}.schema_version (version integer NOT NULL)"
            connection.execute(sql.SQL(create).format(name))
    except errors.InsufficientPrivilege as problem:
        role = connection.info.user
        raise CorpusError(
            f"the role {role!r} may not create tables for the corpora: let an administrator run "
            f"`CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}` in {connection.info.dbname}"
        ) from problem


def _set_search_path(connection: Connection) -> None:
    """Let names mean Mayfly's tables, and pgvector's types wherever they are."""
    found = connection.execute(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
    ).fetchone()
    if found is None:
        raise CorpusError(
            "the corpora's database lacks pgvector: let an administrator run `CREATE EXTENSION "
            f"vector` in {connection.info.dbname}"
        )
    # As the server writes it, quoted where that is necessary.
    path = sql.SQL("SET search_path TO {}, {}").format(
        sql.Identifier(SCHEMA), sql.SQL(str(found[0]))
    )
    connection.execute(path)


def _configure(connection: Connection) -> None:
    """Prepare a new connection of the pool."""
    _set_search_path(connection)
    register_vector(connection)
    connection.execute(
        "SELECT set_config('idle_in_transaction_session_timeout', %s, false), "
        "set_config('lock_timeout', %s, false), "
        # What was committed survives a crash of the server, whatever its default is.
        "CASE current_setting('synchronous_commit') WHEN 'off' "
        "THEN set_config('synchronous_commit', 'on', false) END",
        (str(_IDLE), str(_LOCK)),
    )
