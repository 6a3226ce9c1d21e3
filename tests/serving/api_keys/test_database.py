"""API keys in the database of the corpora: valid beside the others, and followed by servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from selection.access import OPERATOR, Principal
from selection.corpus.postgres import connections
from selection.errors import CorpusError
from selection.location import DatabaseLocation
from serving.api_keys import database
from serving.api_keys.authentication import Authentication
from serving.api_keys.changes import add_key, load_keys, remove_key
from serving.api_keys.database import DatabaseKeys, check_keys, keys_required
from serving.api_keys.key import Key, digest
from serving.api_keys.keys import Keys
from serving.budget import Budget
from serving.errors import (
    KeysUnavailableError,
    RateLimitError,
    SettingsError,
    UnauthorizedError,
)
from tests import postgres_server
from tests.serving.api_keys.key_files import key_file

_AUTO, _LIMITS = Budget(50, alpha=0.05), Budget(50, 60.0)
_AWAY = "postgresql://me:s3cret@127.0.0.1:1/corpora"


def keys(*secrets: str, file: Path | None = None) -> Keys:
    return Keys([digest(secret) for secret in secrets], file, _AUTO, _LIMITS)


@asynccontextmanager
async def serving(
    location: DatabaseLocation, known: Keys, required: bool = False
) -> AsyncIterator[Callable[[str], Any]]:
    """A server; the function says whose request has a secret, and "nobody" if it is refused."""
    authentication = Authentication(known, location, required)

    async def sender(secret: str) -> str:
        try:
            key = await authentication.key_of(f"Bearer {secret}")
        except UnauthorizedError:
            return "nobody"
        return "anybody" if key is None else key.name

    yield sender
    authentication.end()


async def until(question: Callable[[str], Any], secret: str, answer: str) -> None:
    """Wait until the answer to a question is another one."""
    async with asyncio.timeout(30):
        while await question(secret) != answer:  # noqa: ASYNC110  no event
            await asyncio.sleep(0.01)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers read the keys again and again."""
    monkeypatch.setattr(database, "_CHECK_SECONDS", 0.02)


# -- a server


async def test_keys_of_all_three_sources_are_accepted(
    postgres: DatabaseLocation, tmp_path: Path
) -> None:
    everything = {"corpora": ["*"], "max_steps": 5}
    carol, boss = (
        add_key(postgres, name, more) for name, more in (("carol", {}), ("b", everything))
    )
    known = keys("first", file=key_file(tmp_path, alice="open-sesame"))
    authentication = Authentication(known, postgres, required=True)

    found = [
        await authentication.key_of(f"Bearer {each}")
        for each in ("first", "open-sesame", carol, boss)
    ]
    authentication.end()

    assert all(isinstance(key, Key) for key in found)
    assert [key.principal for key in found if key] == [
        OPERATOR,
        Principal("alice", frozenset()),
        Principal("carol", frozenset()),
        OPERATOR,
    ]
    assert [key.limits for key in found if key][2:] == [None, Budget(5, 60.0)]


@pytest.mark.usefixtures("often")
async def test_new_and_removed_keys_take_effect_on_every_server(postgres: DatabaseLocation) -> None:
    first = add_key(postgres, "alice", {})
    async with (
        serving(postgres, keys("own"), required=True) as one,
        serving(postgres, keys(), required=True) as other,
    ):
        assert [await server(first) for server in (one, other)] == ["alice", "alice"]

        second = add_key(postgres, "bob", {})
        for server in (one, other):
            await until(server, second, "bob")

        remove_key(postgres, "alice")
        replaced = add_key(postgres, "bob", {}, replace=True)
        for server in (one, other):
            await until(server, first, "nobody")
            await until(server, replaced, "bob")
            assert await server(second) == "nobody"
        assert (await one("own"), await other("own")) == ("--api-key 1", "nobody")


@pytest.mark.usefixtures("often")
async def test_a_server_never_becomes_open_because_its_last_key_was_removed(
    postgres: DatabaseLocation, caplog: pytest.LogCaptureFixture
) -> None:
    secret = add_key(postgres, "alice", {})
    assert keys_required(postgres)
    async with serving(postgres, keys(), required=keys_required(postgres)) as running:
        assert await running(secret) == "alice"

        assert remove_key(postgres, "alice") == 0
        await until(running, secret, "nobody")

    # Nor does a server that starts later.
    assert keys_required(postgres)
    assert "there is no API key: every request is refused" in caplog.text


@pytest.mark.usefixtures("often")
async def test_an_open_server_needs_a_key_once_there_is_one(
    postgres: DatabaseLocation, caplog: pytest.LogCaptureFixture
) -> None:
    assert not keys_required(postgres)
    async with serving(postgres, keys(), required=keys_required(postgres)) as running:
        assert await running("") == "anybody"

        secret = add_key(postgres, "alice", {})
        await until(running, "", "nobody")
        assert await running(secret) == "alice"
        remove_key(postgres, "alice")
        await until(running, secret, "nobody")

    assert "the database of the corpora has API keys now: requests need one" in caplog.text


async def test_the_requests_of_a_key_are_counted(postgres: DatabaseLocation) -> None:
    secret = add_key(postgres, "alice", {"requests_per_minute": 1})
    async with serving(postgres, keys(), required=True) as one:
        assert await one(secret) == "alice"

        with pytest.raises(RateLimitError, match="limited to 1 requests a minute"):
            await one(secret)


