"""API keys: authentication, and per key the visible corpora, the budgets and the rate limit.

A key is recognised by the SHA-256 digest of its secret, which is stored nowhere. Keys of the
command line see everything. Keys of the key file are written in TOML, with all entries but `sha256`
optional:

    [keys.alice]
    # Digest of the secret in hexadecimal. `mayfly key new alice` makes both.
    sha256 = "..."
    # Corpora that the key sees beside its own, by name or id; ["*"] is everything.
    corpora = ["nx", "vs_..."]
    # Budget of a request without a Compute-Budget header.
    budget = "steps=20, seconds=5"
    # Limits of a request's budget, within the limits of the server.
    max_steps = 50
    max_seconds = 10
    # Rate limit, also the number of requests that may come at once.
    requests_per_minute = 60

What a key makes belongs to its name, whatever its secret. The file is read again when it has
changed; an invalid entry then leaves its key unchanged. Of HTTP, this module knows the
Authorization header; it does not count requests (`serving.request_rates`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selection.access import OPERATOR, Principal
from serving.budget import Budget, parse_budget
from serving.errors import BudgetError, SettingsError, UnauthorizedError

log = logging.getLogger(__name__)

# Keys that TOML takes without quotes.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Characters that a header may contain.
_SECRET = re.compile(r"[!-~]+")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_ENTRIES = {"sha256", "corpora", "budget", "max_steps", "max_seconds", "requests_per_minute"}
# Seconds between checks of the key file.
_CHECK_SECONDS = 1.0
_MAX_REQUESTS_PER_MINUTE = 1_000_000


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: name of the key, in the key file that of its table.
        sha256: digest of its secret, 32 bytes.
        corpora: names or ids of corpora that it sees beside its own; None for all.
        limits: limits of its requests' budgets, within the server's; None for the server's.
        default: budget of a request without a Compute-Budget header, within its limits; None for
            the server's.
        requests_per_minute: rate limit; None for none.
    """

    name: str
    sha256: bytes
    corpora: frozenset[str] | None = None
    limits: Budget | None = None
    default: Budget | None = None
    requests_per_minute: int | None = None

    @property
    def principal(self) -> Principal:
        """The principal of its requests. A key that sees everything is the operator's, and what it
        makes has no owner.
        """
        return OPERATOR if self.corpora is None else Principal(self.name, self.corpora)


