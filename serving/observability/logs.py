"""Logs: one line an event, as JSON objects or as text, with the id of the request they belong to.

Nothing of prompts, keys or answers is written: what is told of an ended request is listed here,
exceptions are told without the values of their frames, their messages are cut, and what looks like
a key is masked. This module knows nothing of requests but the report of their adaptation; the door
sets `REQUEST_ID` and calls `log_ended`.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO
from urllib.parse import quote

from serving.errors import in_full
from serving.report import AdaptationReport

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

OURS = ("serving", "adapters", "selection")
_POLLED = ("/health", "/ready", "/metrics")  # every few seconds, by machines
# The most characters, characters, exceptions and frames told.
_MESSAGE, _PATH, _CAUSES, _FRAMES = 1000, 200, 4, 50
_KEY = re.compile(r"(?i)(bearer\s+)\S+|\b((?:mf|sk)-)[\w-]{8,}")

_log = logging.getLogger(__name__)


LogFormat = Literal["json", "text"]


def set_up_logs(form: LogFormat, stream: TextIO | None = None) -> None:
    """Write this process's logs to `stream` (standard error): ours from INFO on, the libraries'
    from WARNING on.

    A second call takes the place of the first.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    for earlier in [
        one for one in root.handlers if isinstance(one.formatter, JsonLines | TextLines)
    ]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def log_ended(
    method: str, path: str, status: int, seconds: float, report: AdaptationReport | None
) -> None:
    """Log an ended request: what was asked for, how it was answered, in how many seconds, by how
    much adaptation.

    `path` is without its query. Routes that machines poll are told only when they fail.
    """
    path = quote(path[:_PATH], errors="backslashreplace")
    ended: dict[str, object] = {
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 4),
    }
    if report is not None:
        ended |= {"steps": len(report.losses), "stop": report.stop, "adapted": report.adapted}
    level = (
        logging.ERROR
        if status >= 500
        else logging.DEBUG
        if path in _POLLED and status < 400
        else logging.INFO
    )
    _log.log(level, "%s %s %d", method, path, status, extra={"ended": ended})


class JsonLines(logging.Formatter):
    """A record as one JSON object on one line of ASCII.

    `time` (RFC 3339, UTC), `level`, `logger`, `message`; `request_id` inside a request; the facts
    of an ended one; and `error` with `type`, `message`, `stack` (innermost frame last) and
    `causes`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _safe(record.getMessage())[:_MESSAGE],
        }
        if (request_id := REQUEST_ID.get()) is not None:
            told["request_id"] = request_id
        told |= getattr(record, "ended", {})
        if record.exc_info and record.exc_info[1] is not None:
            told["error"] = _error(record.exc_info[1], _CAUSES)
        return json.dumps(told)


class TextLines(logging.Formatter):
    """A record as one line to read: time, level, logger, request id, message, facts; under it the
    stack, if any.
    """

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        request_id = REQUEST_ID.get()
        parts = [
            _time(record),
            record.levelname,
            record.name,
            *([] if request_id is None else [f"[{request_id}]"]),
        ]
        parts.append(_safe(record.getMessage())[:_MESSAGE])
        facts = getattr(record, "ended", {}).items()
        parts += [
            f"{name}={value}" for name, value in facts if name not in ("method", "path", "status")
        ]
        # Whoever writes line ends into a name must not be able to write lines of the log.
        line = "".join(
            char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(parts)
        )
        if record.exc_info and record.exc_info[1] is not None:
            line += _as_text(_error(record.exc_info[1], _CAUSES))
        return line


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _safe(text: str) -> str:
    return _KEY.sub(lambda found: f"{found[1] or found[2]}***", text)


def _error(problem: BaseException, depth: int) -> dict[str, Any]:
    stack = traceback.extract_tb(problem.__traceback__, limit=-_FRAMES)
    told: dict[str, Any] = {
        "type": type(problem).__qualname__,
        "message": _safe(in_full(problem))[:_MESSAGE],
        "stack": [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in stack],
    }
    if (causes := _causes(problem)) and depth > 1:
        told["causes"] = [_error(cause, depth - 1) for cause in causes]
    return told


def _causes(problem: BaseException) -> list[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        return list(problem.exceptions[:_CAUSES])
    cause = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)
    return [] if cause is None else [cause]


def _as_text(error: dict[str, Any], indent: str = "\n  ") -> str:
    message = "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in error["message"]
    )
    text = f"{indent}{error['type']}: {message}" + "".join(
        f"{indent}  {frame}" for frame in error["stack"]
    )
    return text + "".join(_as_text(cause, indent + "  ") for cause in error.get("causes", ()))
