"""The exception tree of the server, and the one table from exception to HTTP.

Every exception is made from its arguments alone, so that it survives pickling on its way through
Ray. `adapters` and `selection` have trees of their own (`adapters.errors`, `selection.errors`), of
which some have rows, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from selection.errors import (
    CorpusError,
    CorpusNotFoundError,
    LibraryError,
    MissingError,
    ReadOnlyError,
)


class MayflyError(Exception):
    """Everything that Mayfly itself raises for its users."""


class BudgetError(MayflyError, ValueError):
    """A budget that is not one. `param` names where it was said: a header, or a field of the body."""

    def __init__(self, message: str, param: str = "Compute-Budget") -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class RequestError(MayflyError, ValueError):
    """A request body that cannot be read, or an `adaptation` extension that is not one."""


class GrammarError(RequestError):
    """A grammar that no answer can follow: it cannot be compiled, or leads nowhere."""


class TokensError(RequestError):
    """Tokens that are none of the model's."""


class UnsupportedError(RequestError):
    """A field of OpenAI's API that has no effect here, though a client would rely on it; `param`
    names it.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class TooLargeError(MayflyError):
    """A request body beyond the limit."""


class SlowError(MayflyError):
    """A request body that did not come in time."""


class UnauthorizedError(MayflyError):
    """No API key, or one that is not known."""


class BusyError(MayflyError):
    """More requests than the server, or than the key, may have.

    Args:
        message: what there is too much of.
        retry_after: when to try again, in seconds.
        full: of what the server has as many as it takes, "requests" or "adaptations"; None where
            others are served.
    """

    def __init__(self, message: str, retry_after: float, full: str | None = None) -> None:
        super().__init__(message, retry_after, full)
        self.retry_after, self.full = retry_after, full

    def __str__(self) -> str:
        return str(self.args[0])


class RateLimitError(BusyError):
    """More requests than the key may make in a minute."""


class RouteError(MayflyError):
    """A path that is not served."""


class ModelError(MayflyError):
    """A model that is not served."""


class MethodError(MayflyError):
    """A method that this path does not take.

    Args:
        message: which method, and of which path.
        allowed: the methods that it takes.
    """

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message, allowed)
        self.allowed = allowed

    def __str__(self) -> str:
        return str(self.args[0])


class HostError(MayflyError):
    """A request to a host that an open server is not known as."""


class OriginError(MayflyError):
    """A request of another site's page, to a server without keys."""


class MediaTypeError(MayflyError):
    """A request body of another media type than its route reads."""


class AdaptationFailedError(MayflyError):
    """The adaptation failed and the request said that it was required."""


class HangingError(MayflyError):
    """The trainer takes no step any more, or fails at each; another one is being started."""


class DownError(MayflyError):
    """The engine has ended; another one is being started."""


class StartError(MayflyError):
    """The server could not start; the message says why and what to do."""


class LeftError(MayflyError):
    """A server has ended, and something of it could neither be killed nor deleted; the message
    names it.
    """


class LostError(MayflyError):
    """What a server of one machine cannot do without has ended; it must start again."""


class SettingsError(MayflyError, ValueError):
    """An invalid setting, wherever it was given: a flag, a variable, the settings file or the key
    file.
    """


class ModelFilesError(MayflyError, ValueError):
    """A base model or an embedder that is not there, or that cannot be used as it is."""


class CalibrationError(MayflyError, ValueError):
    """A corpus that cannot be calibrated on."""


class PlanError(MayflyError, ValueError):
    """A workload, a target or a file of measurements that cannot be planned with."""


class InstallationError(MayflyError):
    """A part of the installation is missing; the message says how to install it."""


@dataclass(frozen=True)
class HttpError:
    """An answer in OpenAI's error shape."""

    status: int
    type: str
    code: str | None = None
    param: str | None = None


FULL = b"x-mayfly-full"  # a header that tells the front door of what there is no more to be had
_OURS = "the server failed to answer; its log says why"

# The first row that matches decides: subclasses stand above their bases.
_TABLE: tuple[tuple[type[Exception], HttpError], ...] = (
    (
        BudgetError,
        HttpError(400, "invalid_request_error", "invalid_compute_budget", "Compute-Budget"),
    ),
    (UnauthorizedError, HttpError(401, "invalid_request_error", "invalid_api_key")),
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
    (CorpusError, HttpError(400, "invalid_request_error", "corpus_mismatch", "adaptation.corpus")),
    (MissingError, HttpError(404, "invalid_request_error", "not_found")),
    (ReadOnlyError, HttpError(403, "invalid_request_error", "permission_denied")),
    (LibraryError, HttpError(400, "invalid_request_error")),
    (AdaptationFailedError, HttpError(500, "server_error", "adaptation_failed")),
    (DownError, HttpError(503, "server_error", "engine_restarting")),
)


def is_the_clients(problem: BaseException) -> bool:
    """Whether the client can mend it (4xx), so that the request must fail rather than go on
    unadapted.
    """
    return any(isinstance(problem, kind) and row.status < 500 for kind, row in _TABLE)


def in_full(problem: BaseException) -> str:
    """The message with its notes, for the log and the terminal: they say what clients need not
    know.
    """
    return "; ".join([str(problem), *getattr(problem, "__notes__", ())])


def to_http(problem: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of an exception, without its notes; what is not in the table is a 500 that
    tells no insides.
    """
    row = next((row for kind, row in _TABLE if isinstance(problem, kind)), None)
    message = str(problem) if row else _OURS
    row = row or HttpError(500, "server_error")
    param = problem.param if isinstance(problem, BudgetError | UnsupportedError) else row.param
    error = {"message": message, "type": row.type, "param": param, "code": row.code}
    return row.status, {"error": error}


def more_headers(problem: BaseException) -> list[tuple[bytes, bytes]]:
    """What the headers of an error say beside its body: when to try again, or how; or that it costs
    as much again.
    """
    if isinstance(problem, BusyError):
        when = (b"retry-after", str(max(1, math.ceil(problem.retry_after))).encode())
        return [when] if problem.full is None else [when, (FULL, problem.full.encode())]
    if isinstance(problem, DownError):
        return [(b"retry-after", b"5")]
    if isinstance(problem, MethodError) and problem.allowed:
        return [(b"allow", ", ".join(problem.allowed).encode())]
    if isinstance(problem, UnauthorizedError):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(problem, AdaptationFailedError):
        return [(b"x-should-retry", b"false")]
    return []


def in_openais_shape(status: int, content: Any) -> dict[str, Any]:
    """An error of vLLM, Ray or the web server, told as OpenAI tells it: message, type, param and
    code, nothing else.
    """
    error = content.get("error", content) if isinstance(content, dict) else content
    told = error if isinstance(error, dict) else {"message": error}
    message = told.get("message") or told.get("detail")
    if status >= 500 or not isinstance(message, str) or not message:
        message = HTTPStatus(status).phrase if status < 500 else _OURS
    kind, param, code = told.get("type"), told.get("param"), told.get("code")
    return {
        "error": {
            "message": message,
            "type": kind
            if isinstance(kind, str)
            else "server_error"
            if status >= 500
            else "invalid_request_error",
            "param": param if isinstance(param, str) else None,
            "code": None if code is None or code == status else str(code),
        }
    }