class Keys:
    """The keys of one server. It belongs to one event loop.

    Args:
        digests: digests of the command line's secrets, from `digest`.
        file: key file.
        auto: default budget of the server.
        limits: limits of the server.
        clock: monotonic clock, seconds.

    Raises:
        SettingsError: the key file is invalid, or two keys have one secret; the message names the
            file and the key.
    """

    def __init__(
        self,
        digests: Sequence[str],
        file: Path | None,
        auto: Budget,
        limits: Budget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._auto, self._limits, self._clock = file, auto, limits, clock
        self._command_line_keys = [
            Key(f"--api-key {i}", bytes.fromhex(digest)) for i, digest in enumerate(digests, 1)
        ]
        self._file_version: tuple[int, ...] = ()
        self._checked_at = clock()
        self._keys = _distinct(self._command_line_keys, "--api-key")
        self._read()

    def find(self, authorization: str | None) -> Key:
        """The key of an Authorization header.

        Raises:
            UnauthorizedError: the header is missing, or the key is unknown.
        """
        self._refresh()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthorizedError("missing API key: send the header `Authorization: Bearer KEY`")
        sha256 = hashlib.sha256(secret.strip().encode("utf-8", "surrogatepass")).digest()
        # Compared with every key, so that the duration reveals nothing.
        matches = [key for key in self._keys if hmac.compare_digest(key.sha256, sha256)]
        if not matches:
            raise UnauthorizedError("unknown API key")
        return matches[0]

    def _refresh(self) -> None:
        if self._clock() - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = self._clock()
        try:
            self._read()
        except ValueError as problem:
            log.error("the keys were not changed: %s", problem)

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            status = self._file.stat()
            version = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
            if version == self._file_version:
                return
            content = self._file.read_bytes()
        except OSError as problem:
            raise SettingsError(
                f"cannot read the key file {self._file}: {problem.strerror}"
            ) from problem
        is_first = not self._file_version
        # Also of an invalid file, which is reported once.
        self._file_version = version
        keys, errors = _parse_file(content, self._file, self._auto, self._limits)
        if errors and is_first:
            raise SettingsError("; ".join(errors.values()))
        # The other entries apply: one may have been removed to revoke a key.
        for error in errors.values():
            log.error("%s; this key was not changed", error)
        unchanged = [key for key in self._keys if key.name in errors]
        self._keys = _distinct([*self._command_line_keys, *keys, *unchanged], str(self._file))


def digest(secret: str) -> str:
    """The SHA-256 of a secret, in hexadecimal.

    Raises:
        SettingsError: the secret has characters that no header may contain.
    """
    if not _SECRET.fullmatch(secret):
        raise SettingsError(
            "an API key must consist of ASCII letters, digits and punctuation, without spaces"
        )
    return hashlib.sha256(secret.encode()).hexdigest()


def _distinct(keys: list[Key], where: str) -> list[Key]:
    names: dict[bytes, str] = {}
    for key in keys:
        if key.sha256 in names:
            raise SettingsError(
                f"{where}: {names[key.sha256]} and {key.name} have the same secret; give each one "
                "of its own"
            )
        names[key.sha256] = key.name
    return keys


def _parse_file(
    content: bytes, file: Path, auto: Budget, limits: Budget
) -> tuple[list[Key], dict[str, str]]:
    """The valid keys of a file, and the errors of the others by name."""
    try:
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as problem:
        raise SettingsError(f"{file} is not TOML: {problem}") from problem
    entries = tables.get("keys")
    if set(tables) != {"keys"} or not isinstance(entries, dict):
        raise SettingsError(f"{file} must contain tables [keys.NAME], one for each key, only")
    keys, errors = [], {}
    for name, entry in entries.items():
        try:
            keys.append(_parse_key(name, entry, auto, limits))
        except (SettingsError, BudgetError) as problem:
            errors[name] = f"{file}, key {name!r}: {problem}"
    return keys, errors


def _parse_key(name: str, table: Any, auto: Budget, limits: Budget) -> Key:
    """A key from its table. No message quotes `sha256`, which may be the secret by mistake."""
    if not NAME.fullmatch(name):
        raise SettingsError("a name must consist of at most 64 letters, digits, '_' and '-'")
    if not isinstance(table, dict):
        raise SettingsError(f"it must be a table: write [keys.{name}]")
    unknown = sorted(set(table) - _ENTRIES)
    if unknown:
        raise SettingsError(
            f"unknown entry {unknown[0]!r}: known entries are {', '.join(sorted(_ENTRIES))}"
        )
    sha256, corpora, rate = (
        table.get("sha256"),
        table.get("corpora", []),
        table.get("requests_per_minute"),
    )
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        raise SettingsError(
            "`sha256` must be the digest of the secret, 64 hexadecimal digits: run "
            f"`mayfly key new {name}`"
        )
    if not isinstance(corpora, list) or not all(isinstance(each, str) for each in corpora):
        raise SettingsError('`corpora` must be a list of names and ids of corpora, or ["*"]')
    if rate is not None and (type(rate) is not int or not 1 <= rate <= _MAX_REQUESTS_PER_MINUTE):
        raise SettingsError(
            f"`requests_per_minute` must be a whole number from 1 to {_MAX_REQUESTS_PER_MINUTE}"
        )
    default, own_limits = _parse_budgets(table, auto, limits)
    visible = None if "*" in corpora else frozenset(corpora)
    return Key(name, bytes.fromhex(sha256), visible, own_limits, default, rate)


def _parse_budgets(
    table: Mapping[str, Any], auto: Budget, limits: Budget
) -> tuple[Budget | None, Budget | None]:
    """Default budget and limits of a key; None for the server's."""
    steps, seconds, budget = table.get("max_steps"), table.get("max_seconds"), table.get("budget")
    if steps is not None and (type(steps) is not int or steps < 0):
        raise SettingsError("`max_steps` must be a whole number, 0 or more")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds < math.inf):
        raise SettingsError("`max_seconds` must be a number above 0")
    if budget is not None and not isinstance(budget, str):
        raise SettingsError(
            "`budget` must be a string as in the Compute-Budget header, such as "
            '"steps=20, seconds=5"'
        )
    if steps is None and seconds is None and budget is None:
        return None, None
    own_limits, _ = Budget(limits.steps if steps is None else steps, seconds).clamp(limits)
    default = parse_budget(budget, default=auto, auto=auto, limits=own_limits, place="`budget`")
    return default.clamp(own_limits)[0], own_limits
