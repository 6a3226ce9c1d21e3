"""Keys: the keys of one server, by the secret that a request sends.

They are those of the command line, which see everything, those of the key file, which is read again
when it has changed, and those that the database of the corpora has (`serving.api_keys.database`).
An invalid entry leaves its key unchanged. Of HTTP, this module knows the Authorization header; it
does not count requests (`serving.request_rates`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.api_keys.key import Key, check_distinct, parse_keys, parse_tables, unreadable
from serving.budget import Budget
from serving.errors import SettingsError, UnauthorizedError

log = logging.getLogger(__name__)

# Seconds between checks of the key file.
_CHECK_SECONDS = 1.0
_DATABASE = "the database of the corpora"


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
        self._file_keys: list[Key] = []
        self._stored_keys: list[Key] = []
        self._keys = self._command_line_keys
        self._file_version: tuple[int, ...] = ()
        self._checked_at = clock()
        _check(self._command_line_keys, "--api-key")
        self._read()

    @property
    def are_none(self) -> bool:
        """Whether there is no key."""
        return not self._keys

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

    def replace_stored(self, tables: Mapping[str, Any]) -> None:
        """Replace the keys of the database. What is wrong with one of them is logged, and it stays
        as it was; one with the name or the secret of another source's key is not used.

        Args:
            tables: their entries by name, as in the key file.
        """
        keys, errors = parse_keys(tables, _DATABASE, self._auto, self._limits)
        _log_unchanged(errors)
        self._stored_keys = [*keys, *_named(self._stored_keys, errors)]
        self._combine()

    def check_stored(self, tables: Mapping[str, Any]) -> None:
        """Check the keys of the database when a server starts.

        Raises:
            SettingsError: one is invalid, or has the name or the secret of another key.
        """
        keys, errors = parse_keys(tables, _DATABASE, self._auto, self._limits)
        if problems := [*errors.values(), *self._conflicts(keys).values()]:
            raise SettingsError("; ".join(problems))

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
            raise unreadable(self._file, problem) from problem
        is_first = not self._file_version
        # Also of an invalid file, which is reported once.
        self._file_version = version
        tables = parse_tables(content, self._file)
        keys, errors = parse_keys(tables, str(self._file), self._auto, self._limits)
        if errors and is_first:
            raise SettingsError("; ".join(errors.values()))
        # The other entries apply: one may have been removed to revoke a key.
        _log_unchanged(errors)
        keys += _named(self._file_keys, errors)
        _check([*self._command_line_keys, *keys], str(self._file))
        self._file_keys = keys
        self._combine()

    def _combine(self) -> None:
        conflicts = self._conflicts(self._stored_keys)
        for conflict in conflicts.values():
            log.error("%s; the one in the database is not used", conflict)
        stored = [key for key in self._stored_keys if key.name not in conflicts]
        self._keys = [*self._command_line_keys, *self._file_keys, *stored]

    def _conflicts(self, stored: Iterable[Key]) -> dict[str, str]:
        """What is wrong with keys of the database beside the others, by name."""
        conflicts, in_file = {}, {key.name for key in self._file_keys}
        secrets = {key.sha256: key.name for key in (*self._command_line_keys, *self._file_keys)}
        for key in stored:
            if key.name in in_file:
                conflicts[key.name] = (
                    f"the key {key.name!r} is in {self._file} and in {_DATABASE}, and what a key "
                    "makes belongs to its name: remove or rename one of them"
                )
            elif key.sha256 in secrets:
                conflicts[key.name] = (
                    f"{_DATABASE}: {secrets[key.sha256]} and {key.name} have the same secret; give "
                    "each one of its own"
                )
            secrets.setdefault(key.sha256, key.name)
        return conflicts


def _check(keys: Iterable[Key], where: str) -> None:
    check_distinct(((key.name, key.sha256) for key in keys), where)


def _named(keys: Iterable[Key], names: Mapping[str, str]) -> list[Key]:
    return [key for key in keys if key.name in names]


def _log_unchanged(errors: Mapping[str, str]) -> None:
    for error in errors.values():
        log.error("%s; this key was not changed", error)
