"""Keys: who may ask, which corpora are there for them, what they may spend, and how often they may
ask.

A key is known by the SHA-256 digest of its secret; the secret itself is kept nowhere. Those of the
command line see everything. Those of the key file, TOML, are written like this, all but `sha256`
optional:

    [keys.alice]
    sha256 = "..."                    # of the secret, in hexadecimal; `mayfly key new alice` makes
    both corpora = ["nx", "vs_..."]        # what the key sees beside its own, by name or id; ["*"]
    is everything budget = "steps=20, seconds=5"    # what no Compute-Budget header means max_steps
    = 50                    # the most that a request may ask for; the server's own limits hold
    besides max_seconds = 10 requests_per_minute = 60          # as many at once, too

What a key makes belongs to its name: another secret under the same name goes on with it. The file
is read again when it has changed; an entry that is wrong then leaves its key as it was. It knows
nothing of HTTP but the text of an Authorization header, and counts for this process alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selection.access import OPERATOR, Principal
from serving.budget import Budget, parse_budget
from serving.errors import BudgetError, RateLimitError, SettingsError, UnauthorizedError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what TOML takes without quotes
_SECRET = re.compile(r"[!-~]+")  # what a header can hold
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_ENTRIES = {"sha256", "corpora", "budget", "max_steps", "max_seconds", "requests_per_minute"}
_LOOK_SECONDS = 1.0  # the key file is looked at this often
_MOST_REQUESTS = 1_000_000  # a minute


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: its own; in the key file that of its table.
        sha256: digest of its secret, 32 bytes.
        corpora: names or ids of corpora that it sees beside its own; None is all.
        limits: what its requests may not exceed, within the server's limits; None where those alone
            hold.
        default: what no Compute-Budget header means, within its limits; None is the server's.
        requests_per_minute: how many it may make; None is any number.
    """

    name: str
    sha256: bytes
    corpora: frozenset[str] | None = None
    limits: Budget | None = None
    default: Budget | None = None
    requests_per_minute: int | None = None

    @property
    def reader(self) -> Principal:
        """On whose behalf its requests are. What a key makes that sees everything is the
        operator's: nobody's.
        """
        return OPERATOR if self.corpora is None else Principal(self.name, self.corpora)


