"""Positions: where an object stands in a list, which a cursor still says when the object is gone.

An id begins with the microsecond in which it was given, and lists are ordered by that time, so the
position of a deleted object follows from its id. Ids that earlier versions gave are random:
`Deleted` remembers the time of such an object when it is deleted.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

log = logging.getLogger(__name__)

Position: TypeAlias = tuple[int, ...]

# Microseconds since 1970 that an id may carry: the first of 2026, and a day from now, for clocks
# that differ.
_FIRST, _AHEAD = 1_767_225_600_000_000, 24 * 3600 * 1_000_000
_DIGITS, _TIME = 24, 14  # hexadecimal digits of an id, and of the time that it begins with


def new_id(prefix: str) -> tuple[str, float]:
    """A new id, and the time that it carries, in seconds since 1970, UTC."""
    moment = time.time_ns() // 1000
    return f"{prefix}{moment:0{_TIME}x}{secrets.token_hex((_DIGITS - _TIME) // 2)}", moment / 1e6


def position(identity: str, created: float) -> Position:
    """Where an object of that id stands in a list by creation time; ids decide between equal times."""
    return round(created * 1e6), int(identity[-_DIGITS:], 16)


def carried(identity: str, prefix: str) -> Position | None:
    """The position that an id carries; None if it carries none."""
    if not re.fullmatch(f"{prefix}[0-9a-f]{{{_DIGITS}}}", identity):
        return None
    moment = int(identity[-_DIGITS:][:_TIME], 16)
    plausible = _FIRST <= moment <= time.time_ns() // 1000 + _AHEAD
    return (moment, int(identity[-_DIGITS:], 16)) if plausible else None


class Deleted:
    """The deleted objects of a folder whose ids do not carry their position, in a file there, a
    line for each.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ".deleted.jsonl"

    def remember(self, prefix: str, about: Mapping[str, Any]) -> None:
        """Remember what was known of an object (`id` and `created` among it), if its id does not
        tell its position.
        """
        if carried(about["id"], prefix) == position(about["id"], float(about["created"])):
            return
        try:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(about) + "\n")
        except OSError as problem:  # a full disk must not keep what is deleted
            log.warning("a list that is being read may have to be begun again: %s", problem)

    def position(
        self, identity: str, prefix: str, sees: Callable[[Mapping[str, Any]], bool]
    ) -> Position | None:
        """Where a deleted object stood, if what was remembered of it may be seen; None for what
        cannot have been.
        """
        about = self._find(identity)
        if about is not None and sees(about):
            return position(identity, float(about["created"]))
        return carried(identity, prefix)

    def _find(self, identity: str) -> Mapping[str, Any] | None:
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        for line in lines:
            try:
                about = json.loads(line)
            except ValueError:  # broken off in the middle of a line
                continue
            if isinstance(about, dict) and about.get("id") == identity:
                return about
        return None
