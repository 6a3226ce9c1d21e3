"""Migration: makes the schema of a database what this version of Mayfly knows, once, whichever
process connects first.
"""

from __future__ import annotations

from typing import TypeAlias

import psycopg
from psycopg import errors, sql

from selection.corpus.postgres.schema import MIGRATIONS, SCHEMA, VERSION
from selection.errors import CorpusError

Connection: TypeAlias = psycopg.Connection[tuple[object, ...]]

_OLDEST_SERVER = 150_000
# The key of the lock of the one process that migrates: "mayfly" in ASCII.
_MIGRATION_LOCK = int.from_bytes(b"mayfly")


def check_server(connection: Connection) -> None:
    """Check the version of the server and the encoding of the database.

    Raises:
        CorpusError: one of them cannot be used.
    """
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


def migrate(connection: Connection) -> None:
    """Bring the schema up to date; needs no right to change it where it is.

    Raises:
        CorpusError: it is a newer version's, or the role may not create it.
    """
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
            set_search_path(connection)
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


def set_search_path(connection: Connection) -> None:
    """Let names mean Mayfly's tables, and pgvector's types wherever they are.

    Raises:
        CorpusError: pgvector is missing.
    """
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
