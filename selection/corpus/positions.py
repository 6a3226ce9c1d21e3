"""Positions: where an object stands in a list, so that a cursor stays valid when its object is
deleted.

An id begins with the microsecond of its creation, and lists are ordered by that time, so the
position of a deleted object follows from its id. Ids that earlier versions created are random:
`Tombstones` records the time of such an object when it is deleted.
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

# The earliest time that an id may contain: the start of 2026, in microseconds since 1970.
_EARLIEST = 1_767_225_600_000_000
# How far ahead of this machine's clock that time may lie, in microseconds: one day.
_AHEAD = 24 * 3600 * 1_000_000
# Hexadecimal digits of an id, and of the time at its beginning.
_DIGITS, _TIME = 24, 14


def new_id(prefix: str) -> tuple[str, float]:
    """A new id, and the time that it contains, in seconds since 1970, UTC."""
    moment = time.time_ns() // 1000
    return f"{prefix}{moment:0{_TIME}x}{secrets.token_hex((_DIGITS - _TIME) // 2)}", moment / 1e6


def position(identity: str, created: float) -> Position:
    """The position of an object in a list by creation time; ids decide between equal times."""
    return round(created * 1e6), int(identity[-_DIGITS:], 16)


def position_in_id(identity: str, prefix: str) -> Position | None:
    """The position that an id contains; None if it contains none."""
    if not re.fullmatch(f"{prefix}[0-9a-f]{{{_DIGITS}}}", identity):
        return None
    moment = int(identity[-_DIGITS:][:_TIME], 16)
    plausible = _EARLIEST <= moment <= time.time_ns() // 1000 + _AHEAD
    return (moment, int(identity[-_DIGITS:], 16)) if plausible else None


class Tombstones:
    """Records of a folder's deleted objects whose ids do not contain their position: one line of
    JSON each.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ".deleted.jsonl"

    def record(self, prefix: str, deleted: Mapping[str, Any]) -> None:
        """Record a deleted object, unless its id contains its position.

        Args:
            prefix: the prefix of its id.
            deleted: its properties, `id` and `created` among them.
        """
        in_list = position(deleted["id"], float(deleted["created"]))
        if position_in_id(deleted["id"], prefix) == in_list:
            return
        try:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(deleted) + "\n")
        except OSError as problem:
            # A full disk must not prevent a deletion.
            log.warning("clients may have to restart listings that are under way: %s", problem)

    def position(
        self, identity: str, prefix: str, is_visible: Callable[[Mapping[str, Any]], bool]
    ) -> Position | None:
        """The position of a deleted object.

        Args:
            identity: its id.
            prefix: the prefix of such ids.
            is_visible: whether the client may learn of a recorded object, by its properties.

        Returns:
            None if no such object can have existed, or if it is not visible.
        """
        deleted = self._find(identity)
        if deleted is not None and is_visible(deleted):
            return position(identity, float(deleted["created"]))
        return position_in_id(identity, prefix)

    def _find(self, identity: str) -> Mapping[str, Any] | None:
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        for line in lines:
            try:
                deleted = json.loads(line)
            except ValueError:
                # A write that was interrupted in the middle of the line.
                continue
            if isinstance(deleted, dict) and deleted.get("id") == identity:
                return deleted
        return None
