"""Logs: one line per event, as JSON or as text, with the id of the request that it belongs to.

No prompts, keys or answers are written. `log_request` lists what is logged about a request.
Exceptions are logged without the variables of their frames, their messages are truncated, and
anything that looks like a key is masked. The gateway sets `REQUEST_ID` and calls `log_request`;
otherwise this module is independent of requests.
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

from serving.errors import USER_ERRORS, in_full
from serving.report import AdaptationReport

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

# Mayfly's own packages.
OURS = ("serving", "adapters", "selection")
# Routes that machines request every few seconds.
_POLLED = ("/health", "/ready", "/metrics")
# Largest lengths of a message and a path, in characters.
_MAX_MESSAGE, _MAX_PATH = 1000, 200
# Largest numbers of chained exceptions, and of frames of each.
_MAX_CAUSES, _MAX_FRAMES = 4, 50
_KEY = re.compile(r"(?i)(bearer\s+)\S+|\b((?:mf|sk)-)[\w-]{8,}")

_log = logging.getLogger(__name__)


LogFormat = Literal["json", "text"]


def set_up_logs(log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Log Mayfly's records from INFO on, and those of libraries from WARNING on.

    A further call replaces the configuration of the previous one.

    Args:
        log_format: format of the lines.
        stream: where lines are written; None for standard error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    for earlier in [*root.handlers]:
        if isinstance(earlier.formatter, JsonLines | TextLines):
            root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def log_request(
    method: str, path: str, status: int, seconds: float, report: AdaptationReport | None
) -> None:
    """Log a request that has ended; requests to polled routes only if they failed.

    Args:
        method: HTTP method.
        path: path without the query.
        status: HTTP status of the response.
        seconds: duration of the request.
        report: report of its adaptation; None if it has none.
    """
    path = quote(path[:_MAX_PATH], errors="backslashreplace")
    facts: dict[str, object] = {
        "method": method,
        "path": path,
        "status": status,
        "seconds": round(seconds, 4),
    }
    if report is not None:
        facts |= {"steps": len(report.losses), "stop": report.stop, "adapted": report.adapted}
        if report.shown is not None:
            facts["shown"] = report.shown["sequences"]
    if status >= 500:
        level = logging.ERROR
    elif path in _POLLED and status < 400:
        level = logging.DEBUG
    else:
        level = logging.INFO
    _log.log(level, "%s %s %d", method, path, status, extra={"request_facts": facts})


def log_failure(
    log: logging.Logger, what: str, problem: BaseException, level: int = logging.ERROR
) -> None:
    """Log what has failed: with the stack of a bug, and in one line if the problem says all.

    Args:
        log: the logger.
        what: what has failed.
        problem: why.
        level: the level of the record.
    """
    if isinstance(problem, (*USER_ERRORS, TimeoutError)):
        log.log(level, "%s: %s", what, in_full(problem) or type(problem).__name__)
    else:
        log.log(level, what, exc_info=problem)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object on one line of ASCII.

    Its fields are `time` (RFC 3339, UTC), `level`, `logger` and `message`; `request_id` within a
    request; the fields of `log_request`; and `error` with `type`, `message`, `stack` (innermost
    frame last) and `causes`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _safe(record.getMessage())[:_MAX_MESSAGE],
        }
        if (request_id := REQUEST_ID.get()) is not None:
            fields["request_id"] = request_id
        fields |= getattr(record, "request_facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = _error(record.exc_info[1], _MAX_CAUSES)
        return json.dumps(fields)


class TextLines(logging.Formatter):
    """Formats a record as one line of text: time, level, logger, request id, message, facts.

    The lines of an exception's stack follow.
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
        parts.append(_safe(record.getMessage())[:_MAX_MESSAGE])
        facts = getattr(record, "request_facts", {}).items()
        parts += [
            f"{name}={value}" for name, value in facts if name not in ("method", "path", "status")
        ]
        # A name with line breaks must not be able to forge lines of the log.
        line = _printable(" ".join(parts))
        if record.exc_info and record.exc_info[1] is not None:
            line += _as_text(_error(record.exc_info[1], _MAX_CAUSES))
        return line


def _time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return time.replace("+00:00", "Z")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _safe(text: str) -> str:
    return _KEY.sub(lambda found: f"{found[1] or found[2]}***", text)


def _error(problem: BaseException, depth: int) -> dict[str, Any]:
    stack = traceback.extract_tb(problem.__traceback__, limit=-_MAX_FRAMES)
    error: dict[str, Any] = {
        "type": type(problem).__qualname__,
        "message": _safe(in_full(problem))[:_MAX_MESSAGE],
        "stack": [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in stack],
    }
    if (causes := _causes(problem)) and depth > 1:
        error["causes"] = [_error(cause, depth - 1) for cause in causes]
    return error


def _causes(problem: BaseException) -> list[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        return list(problem.exceptions[:_MAX_CAUSES])
    cause = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)
    return [] if cause is None else [cause]


def _as_text(error: dict[str, Any], indent: str = "\n  ") -> str:
    frames = "".join(f"{indent}  {frame}" for frame in error["stack"])
    text = f"{indent}{error['type']}: {_printable(error['message'])}{frames}"
    return text + "".join(_as_text(cause, indent + "  ") for cause in error.get("causes", ()))
