"""API keys: who is let in, what they may spend and how often, and what is said of a key file that
is none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.access import OPERATOR, Principal
from serving.api_keys import Key, Keys, digest
from serving.budget import Budget
from serving.errors import RateLimitError, SettingsError, UnauthorizedError

_AUTO, _LIMITS = Budget(50, alpha=0.05), Budget(50, 60.0)


def table(name: str, secret: str, *lines: str) -> str:
    """What the key file says of a key."""
    return "\n".join([f"[keys.{name}]", f'sha256 = "{digest(secret)}"', *lines, ""])


def keys(*secrets: str, file: Path | None = None) -> Keys:
    return Keys([digest(secret) for secret in secrets], file, _AUTO, _LIMITS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A key file with a key."""
    path = tmp_path / "keys.toml"
    path.write_text(table("alice", "open-sesame", 'corpora = ["nx", "vs_1"]'))
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at with every request."""
    monkeypatch.setattr("serving.api_keys._LOOK_SECONDS", 0.0)


# -- who is let in


def test_keys_of_the_command_line_and_of_the_file_are_let_in(file: Path) -> None:
    known = keys("first", "second", file=file)

    assert known.find("Bearer first").reader == known.find("bearer  second ").reader == OPERATOR
    alice = known.find("Bearer open-sesame")
    assert (alice.name, alice.limits, alice.default, alice.requests_per_minute) == (
        "alice",
        None,
        None,
        None,
    )
    assert alice.reader == Principal("alice", frozenset({"nx", "vs_1"}))
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
def test_others_are_not_and_are_not_told_what_they_sent(header: str | None) -> None:
    with pytest.raises(UnauthorizedError) as refused:
        keys("first").find(header)

    assert "first" not in str(refused.value)
    assert len(str(refused.value)) < 100


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), st.text(min_size=1))
def test_a_secret_is_let_in_whatever_its_signs_and_no_other(secret: str, other: str) -> None:
    known = keys(secret)

    assert known.find(f"Bearer {secret}").sha256 == hashlib.sha256(secret.encode()).digest()
    if other.strip() != secret:
        with pytest.raises(UnauthorizedError):
            known.find(f"Bearer {other}")


def test_no_key_that_is_kept_holds_its_secret(file: Path) -> None:
    known = keys("first", file=file)

    assert "first" not in repr(vars(known))
    assert "open-sesame" not in repr(vars(known))


@pytest.mark.parametrize("secret", ["", " ", "two words", "line\nbreak", "größe"])
def test_a_secret_that_no_header_can_hold_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="an API key is of ASCII letters"):
        digest(secret)


def test_everything_is_a_star_and_nothing_is_the_default(file: Path) -> None:
    file.write_text(table("boss", "a", 'corpora = ["*"]') + table("guest", "b"))
    known = keys(file=file)

    assert known.find("Bearer a").reader == OPERATOR
    assert known.find("Bearer b").reader == Principal("guest", frozenset())


# -- what they may spend, and how often


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
def test_budgets_of_a_key_are_within_its_limits_and_those_within_the_servers(
    file: Path, lines: tuple[str, ...], default: Budget | None, limits: Budget | None
) -> None:
    file.write_text(table("alice", "a", *lines))

    key = keys(file=file).find("Bearer a")

    assert (key.default, key.limits) == (default, limits)


def test_a_key_makes_its_requests_a_minute_and_is_told_when_the_next_may_come() -> None:
    known, key = keys("unused"), Key("alice", b"", requests_per_minute=120)
    began, admitted = time.monotonic(), 0

    with pytest.raises(RateLimitError, match="120 requests a minute") as refused:  # noqa: PT012, it counts up to there
        while True:
            known.admit(key)
            admitted += 1
    took = time.monotonic() - began

    assert 120 <= admitted <= 120 + took * 2 + 1
    assert 0 < refused.value.retry_after <= 0.5
    known.admit(Key("bob", b"", requests_per_minute=1))  # another's are counted apart
    known.admit(Key("carol", b""))
    time.sleep(refused.value.retry_after + 0.01)
    known.admit(key)


def test_what_is_refused_does_not_count() -> None:
    known, key = keys("unused"), Key("alice", b"", requests_per_minute=60)
    for _ in range(60):
        known.admit(key)

    for _ in range(1000):
        with pytest.raises(RateLimitError) as refused:
            known.admit(key)

    assert refused.value.retry_after <= 1.0


# -- the file while the server runs


@pytest.mark.usefixtures("at_once")
def test_a_changed_file_is_followed(file: Path) -> None:
    known = keys("first", file=file)

    file.write_text(table("bob", "b"))

    assert known.find("Bearer b").name == "bob"
    assert known.find("Bearer first")
    with pytest.raises(UnauthorizedError):
        known.find("Bearer open-sesame")
    file.write_text("[keys]")  # nobody
    with pytest.raises(UnauthorizedError):
        known.find("Bearer b")


def test_the_file_is_looked_at_once_a_second(file: Path) -> None:
    known = keys(file=file)

    file.write_text(table("bob", "b"))
    with pytest.raises(UnauthorizedError):
        known.find("Bearer b")
    time.sleep(1.05)

    assert known.find("Bearer b").name == "bob"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("content", [b"", b"[keys.", b"\xff", table("first", "first").encode()])
def test_a_broken_file_leaves_the_keys_as_they_were_and_is_in_the_log_once(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    known = keys("first", file=file)

    with caplog.at_level(logging.ERROR, "serving.api_keys"):
        file.write_bytes(content)
        assert known.find("Bearer open-sesame").name == "alice"
        assert known.find("Bearer first")

    (record,) = caplog.records
    assert "the keys stay as they were" in record.getMessage()
    assert str(file) in record.getMessage()
    file.write_text(table("bob", "b"))
    assert known.find("Bearer b").name == "bob"


@pytest.mark.usefixtures("at_once")
def test_a_file_that_is_gone_leaves_the_keys_as_they_were_until_it_is_back(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = keys(file=file)

    os.rename(file, file.with_suffix(".old"))
    assert known.find("Bearer open-sesame").name == "alice"
    assert "cannot read the key file" in caplog.text
    file.write_text(table("bob", "b"))

    assert known.find("Bearer b").name == "bob"


# -- files that are none


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("keys", "is not TOML"),
        ("\udcff", "is not TOML"),
        ("", r"tables \[keys.NAME\]"),
        ("[key.alice]", r"tables \[keys.NAME\]"),
        ("keys = 3", r"tables \[keys.NAME\]"),
        ("[keys.alice]\n[server]", r"tables \[keys.NAME\]"),
        ("[keys]\nalice = 3", r"key 'alice': write a table"),
        ("[keys.alice]", "key 'alice': `sha256`"),
        ("[keys.alice]\nsha256 = 'mf-my-secret'", "mayfly key new alice"),
        ("[keys.'al ice']", "key 'al ice': a name has"),
        ("[keys.'']", "key '': a name has"),
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
        (table("alice", "a") + table("bob", "a"), "alice and bob are the same key"),
        (table("alice", "a") + table("alice", "b"), "is not TOML"),
        (table("alice", "first"), "--api-key 1 and alice are the same key"),
    ],
)
def test_a_key_file_that_is_none_is_refused_by_name(file: Path, content: str, said: str) -> None:
    file.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(ValueError, match=said) as refused:
        keys("first", file=file)

    assert str(file) in str(refused.value)
    assert "secret'" not in str(refused.value)


def test_a_key_file_that_is_not_there_and_a_secret_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the key file .*nowhere\.toml: No such file"):
        keys(file=tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match="--api-key 1 and --api-key 2 are the same key"):
        keys("first", "first")


@pytest.mark.usefixtures("at_once")
def test_a_wrong_entry_does_not_keep_the_others_from_changing(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(table("alice", "a") + table("bob", "b") + table("carol", "c"))
    known = keys(file=file)

    file.write_text(table("alice", "a", "colour = 'red'") + table("carol", "new"))

    assert known.find("Bearer a").name == "alice"  # as it was
    assert known.find("Bearer new").name == "carol"
    for gone in ("b", "c"):
        with pytest.raises(UnauthorizedError):
            known.find(f"Bearer {gone}")
    assert "key 'alice': unknown entry 'colour'" in caplog.text
    assert "this key stays as it was" in caplog.text


def test_every_wrong_entry_is_told_at_the_start(file: Path) -> None:
    file.write_text(table("alice", "a", "colour = 'red'") + table("bob", "b") + "[keys.carol]\n")

    with pytest.raises(
        SettingsError, match=r"key 'alice': unknown entry .*; .*key 'carol': `sha256`"
    ):
        keys(file=file)


def test_a_byte_order_mark_is_no_part_of_the_file(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + table("alice", "a").encode())

    assert keys(file=file).find("Bearer a").name == "alice"
