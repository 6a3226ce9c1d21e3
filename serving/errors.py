"""The exceptions of the server, and the one table from exceptions to HTTP errors.

Every exception is built from its arguments alone, so that Ray can pickle it. Exceptions of
`adapters` and `selection` are in `adapters.errors` and `selection.errors`; the table has some of
them, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from adapters.errors import AdapterError
from selection.errors import (
    CorpusError,
    CorpusNotFoundError,
    CorpusUnavailableError,
    LibraryError,
    MissingError,
    ReadOnlyError,
    SelectionError,
)


class MayflyError(Exception):
    """Base of the exceptions that Mayfly raises for its users."""


class BudgetError(MayflyError, ValueError):
    """An invalid budget.

    Args:
        message: the reason.
        param: header or body field of the budget.
    """

    def __init__(self, message: str, param: str = "Compute-Budget") -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class RequestError(MayflyError, ValueError):
    """An invalid request body, or an invalid `adaptation` field in it."""


class GrammarError(RequestError):
    """A grammar that no answer can follow: it does not compile, or it has a dead end."""


class TokensError(RequestError):
    """Invalid token ids."""


class UnsupportedError(RequestError):
    """A field of OpenAI's API that a client would rely on and that has no effect here.

    Args:
        message: the reason, and what to do instead.
        param: name of the field.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class TooLargeError(MayflyError):
    """A request body that is too large."""


class SlowError(MayflyError):
    """A request body that did not arrive in time."""


class UnauthorizedError(MayflyError):
    """A missing or unknown API key."""


class KeysUnavailableError(MayflyError):
    """An API key that may be known to a database that this process has not been able to read."""


class BusyError(MayflyError):
    """A limit of concurrent requests is reached.

    Args:
        message: the limit.
        retry_after: seconds after which to try again.
        full: what the server is full of, "requests" or "adaptations"; None for a limit of the key.
    """

    def __init__(self, message: str, retry_after: float, full: str | None = None) -> None:
        super().__init__(message, retry_after, full)
        self.retry_after, self.full = retry_after, full

    def __str__(self) -> str:
        return str(self.args[0])


class RateLimitError(BusyError):
    """The API key has made too many requests in a minute."""


class RouteError(MayflyError):
    """An unknown path."""


class ModelError(MayflyError):
    """An unknown model."""


class MethodError(MayflyError):
    """A method that a path does not support.

    Args:
        message: the method and the path.
        allowed: methods of the path.
    """

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, allowed)
        self.allowed = allowed

    def __str__(self) -> str:
        return str(self.args[0])


class HostError(MayflyError):
    """A `Host` that a server without keys does not accept."""


class OriginError(MayflyError):
    """A request of another site's page to a server without keys."""


class MediaTypeError(MayflyError):
    """A request body of the wrong media type."""


class AdaptationFailedError(MayflyError):
    """A required adaptation failed."""


class StageFailedError(MayflyError):
    """The process of a stage has ended or hangs; it is replaced, unless the server ends."""


class TrainerFailedError(StageFailedError):
    """The trainer hangs, or its trainings fail before their first step; it is being restarted."""


class DownError(MayflyError):
    """The engine has died and is being restarted."""


class StartError(MayflyError):
    """The server could not start; the message says why and what to do."""


class RayClusterError(MayflyError):
    """A Ray cluster of the user that cannot be reached, or that has lost the work it was given."""


class LeftError(MayflyError):
    """A server has ended and left something that could neither be killed nor deleted; the message
    names it.
    """


class LostError(MayflyError):
    """An essential process of a single-machine server has ended; the server must be restarted."""


class SettingsError(MayflyError, ValueError):
    """An invalid setting, wherever it was given: a flag, a variable, the settings file or the key
    file.
    """


class ModelFilesError(MayflyError, ValueError):
    """A base model or an embedder that is missing or cannot be used."""


class CalibrationError(MayflyError, ValueError):
    """A corpus that cannot be used for calibration."""


class PlanError(MayflyError, ValueError):
    """An invalid workload, target or measurements file for planning."""


class InstallationError(MayflyError):
    """A part of the installation is missing; the message says how to install it."""


# The exceptions whose message says all; any other one is a bug.
USER_ERRORS = (MayflyError, SelectionError, AdapterError)


@dataclass(frozen=True)
class HttpError:
    """Status and fields of OpenAI's error object."""

    status: int
    type: str
    code: str | None = None
    param: str | None = None


# Header with which a full replica tells `serving.http.hardening` what it is full of.
FULL = b"x-mayfly-full"
_SERVER_ERROR = "the server failed to answer; its log says why"

