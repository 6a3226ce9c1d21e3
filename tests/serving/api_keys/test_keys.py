"""API keys: authentication, budgets, and the errors of invalid key files."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.access import OPERATOR, Principal
from serving.api_keys.key import digest
from serving.api_keys.keys import Keys
from serving.budget import Budget
from serving.errors import SettingsError, UnauthorizedError

_AUTO, _LIMITS = Budget(50, alpha=0.05), Budget(50, 60.0)


def table(name: str, secret: str, *lines: str) -> str:
    """The entry of a key in the key file."""
    return "\n".join([f"[keys.{name}]", f'sha256 = "{digest(secret)}"', *lines, ""])


class Clock:
    """A clock that advances by `step` with every reading."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


# Seconds after which the key file is read again.
_CHECK = 1.0


def keys(*secrets: str, file: Path | None = None, clock: Clock | None = None) -> Keys:
    """Keys that follow changes of their file at once, or as fast as the clock goes."""
    digests = [digest(secret) for secret in secrets]
    return Keys(digests, file, _AUTO, _LIMITS, clock or Clock(step=_CHECK))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A key file with a key."""
    path = tmp_path / "keys.toml"
    path.write_text(table("alice", "open-sesame", 'corpora = ["nx", "vs_1"]'))
    return path


# -- authentication


def test_keys_of_the_command_line_and_of_the_file_are_accepted(file: Path) -> None:
    known = keys("first", "second", file=file)

    assert (
        known.find("Bearer first").principal == known.find("bearer  second ").principal == OPERATOR
    )
    alice = known.find("Bearer open-sesame")
    assert (alice.name, alice.limits, alice.default, alice.requests_per_minute) == (
        "alice",
        None,
        None,
        None,
    )
    assert alice.principal == Principal("alice", frozenset({"nx", "vs_1"}))
    assert (
        len({known.find(f"Bearer {secret}").name for secret in ("first", "second", "open-sesame")})
        == 3
    )


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first, Bearer first",
        "Bearer FIRST",
        "Basic first",
        "first",
        "Bearer \ud800 ü",
        "Bearer " + "x" * 100_000,
        "Bearer " + hashlib.sha256(b"first").hexdigest(),
    ],
)
def test_other_keys_are_refused_without_repeating_them(header: str | None) -> None:
    with pytest.raises(UnauthorizedError) as refused:
        keys("first").find(header)

    assert "first" not in str(refused.value)
    assert len(str(refused.value)) < 100


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), st.text(min_size=1))
def test_only_the_exact_secret_is_accepted(secret: str, other: str) -> None:
    known = keys(secret)

    assert known.find(f"Bearer {secret}").sha256 == hashlib.sha256(secret.encode()).digest()
    if other.strip() != secret:
        with pytest.raises(UnauthorizedError):
            known.find(f"Bearer {other}")


def test_secrets_are_not_stored(file: Path) -> None:
    known = keys("first", file=file)

    assert "first" not in repr(vars(known))
    assert "open-sesame" not in repr(vars(known))


@pytest.mark.parametrize("secret", ["", " ", "two words", "line\nbreak", "größe"])
def test_a_secret_that_no_header_may_contain_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="an API key must consist of ASCII letters"):
        digest(secret)


def test_a_star_is_every_corpus_and_the_default_is_none(file: Path) -> None:
    file.write_text(table("boss", "a", 'corpora = ["*"]') + table("visitor", "b"))
    known = keys(file=file)

    assert known.find("Bearer a").principal == OPERATOR
    assert known.find("Bearer b").principal == Principal("visitor", frozenset())


# -- budgets and rate limits


@pytest.mark.parametrize(
    ("lines", "default", "limits"),
    [
        ((), None, None),
        (('budget = "steps=20, seconds=5"',), Budget(20, 5.0), _LIMITS),
        (('budget = "none"',), Budget(0, 60.0), _LIMITS),
        (("max_steps = 10",), Budget(10, 60.0, 0.05), Budget(10, 60.0)),
        (("max_steps = 99", "max_seconds = 1.5"), Budget(50, 1.5, 0.05), Budget(50, 1.5)),
        (
            ('budget = "steps=20"', "max_steps = 10", "max_seconds = 2"),
            Budget(10, 2.0),
            Budget(10, 2.0),
        ),
        (('budget = "alpha=0.1"', "max_steps = 0"), Budget(0, 60.0, 0.1), Budget(0, 60.0)),
    ],
)
def test_the_budget_of_a_key_is_within_its_limits_and_these_within_the_servers(
    file: Path, lines: tuple[str, ...], default: Budget | None, limits: Budget | None
) -> None:
    file.write_text(table("alice", "a", *lines))

    key = keys(file=file).find("Bearer a")

    assert (key.default, key.limits) == (default, limits)


# -- changes of the file


def test_a_changed_file_is_read_again(file: Path) -> None:
    known = keys("first", file=file)

    file.write_text(table("bob", "b"))

    assert known.find("Bearer b").name == "bob"
    assert known.find("Bearer first")
    with pytest.raises(UnauthorizedError):
        known.find("Bearer open-sesame")
    file.write_text("[keys]")
    with pytest.raises(UnauthorizedError):
        known.find("Bearer b")


def test_the_file_is_checked_once_a_second(file: Path) -> None:
    clock = Clock()
    known = keys(file=file, clock=clock)

    file.write_text(table("bob", "b"))
    clock.now += 0.99 * _CHECK
    with pytest.raises(UnauthorizedError):
        known.find("Bearer b")
    clock.now += 0.01 * _CHECK

    assert known.find("Bearer b").name == "bob"


@pytest.mark.parametrize("content", [b"", b"[keys.", b"\xff", table("first", "first").encode()])
def test_an_invalid_file_changes_no_keys_and_is_logged_once(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    known = keys("first", file=file)

    with caplog.at_level(logging.ERROR, "serving.api_keys"):
        file.write_bytes(content)
        assert known.find("Bearer open-sesame").name == "alice"
        assert known.find("Bearer first")

    (record,) = caplog.records
    assert "the keys were not changed" in record.getMessage()
    assert str(file) in record.getMessage()
    file.write_text(table("bob", "b"))
    assert known.find("Bearer b").name == "bob"


def test_a_missing_file_changes_no_keys_until_it_is_back(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = keys(file=file)

    os.rename(file, file.with_suffix(".old"))
    assert known.find("Bearer open-sesame").name == "alice"
    assert "cannot read the key file" in caplog.text
    file.write_text(table("bob", "b"))

    assert known.find("Bearer b").name == "bob"


# -- invalid files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("keys", "is not TOML"),
        ("\udcff", "is not TOML"),
        ("", r"tables \[keys.NAME\]"),
        ("[key.alice]", r"tables \[keys.NAME\]"),
        ("keys = 3", r"tables \[keys.NAME\]"),
        ("[keys.alice]\n[server]", r"tables \[keys.NAME\]"),
        ("[keys]\nalice = 3", r"key 'alice': it must be a table"),
        ("[keys.alice]", "key 'alice': `sha256`"),
        ("[keys.alice]\nsha256 = 'mf-my-secret'", "mayfly key new alice"),
        ("[keys.'al ice']", "key 'al ice': a name must"),
        ("[keys.'']", "key '': a name must"),
        (table("alice", "a", "colour = 'red'"), "key 'alice': unknown entry 'colour'"),
        (table("alice", "a", "corpora = '*'"), "key 'alice': `corpora`"),
        (table("alice", "a", "corpora = [1]"), "key 'alice': `corpora`"),
        (table("alice", "a", "budget = 20"), "key 'alice': `budget`"),
        (table("alice", "a", "budget = 'many'"), "key 'alice': .*`budget`"),
        (table("alice", "a", "max_steps = -1"), "`max_steps`"),
        (table("alice", "a", "max_steps = true"), "`max_steps`"),
        (table("alice", "a", "max_seconds = 0"), "`max_seconds`"),
        (table("alice", "a", "max_seconds = nan"), "`max_seconds`"),
        (table("alice", "a", "max_seconds = inf"), "`max_seconds`"),
        (table("alice", "a", "requests_per_minute = 0"), "`requests_per_minute`"),
        (table("alice", "a", "requests_per_minute = 1.5"), "`requests_per_minute`"),
        (table("alice", "a", f"requests_per_minute = {10**400}"), "`requests_per_minute`"),
        (table("alice", "a") + table("bob", "a"), "alice and bob have the same secret"),
        (table("alice", "a") + table("alice", "b"), "is not TOML"),
        (table("alice", "first"), "--api-key 1 and alice have the same secret"),
    ],
)
def test_an_invalid_key_file_is_refused_by_name(file: Path, content: str, message: str) -> None:
    file.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(ValueError, match=message) as refused:
        keys("first", file=file)

    assert str(file) in str(refused.value)
    assert "secret'" not in str(refused.value)


def test_a_missing_key_file_and_a_repeated_secret_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the key file .*nowhere\.toml: No such file"):
        keys(file=tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match="--api-key 1 and --api-key 2 have the same secret"):
        keys("first", "first")


def test_an_invalid_entry_does_not_keep_others_from_changing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(table("alice", "a") + table("bob", "b") + table("carol", "c"))
    known = keys(file=file)

    file.write_text(table("alice", "a", "colour = 'red'") + table("carol", "new"))

    assert known.find("Bearer a").name == "alice"
    assert known.find("Bearer new").name == "carol"
    for gone in ("b", "c"):
        with pytest.raises(UnauthorizedError):
            known.find(f"Bearer {gone}")
    assert "key 'alice': unknown entry 'colour'" in caplog.text
    assert "this key was not changed" in caplog.text


def test_every_invalid_entry_is_reported_at_the_start(file: Path) -> None:
    file.write_text(table("alice", "a", "colour = 'red'") + table("bob", "b") + "[keys.carol]\n")

    with pytest.raises(
        SettingsError, match=r"key 'alice': unknown entry .*; .*key 'carol': `sha256`"
    ):
        keys(file=file)


def test_a_byte_order_mark_is_ignored(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + table("alice", "a").encode())

    assert keys(file=file).find("Bearer a").name == "alice"