class Keys:
    """The keys of one server; belongs to one event loop.

    Args:
        digests: of the command line's secrets, as `digest` gives them.
        file: the key file.
        auto: the server's default budget.
        limits: the server's limits.

    Raises:
        SettingsError: a key file that is none, or two keys with one secret; the message names file
            and key.
    """

    def __init__(
        self, digests: Sequence[str], file: Path | None, auto: Budget, limits: Budget
    ) -> None:
        self._file, self._auto, self._limits = file, auto, limits
        self._given = [
            Key(f"--api-key {i}", bytes.fromhex(each)) for i, each in enumerate(digests, 1)
        ]
        self._version: tuple[int, ...] = ()
        self._looked = time.monotonic()
        self._levels: dict[str, tuple[float, float]] = {}
        self._keys = _distinct(self._given, "--api-key")
        self._read()

    def find(self, authorization: str | None) -> Key:
        """The key that an Authorization header names.

        Raises:
            UnauthorizedError: none, or one that is not known.
        """
        self._follow()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthorizedError(
                "an API key is missing: send the header `Authorization: Bearer KEY`"
            )
        sha256 = hashlib.sha256(secret.strip().encode("utf-8", "surrogatepass")).digest()
        # With every key: one duration.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, sha256)]
        if not found:
            raise UnauthorizedError("the API key is not known here")
        return found[0]

    def admit(self, key: Key) -> None:
        """Count a request of that key.

        Raises:
            RateLimitError: it has made too many; says when it may make one more.
        """
        most = key.requests_per_minute
        if most is None:
            return
        now = time.monotonic()
        left, then = self._levels.get(key.name, (most, now))
        left = min(most, left + (now - then) * most / 60)
        if left < 1:
            raise RateLimitError(
                f"this API key may make {most} requests a minute", (1 - left) * 60 / most
            )
        self._levels[key.name] = (left - 1, now)

    def _follow(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            self._read()
        except ValueError as problem:
            log.error("the keys stay as they were: %s", problem)

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            status = self._file.stat()
            version = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
            if version == self._version:
                return
            content = self._file.read_bytes()
        except OSError as problem:
            raise SettingsError(
                f"cannot read the key file {self._file}: {problem.strerror}"
            ) from problem
        is_first = not self._version
        self._version = version  # one that is broken is not read again
        read, wrong = _keys_of(content, self._file, self._auto, self._limits)
        if wrong and is_first:
            raise SettingsError("; ".join(wrong.values()))
        # What was changed of the others holds: a key may have been taken away.
        for said in wrong.values():
            log.error("%s; this key stays as it was", said)
        kept = [key for key in self._keys if key.name in wrong]
        self._keys = _distinct([*self._given, *read, *kept], str(self._file))


def digest(secret: str) -> str:
    """The SHA-256 of a secret, in hexadecimal.

    Raises:
        SettingsError: a secret that no header can hold.
    """
    if not _SECRET.fullmatch(secret):
        raise SettingsError(
            "an API key is of ASCII letters, digits and signs, without spaces, one at least"
        )
    return hashlib.sha256(secret.encode()).hexdigest()


def _distinct(keys: list[Key], where: str) -> list[Key]:
    names: dict[bytes, str] = {}
    for key in keys:
        if key.sha256 in names:
            raise SettingsError(
                f"{where}: {names[key.sha256]} and {key.name} are the same key; each has its own secret"
            )
        names[key.sha256] = key.name
    return keys


def _keys_of(
    content: bytes, file: Path, auto: Budget, limits: Budget
) -> tuple[list[Key], dict[str, str]]:
    """The keys of a file, and by their names what is wrong with the others."""
    try:
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as problem:  # not TOML, or not UTF-8
        raise SettingsError(f"{file} is not TOML: {problem}") from problem
    keys = tables.get("keys")
    if set(tables) != {"keys"} or not isinstance(keys, dict):
        raise SettingsError(f"{file} holds tables [keys.NAME], one for each key, and nothing else")
    found, wrong = [], {}
    for name, table in keys.items():
        try:
            found.append(_key_of(name, table, auto, limits))
        except (SettingsError, BudgetError) as problem:
            wrong[name] = f"{file}, key {name!r}: {problem}"
    return found, wrong


def _key_of(name: str, table: Any, auto: Budget, limits: Budget) -> Key:
    """A key of its table. No message repeats the digest: somebody may have put the secret in its
    place.
    """
    if not NAME.fullmatch(name):
        raise SettingsError("a name has letters, digits, '_' and '-', 64 at most")
    if not isinstance(table, dict):
        raise SettingsError(f"write a table [keys.{name}]")
    unknown = sorted(set(table) - _ENTRIES)
    if unknown:
        raise SettingsError(
            f"unknown entry {unknown[0]!r}: there are {', '.join(sorted(_ENTRIES))}"
        )
    sha256, corpora, rate = (
        table.get("sha256"),
        table.get("corpora", []),
        table.get("requests_per_minute"),
    )
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        raise SettingsError(
            f"`sha256` is the digest of the secret, 64 hexadecimal digits; see `mayfly key new {name}`"
        )
    if not isinstance(corpora, list) or not all(isinstance(each, str) for each in corpora):
        raise SettingsError('`corpora` is a list of names and ids of corpora, or ["*"]')
    if rate is not None and (type(rate) is not int or not 1 <= rate <= _MOST_REQUESTS):
        raise SettingsError(f"`requests_per_minute` is a whole number from 1 to {_MOST_REQUESTS}")
    default, within = _budgets(table, auto, limits)
    seen = None if "*" in corpora else frozenset(corpora)
    return Key(name, bytes.fromhex(sha256), seen, within, default, rate)


def _budgets(
    table: Mapping[str, Any], auto: Budget, limits: Budget
) -> tuple[Budget | None, Budget | None]:
    steps, seconds, budget = table.get("max_steps"), table.get("max_seconds"), table.get("budget")
    if steps is not None and (type(steps) is not int or steps < 0):
        raise SettingsError("`max_steps` is a whole number, 0 or more")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds < math.inf):
        raise SettingsError("`max_seconds` is a number above 0")
    if budget is not None and not isinstance(budget, str):
        raise SettingsError(
            '`budget` is a text as in the Compute-Budget header, such as "steps=20, seconds=5"'
        )
    if steps is None and seconds is None and budget is None:
        return None, None
    asked = Budget(limits.steps if steps is None else steps, seconds)
    within, _ = asked.cut_to(limits)
    default = parse_budget(budget, default=auto, auto=auto, limits=within, place="`budget`")
    return default.cut_to(within)[0], within