# The first matching row applies, so subclasses come before their bases.
_TABLE: tuple[tuple[type[Exception], HttpError], ...] = (
    (
        BudgetError,
        HttpError(400, "invalid_request_error", "invalid_compute_budget", "Compute-Budget"),
    ),
    (UnauthorizedError, HttpError(401, "invalid_request_error", "invalid_api_key")),
    (KeysUnavailableError, HttpError(503, "server_error", "keys_unavailable")),
    (RateLimitError, HttpError(429, "requests", "rate_limit_exceeded")),
    (BusyError, HttpError(429, "server_busy", "server_busy")),
    (SlowError, HttpError(408, "invalid_request_error", "request_timeout")),
    (TooLargeError, HttpError(413, "invalid_request_error", "request_too_large")),
    (RouteError, HttpError(404, "invalid_request_error", "unknown_url")),
    (ModelError, HttpError(404, "invalid_request_error", "model_not_found", "model")),
    (MethodError, HttpError(405, "invalid_request_error", "method_not_allowed")),
    (HostError, HttpError(403, "invalid_request_error", "host_not_allowed")),
    (OriginError, HttpError(403, "invalid_request_error", "origin_not_allowed")),
    (MediaTypeError, HttpError(415, "invalid_request_error", "unsupported_media_type")),
    (TokensError, HttpError(400, "invalid_request_error", param="tokens")),
    (UnsupportedError, HttpError(400, "invalid_request_error", "unsupported_parameter")),
    (GrammarError, HttpError(400, "invalid_request_error", "invalid_grammar", "response_format")),
    (RequestError, HttpError(400, "invalid_request_error")),
    (
        CorpusNotFoundError,
        HttpError(404, "invalid_request_error", "corpus_not_found", "adaptation.corpus"),
    ),
    (CorpusUnavailableError, HttpError(503, "server_error", "corpora_unavailable")),
    (CorpusError, HttpError(400, "invalid_request_error", "corpus_mismatch", "adaptation.corpus")),
    (MissingError, HttpError(404, "invalid_request_error", "not_found")),
    (ReadOnlyError, HttpError(403, "invalid_request_error", "permission_denied")),
    (LibraryError, HttpError(400, "invalid_request_error")),
    (AdaptationFailedError, HttpError(500, "server_error", "adaptation_failed")),
    (DownError, HttpError(503, "server_error", "engine_restarting")),
)


def is_the_clients(problem: BaseException) -> bool:
    """Whether the client can correct the problem (status 4xx), so that its request must fail
    instead of being answered without adaptation.
    """
    row = _row(problem)
    return row is not None and row.status < 500


def in_full(problem: BaseException) -> str:
    """The message with its notes, which are for the log and the terminal, not for clients."""
    return "; ".join([str(problem), *getattr(problem, "__notes__", ())])


def to_http(problem: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body for an exception, without its notes. An exception outside the table is a 500
    without details.
    """
    row = _row(problem)
    message = str(problem) if row else _SERVER_ERROR
    row = row or HttpError(500, "server_error")
    param = problem.param if isinstance(problem, BudgetError | UnsupportedError) else row.param
    error = {"message": message, "type": row.type, "param": param, "code": row.code}
    return row.status, {"error": error}


def _row(problem: BaseException) -> HttpError | None:
    """The row of an exception; None outside the table."""
    return next((row for kind, row in _TABLE if isinstance(problem, kind)), None)


def more_headers(problem: BaseException) -> list[tuple[bytes, bytes]]:
    """Further headers for an exception: when or how to try again, or not to."""
    if isinstance(problem, BusyError):
        when = (b"retry-after", str(max(1, math.ceil(problem.retry_after))).encode())
        return [when] if problem.full is None else [when, (FULL, problem.full.encode())]
    if isinstance(problem, DownError | CorpusUnavailableError | KeysUnavailableError):
        return [(b"retry-after", b"5")]
    if isinstance(problem, MethodError) and problem.allowed:
        return [(b"allow", ", ".join(problem.allowed).encode())]
    if isinstance(problem, UnauthorizedError):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(problem, AdaptationFailedError):
        return [(b"x-should-retry", b"false")]
    return []


def in_openais_shape(status: int, content: Any) -> dict[str, Any]:
    """OpenAI's error object for an error of vLLM, Ray or the web server.

    Args:
        status: status of the response.
        content: its body, decoded from JSON where possible.
    """
    error = content.get("error", content) if isinstance(content, dict) else content
    fields = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message") or fields.get("detail")
    if status >= 500 or not isinstance(message, str) or not message:
        message = HTTPStatus(status).phrase if status < 500 else _SERVER_ERROR
    kind, param, code = fields.get("type"), fields.get("param"), fields.get("code")
    default = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": message,
            "type": kind if isinstance(kind, str) else default,
            "param": param if isinstance(param, str) else None,
            "code": None if code is None or code == status else str(code),
        }
    }
