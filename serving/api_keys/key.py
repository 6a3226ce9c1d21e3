"""Key: one API key, and how its entries are written, in the key file and in the database.

A key is recognised by the SHA-256 digest of its secret, which is stored nowhere. In TOML, with all
entries but `sha256` optional:

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

What a key makes belongs to its name, whatever its secret. No message quotes `sha256`, which may be
the secret by mistake.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selection.access import OPERATOR, Principal
from serving.budget import AUTO, LIMITS, Budget, parse_budget
from serving.errors import BudgetError, SettingsError

# Keys that TOML takes without quotes.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Characters that a header may contain.
_SECRET = re.compile(r"[!-~]+")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_ENTRIES = {"sha256", "corpora", "budget", "max_steps", "max_seconds", "requests_per_minute"}
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


def check_distinct(digests: Iterable[tuple[str, bytes]], where: str) -> None:
    """Check that keys, given by name and digest, have different secrets.

    Raises:
        SettingsError: two have the same; the message begins with `where` and names both.
    """
    names: dict[bytes, str] = {}
    for name, sha256 in digests:
        if sha256 in names:
            raise SettingsError(
                f"{where}: {names[sha256]} and {name} have the same secret; give each one of its "
                "own"
            )
        names[sha256] = name


def parse_tables(content: bytes, file: Path) -> dict[str, Any]:
    """The tables of a key file by the names of the keys, without a check of their entries.

    Raises:
        SettingsError: it is no key file.
    """
    try:
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as problem:
        raise SettingsError(f"{file} is not TOML: {problem}") from problem
    entries = tables.get("keys")
    if set(tables) != {"keys"} or not isinstance(entries, dict):
        raise SettingsError(f"{file} must contain tables [keys.NAME], one for each key, only")
    return entries


def unreadable(file: Path, problem: OSError) -> SettingsError:
    """The error for a key file that cannot be read."""
    return SettingsError(f"cannot read the key file {file}: {problem.strerror}")


def parse_keys(
    tables: Mapping[str, Any], where: str, auto: Budget = AUTO, limits: Budget = LIMITS
) -> tuple[list[Key], dict[str, str]]:
    """The valid keys of tables, and the errors of the others by name; each begins with `where`."""
    keys, errors = [], {}
    for name, table in tables.items():
        try:
            keys.append(parse_key(name, table, auto, limits))
        except (SettingsError, BudgetError) as problem:
            errors[name] = f"{where}, key {name!r}: {problem}"
    return keys, errors


def parse_key(name: str, table: Any, auto: Budget = AUTO, limits: Budget = LIMITS) -> Key:
    """A key from its table.

    Args:
        name: name of the key.
        table: its entries.
        auto, limits: default budget and limits of the server.

    Raises:
        SettingsError, BudgetError: the name or an entry is invalid.
    """
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