# -- a database that is away


async def test_keys_stay_valid_while_the_database_is_away(
    postgres: DatabaseLocation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, known = add_key(postgres, "alice", {}), keys()
    followed = DatabaseKeys(postgres, known.replace_stored)
    await followed.read()

    with postgres_server.away(postgres.url), monkeypatch.context() as impatient:
        impatient.setattr(connections, "_POOL_SECONDS", 0.1)
        for _ in range(3):
            await followed.read()
        assert known.find(f"Bearer {secret}").name == "alice"
        assert caplog.text.count("those read last stay valid") == 1

    remove_key(postgres, "alice")
    await followed.read()
    assert caplog.text.count("are read again") == 1
    with pytest.raises(UnauthorizedError):
        known.find(f"Bearer {secret}")
    assert digest(secret) not in caplog.text


async def test_a_server_that_starts_while_the_database_is_away_refuses_keys_it_cannot_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(DatabaseLocation(_AWAY, tmp_path), keys("own"), required=True) as running:
        assert await running("own") == "--api-key 1"
        with pytest.raises(KeysUnavailableError, match="cannot be read at the moment"):
            await running("another")
    # Not even if it was open before: there may be keys now.
    async with serving(DatabaseLocation(_AWAY, tmp_path), keys()) as running:
        with pytest.raises(KeysUnavailableError):
            await running("")

    assert "s3cret" not in caplog.text


async def test_whatever_goes_wrong_keys_are_read_again(
    postgres: DatabaseLocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret, known = add_key(postgres, "alice", {}), keys()
    followed = DatabaseKeys(postgres, known.replace_stored)

    with monkeypatch.context() as broken:
        broken.setattr(database, "tables_of", lambda rows: 1 / 0)
        await followed.read()
        assert not followed.is_read
    await followed.read()

    assert known.find(f"Bearer {secret}").name == "alice"
    assert "ZeroDivisionError" in caplog.text


# -- names and secrets that are not unambiguous


def test_a_server_does_not_start_with_ambiguous_keys(
    postgres: DatabaseLocation, tmp_path: Path
) -> None:
    load_keys(postgres, key_file(tmp_path, alice="a", bob="b", carol="c"))

    check_keys(keys("first", file=key_file(tmp_path, dave="d")), postgres)
    with pytest.raises(SettingsError, match=r"'bob' is in .*keys\.toml and in the database"):
        check_keys(keys(file=key_file(tmp_path, bob="another")), postgres)
    with pytest.raises(SettingsError, match="dave and alice have the same secret"):
        check_keys(keys(file=key_file(tmp_path, dave="a")), postgres)
    with pytest.raises(SettingsError, match="--api-key 1 and carol have the same secret"):
        check_keys(keys("c"), postgres)


async def test_a_key_that_becomes_ambiguous_later_is_logged_and_not_used(
    postgres: DatabaseLocation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = keys(file=key_file(tmp_path, alice="a"))
    followed = DatabaseKeys(postgres, known.replace_stored)
    await followed.read()

    alice, bob = (add_key(postgres, name, {}) for name in ("alice", "bob"))
    await followed.read()

    assert known.find("Bearer a").name == "alice"
    assert known.find(f"Bearer {bob}").name == "bob"
    with pytest.raises(UnauthorizedError):
        known.find(f"Bearer {alice}")
    assert "the key 'alice' is in" in caplog.text
    assert "the one in the database is not used" in caplog.text
    assert digest(alice) not in caplog.text


def test_an_invalid_key_in_the_database_is_refused_at_the_start(
    postgres: DatabaseLocation,
) -> None:
    add_key(postgres, "alice", {})
    with psycopg.connect(postgres.url) as admin:
        admin.execute("""UPDATE mayfly.api_keys SET entries = '{"colour": "red"}'""")

    with pytest.raises(SettingsError, match="key 'alice': unknown entry 'colour'"):
        check_keys(keys(), postgres)


async def test_an_invalid_key_stays_as_it_was_and_others_change(
    postgres: DatabaseLocation, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = (add_key(postgres, name, {"max_steps": 5}) for name in ("alice", "bob"))
    known = keys()
    followed = DatabaseKeys(postgres, known.replace_stored)
    await followed.read()

    with psycopg.connect(postgres.url) as admin:
        admin.execute(
            "UPDATE mayfly.api_keys SET entries = jsonb_build_object('max_steps', "
            "CASE name WHEN 'bob' THEN 3 ELSE -1 END)"
        )
    await followed.read()

    limits = [known.find(f"Bearer {secret}").limits for secret in (alice, bob)]
    assert limits == [Budget(5, 60.0), Budget(3, 60.0)]
    with caplog.at_level(logging.ERROR):
        assert "key 'alice': `max_steps` must be" in caplog.text


def test_a_folder_has_no_keys(tmp_path: Path) -> None:
    assert not keys_required(tmp_path)
    check_keys(keys(), tmp_path)


def test_a_database_that_cannot_be_reached_is_no_database_without_keys(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be reached") as refused:
        keys_required(DatabaseLocation(_AWAY, tmp_path))

    assert "s3cret" not in str(refused.value)
