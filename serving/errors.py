"""The exception tree of the server, and the one table from exception to HTTP.

Every exception is made from its message alone, so that it survives pickling on its way through Ray. `adapters`
and `selection` raise `ValueError`, `CorpusError` and `LibraryError` for what a user can mend; they have rows, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selection.store import CorpusError, CorpusNotFoundError
from selection.uploads import LibraryError, MissingError


class MayflyError(Exception):
    """Everything that Mayfly itself raises for its users."""


class BudgetError(MayflyError, ValueError):
    """A Compute-Budget header that is not one."""


class RequestError(MayflyError, ValueError):
    """A request body that cannot be read, or an `adaptation` extension that is not one."""


class TooLargeError(MayflyError):
    """A request body beyond the limit."""


class RouteError(MayflyError):
    """A path that is not served."""


class MethodError(MayflyError):
    """A method that this path does not take."""


class AdaptationFailedError(MayflyError):
    """The adaptation failed and the request said that it was required."""


class StartError(MayflyError):
    """The server could not start; the message says why and what to do."""


@dataclass(frozen=True)
class HttpError:
    """An answer in OpenAI's error shape."""

    status: int
    type: str
    code: str | None = None
    param: str | None = None


# The first row that matches decides: subclasses stand above their bases.
_TABLE: tuple[tuple[type[Exception], HttpError], ...] = (
    (BudgetError, HttpError(400, "invalid_request_error", "invalid_compute_budget", "Compute-Budget")),
    (TooLargeError, HttpError(413, "invalid_request_error", "request_too_large")),
    (RouteError, HttpError(404, "invalid_request_error", "unknown_url")),
    (MethodError, HttpError(405, "invalid_request_error", "method_not_allowed")),
    (RequestError, HttpError(400, "invalid_request_error")),
    (CorpusNotFoundError, HttpError(404, "invalid_request_error", "corpus_not_found", "adaptation.corpus")),
    (CorpusError, HttpError(400, "invalid_request_error", "corpus_mismatch", "adaptation.corpus")),
    (MissingError, HttpError(404, "invalid_request_error", "not_found")),
    (LibraryError, HttpError(400, "invalid_request_error")),
    (AdaptationFailedError, HttpError(500, "server_error", "adaptation_failed")),
)


def is_the_clients(problem: BaseException) -> bool:
    """Whether the client can mend it (4xx), so that the request must fail rather than go on unadapted."""
    return any(isinstance(problem, kind) and row.status < 500 for kind, row in _TABLE)


def to_http(problem: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of an exception; what is not in the table is a 500 that tells nothing of our insides."""
    row = next((row for kind, row in _TABLE if isinstance(problem, kind)), None)
    message = str(problem) if row else "the server failed to answer; its log says why"
    row = row or HttpError(500, "server_error")
    error = {"message": message, "type": row.type, "param": row.param, "code": row.code}
    return row.status, {"error": error}
