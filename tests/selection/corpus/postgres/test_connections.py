"""Connections to PostgreSQL: the schema is made once, errors say what to do, and no password in any
of them.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from selection.corpus.lookup import list_corpora
from selection.corpus.postgres.connections import close_pools
from selection.corpus.postgres.schema import VERSION
from selection.errors import CorpusError, CorpusUnavailableError
from selection.location import DatabaseLocation
from serving.errors import in_full
from tests import postgres_server

_REPOSITORY = Path(__file__).resolve().parents[4]
_SECRET = "s3cret-Passw0rd"


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    """The URL of a database that Mayfly has never used."""
    with postgres_server.database(postgres_url) as url:
        yield url


@pytest.fixture
def admin(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(url: str, admin: psycopg.Connection[Any]) -> Iterator[str]:
    """The URL of that database for a role without rights."""
    admin.execute("DROP ROLE IF EXISTS mayfly_test_reader")
    admin.execute(
        sql.SQL("CREATE ROLE mayfly_test_reader LOGIN PASSWORD {}").format(sql.Literal(_SECRET))
    )
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    yield urlunsplit(parts._replace(netloc=f"mayfly_test_reader:{_SECRET}@{address}"))
    close_pools()
    admin.execute("DROP OWNED BY mayfly_test_reader CASCADE")
    admin.execute("DROP ROLE mayfly_test_reader")


def refusal(url: str, tmp_path: Path) -> CorpusError:
    """Why corpora in a database cannot be listed; no password in it or in what it was made from."""
    with pytest.raises(CorpusError) as refused:
        list_corpora(DatabaseLocation(url, tmp_path))
    problem = refused.value
    assert _SECRET not in "".join(traceback.format_exception(problem))
    assert _SECRET not in in_full(problem)
    return problem


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{_SECRET}@host/db",
        f"postgresql://me:{_SECRET}@host:port/db",
        f"postgresql://me:p@{_SECRET}@host/db",
        f"postgresql://me:p/{_SECRET}@host/db",
        "postgresql://",
        f"postgresql://me:@{_SECRET}/@host:5432/db?x=1",
        f"postgresql://me:{_SECRET}@host/db?no_such_parameter=1",
        f"host=here password={_SECRET}",
    ],
)
def test_an_invalid_url_is_refused(url: str, tmp_path: Path) -> None:
    problem = refusal(url, tmp_path)

    assert "is invalid: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in str(problem)


def test_a_server_that_cannot_be_reached_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"postgresql://me:{_SECRET}@127.0.0.1:1/corpora"
    with caplog.at_level(logging.DEBUG):
        problem = refusal(url, tmp_path)

    assert isinstance(problem, CorpusUnavailableError)
    assert "the corpora's database cannot be reached" in str(problem)
    # Clients do not see where it is; the operator does.
    assert "127.0.0.1" not in str(problem)
    assert "Connection refused" in in_full(problem)
    assert "their database is postgresql://me@127.0.0.1:1/corpora" in in_full(problem)
    assert _SECRET not in caplog.text


def test_a_missing_database_is_reported(url: str, tmp_path: Path) -> None:
    problem = refusal(urlunsplit(urlsplit(url)._replace(path="/no_such_database")), tmp_path)

    assert "refuses the connection: check user, password and database in its URL" in str(problem)
    assert 'database "no_such_database" does not exist' in in_full(problem)


def test_a_wrong_user_is_reported(url: str, tmp_path: Path) -> None:
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    wrong = urlunsplit(parts._replace(netloc=f"no_such_user:{_SECRET}@{address}"))

    problem = refusal(wrong, tmp_path)

    assert "refuses the connection: check user, password" in str(problem)
    assert "no_such_user" not in str(problem)
    assert "no_such_user" in in_full(problem)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a server that answers the first message of a client, whether it may encrypt the
    connection, and nothing else.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(8)
                        connection.sendall(answer)
                        connection.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "note"), [(b"S", "root certificate file"), (b"N", "server does not support SSL")]
)
def test_a_connection_that_cannot_be_secured_is_reported(
    tmp_path: Path, answer: bytes, note: str
) -> None:
    parameters = f"sslmode=verify-full&sslrootcert={tmp_path / 'none.crt'}"
    with answering(answer) as port:
        problem = refusal(f"postgresql://me:{_SECRET}@127.0.0.1:{port}/db?{parameters}", tmp_path)

    assert "as securely as its URL demands: check sslmode in it, and sslrootcert" in str(problem)
    assert note in in_full(problem)


@pytest.mark.parametrize(
    "url", ["postgresql://u:{}@h:1/d", "postgresql://u:{}@h:wrong/d", "postgresql://u:p/{}@h/d"]
)
def test_the_password_is_in_no_representation(url: str, tmp_path: Path) -> None:
    location = DatabaseLocation(url.format(_SECRET), tmp_path)

    for text in (repr(location), str(location), repr(location / "notes"), str([location])):
        assert _SECRET not in text


def test_a_role_that_may_not_create_tables_is_told_who_may(
    role: str, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    assert "lacks pgvector" in str(refusal(role, tmp_path))
    assert "let an administrator run `CREATE EXTENSION vector` in mayfly_test_" in str(
        refusal(role, tmp_path)
    )

    admin.execute("CREATE EXTENSION vector")
    assert "let an administrator run `CREATE SCHEMA mayfly AUTHORIZATION mayfly_test_reader`" in (
        str(refusal(role, tmp_path))
    )

    admin.execute("CREATE SCHEMA mayfly AUTHORIZATION mayfly_test_reader")
    assert list_corpora(DatabaseLocation(role, tmp_path)) == []


def test_a_role_without_rights_to_the_tables_is_reported(
    url: str, role: str, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    assert list_corpora(DatabaseLocation(url, tmp_path)) == []
    assert "lacks a right: permission denied for schema mayfly" in str(refusal(role, tmp_path))

    admin.execute("GRANT USAGE ON SCHEMA mayfly TO mayfly_test_reader")
    admin.execute("GRANT SELECT ON mayfly.schema_version TO mayfly_test_reader")
    assert "lacks a right: permission denied for table corpora" in str(refusal(role, tmp_path))

    # Nothing more is needed than rights to the tables.
    admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA mayfly TO mayfly_test_reader")
    assert list_corpora(DatabaseLocation(role, tmp_path)) == []


def test_several_processes_make_the_schema_once(
    url: str, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from selection.corpus.lookup import list_corpora\n"
        "from selection.location import DatabaseLocation\n"
        "import selection.corpus.postgres.corpora\n"
        "sys.stdin.readline()\n"
        "print(list_corpora(DatabaseLocation(sys.argv[1], Path(sys.argv[2]))))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )
        for _ in range(4)
    ]

    assert [process.communicate("go\n")[0] for process in processes] == ["[]\n"] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert admin.execute("SELECT version FROM mayfly.schema_version").fetchall() == [(VERSION,)]


def test_a_schema_of_a_newer_version_is_refused_and_not_changed(
    url: str, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    list_corpora(DatabaseLocation(url, tmp_path))
    close_pools()
    admin.execute("UPDATE mayfly.schema_version SET version = 1000")

    assert "has the schema 1000 of a newer version of Mayfly" in str(refusal(url, tmp_path))
    assert admin.execute("SELECT version FROM mayfly.schema_version").fetchall() == [(1000,)]


def test_a_migration_that_fails_leaves_nothing(
    url: str, admin: psycopg.Connection[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "selection.corpus.postgres.migration.MIGRATIONS",
            ("CREATE TABLE corpora (id bigint); SELECT 1 / 0",),
        )
        with pytest.raises(psycopg.errors.DivisionByZero):
            list_corpora(DatabaseLocation(url, tmp_path))
    assert admin.execute("SELECT to_regclass('mayfly.corpora')").fetchone() == (None,)

    assert list_corpora(DatabaseLocation(url, tmp_path)) == []


def test_a_database_of_another_encoding_is_refused(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(
            "CREATE DATABASE mayfly_test_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        )
        try:
            url = urlunsplit(urlsplit(postgres_url)._replace(path="/mayfly_test_latin"))
            assert "has the encoding LATIN1: create it with ENCODING 'UTF8'" in str(
                refusal(url, tmp_path)
            )
        finally:
            server.execute("DROP DATABASE mayfly_test_latin WITH (FORCE)")
