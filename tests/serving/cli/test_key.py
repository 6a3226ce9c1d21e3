"""`mayfly key`: a secret is printed once, and servers of the key file or the database accept it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner, Result

from selection.access import Principal
from selection.location import DatabaseLocation
from serving.api_keys.changes import stored_keys
from serving.api_keys.database import key_table, tables_of
from serving.api_keys.key import digest
from serving.api_keys.keys import Keys
from serving.budget import Budget
from serving.cli.key import key_app
from tests.serving.api_keys.key_files import key_file
from tests.serving.commands import run

_app = typer.Typer()
_app.add_typer(key_app, name="key")
_LIMITS = Budget(50, 60.0)


def key(*arguments: str, database: DatabaseLocation | None = None) -> Result:
    """Run `mayfly key`."""
    more = [] if database is None else ["--corpora", database.url]
    return CliRunner().invoke(_app, ["key", *arguments, *more])


def secret_in(result: Result) -> str:
    """The secret that a command has printed."""
    (secret,) = re.findall(r"shown only once: (mf-[A-Za-z0-9_-]{32})$", result.stderr, re.MULTILINE)
    return str(secret)


def keys_of(database: DatabaseLocation) -> Keys:
    """The keys of a server of a database."""
    changed = key_table(database).changed()
    assert changed is not None
    keys = Keys([], None, _LIMITS, _LIMITS)
    keys.replace_stored(tables_of(changed[1]))
    return keys


# -- for a key file


def test_the_entry_of_a_new_key_authenticates_its_secret(tmp_path: Path) -> None:
    made = [key("new", name) for name in ("alice", "bob-2")]

    file = tmp_path / "keys.toml"
    file.write_text("".join(each.stdout for each in made))
    keys = Keys([], file, Budget(50), Budget(50))
    secrets = [secret_in(each) for each in made]

    assert [each.exit_code for each in made] == [0, 0]
    for name, secret in zip(("alice", "bob-2"), secrets, strict=True):
        assert keys.find(f"Bearer {secret}").principal == Principal(name, frozenset())
        assert secret not in file.read_text()
    assert secrets[0] != secrets[1]


def test_the_entry_has_what_restricts_the_key(tmp_path: Path) -> None:
    made = key(
        "new", "alice", "--corpus", "nx", "--corpus", 'ü"', "--budget", "steps=2", "--max-steps",
        "5", "--max-seconds", "1.5", "--requests-per-minute", "60",
    )  # fmt: skip

    file = tmp_path / "keys.toml"
    file.write_text(made.stdout)
    found = Keys([], file, _LIMITS, _LIMITS).find(f"Bearer {secret_in(made)}")

    assert found.corpora == frozenset({"nx", 'ü"'})
    assert (found.limits, found.default) == (Budget(5, 1.5), Budget(2, 1.5))
    assert found.requests_per_minute == 60


@pytest.mark.parametrize("name", ["two words", "a.b", "größe", "", "x" * 65, "a]\n[keys.b"])
def test_a_name_that_toml_would_have_to_quote_is_an_error(name: str) -> None:
    result = key("new", name)

    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("remove", "alice"), ("load", "keys.toml"), ("new", "alice", "--replace")],
)
def test_what_needs_a_database_says_so(arguments: tuple[str, ...]) -> None:
    result = key(*arguments)

    assert result.exit_code == 2
    assert ("MAYFLY_CORPORA" in result.stderr) != ("edit the key file" in result.stderr)
    assert result.stdout == ""


# -- in a database


def test_a_key_of_a_database_is_made_listed_replaced_and_removed(
    postgres: DatabaseLocation,
) -> None:
    made = key("new", "alice", "--corpus", "nx", "--max-seconds", "5", database=postgres)
    key("new", "boss", "--corpus", "*", "--requests-per-minute", "1000000", database=postgres)
    secret = secret_in(made)
    assert (made.exit_code, made.stdout) == (0, "")
    assert f"key alice: stored in {postgres}" in made.stderr
    assert keys_of(postgres).find(f"Bearer {secret}").corpora == frozenset({"nx"})

    listed = key("list", database=postgres)
    assert listed.stdout.splitlines() == [
        "key    corpora  budget  steps  seconds  requests/min",
        "alice  nx       -       -      5        -",
        "boss   all      -       -      -        1000000",
    ]
    assert digest(secret) not in listed.output

    again = key("new", "alice", database=postgres)
    assert isinstance(again.exception, ValueError)
    assert "there is a key 'alice' in" in str(again.exception)
    replaced = key("new", "alice", "--replace", database=postgres)
    found = keys_of(postgres).find(f"Bearer {secret_in(replaced)}")
    assert (found.corpora, found.limits) == (frozenset({"nx"}), Budget(50, 5.0))

    removed = [key("remove", name, database=postgres) for name in ("alice", "boss")]
    assert [each.stdout for each in removed] == ["removed key alice\n", "removed key boss\n"]
    assert ["no key is left" in each.stderr for each in removed] == [False, True]
    assert "no keys in" in key("list", database=postgres).stdout


def test_a_key_file_is_put_into_a_database(postgres: DatabaseLocation, tmp_path: Path) -> None:
    file = key_file(tmp_path, alice="a", bob="b")

    first = key("load", str(file), database=postgres)
    again = key("load", str(key_file(tmp_path, alice="a", bob="c")), database=postgres)

    assert first.stdout == f"keys in {postgres}: added 2 (alice, bob), replaced 0, unchanged 0\n"
    assert again.stdout == f"keys in {postgres}: added 0, replaced 1 (bob), unchanged 1\n"
    keys = keys_of(postgres)
    assert [keys.find(f"Bearer {secret}").name for secret in "ac"] == ["alice", "bob"]


def test_an_invalid_key_is_listed_as_such(postgres: DatabaseLocation) -> None:
    for name in ("alice", "boss"):
        key("new", name, "--corpus", "*", database=postgres)
    with psycopg.connect(postgres.url) as admin:
        admin.execute(
            """UPDATE mayfly.api_keys SET entries = '{"corpora": 5}' WHERE name = 'alice'"""
        )

    listed = key("list", database=postgres)

    assert listed.exit_code == 1
    assert listed.stdout.splitlines()[1].split() == ["alice", *["invalid"] * 5]
    assert listed.stdout.splitlines()[2].split() == ["boss", "all", "-", "-", "-", "-"]
    assert "key 'alice': `corpora` must be a list" in listed.stderr


def test_errors_are_one_line_and_end_with_status_1(
    postgres: DatabaseLocation, tmp_path: Path
) -> None:
    environment: dict[str, Any] = {"MAYFLY_CORPORA": postgres.url}
    file = tmp_path / "keys.toml"
    file.write_text("[keys.alice]\nsha256 = 'mf-my-secret'\n")

    ended = {
        command: run(tmp_path, "key", *command.split(), **environment)
        for command in ("remove alice", f"load {file}", "new alice --max-steps -1")
    }
    away = run(tmp_path, "key", "list", "--corpora", "postgresql://me:s3cret@127.0.0.1:1/db")

    assert {each.status for each in (*ended.values(), away)} == {1}
    remove, load, new = (each.err for each in ended.values())
    assert remove.startswith("mayfly: there is no key 'alice' in postgresql://")
    assert "key 'alice': `sha256` must be the digest" in load
    assert "mf-my-secret" not in load
    assert "`max_steps` must be a whole number" in new
    assert "shown only once" not in new
    assert "the corpora's database cannot be reached" in away.err
    assert "s3cret" not in away.err
    assert not any(each.heavy for each in (*ended.values(), away))
    assert stored_keys(postgres) == ({}, {})
