"""The exceptions: they survive pickling, and each becomes the HTTP error of its row, without
internals.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from adapters.errors import AdapterError, BaseModelError, TrainingOptionError
from selection.errors import (
    CorpusError,
    CorpusNotFoundError,
    CorpusUnavailableError,
    EmbedderError,
    ExampleError,
    LibraryError,
    MissingError,
    ReadOnlyError,
    SelectionError,
    SelectionOptionError,
)
from serving.errors import (
    AdaptationFailedError,
    BudgetError,
    BusyError,
    CalibrationError,
    DownError,
    GrammarError,
    HostError,
    InstallationError,
    KeysUnavailableError,
    LeftError,
    LostError,
    MayflyError,
    MediaTypeError,
    MethodError,
    ModelError,
    ModelFilesError,
    OriginError,
    PlanError,
    RateLimitError,
    RayClusterError,
    RequestError,
    RouteError,
    SettingsError,
    SlowError,
    StageFailedError,
    StartError,
    TokensError,
    TooLargeError,
    TrainerFailedError,
    UnauthorizedError,
    UnsupportedError,
    in_full,
    in_openais_shape,
    is_the_clients,
    more_headers,
    to_http,
)

_ALL = [
    AdaptationFailedError,
    AdapterError,
    BaseModelError,
    BudgetError,
    CalibrationError,
    CorpusError,
    CorpusNotFoundError,
    CorpusUnavailableError,
    DownError,
    EmbedderError,
    ExampleError,
    GrammarError,
    TrainerFailedError,
    HostError,
    InstallationError,
    KeysUnavailableError,
    LeftError,
    LibraryError,
    LostError,
    MayflyError,
    MediaTypeError,
    MethodError,
    MissingError,
    ModelError,
    OriginError,
    ModelFilesError,
    PlanError,
    ReadOnlyError,
    RequestError,
    RouteError,
    SelectionError,
    SelectionOptionError,
    SettingsError,
    SlowError,
    StageFailedError,
    RayClusterError,
    StartError,
    TokensError,
    TooLargeError,
    TrainingOptionError,
    UnauthorizedError,
    UnsupportedError,
]


_NO_DETAILS = "the server failed to answer; its log says why"


@pytest.mark.parametrize("kind", _ALL)
def test_every_exception_survives_pickling(kind: type[Exception]) -> None:
    problem = kind("what happened, and what to do: “ü”")

    again = pickle.loads(pickle.dumps(problem))

    assert type(again) is kind
    assert str(again) == str(problem)
    assert to_http(again) == to_http(problem)


def test_every_exception_is_in_the_list_above() -> None:
    def subclasses(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))

    ours = {
        kind
        for kind in subclasses(MayflyError) | subclasses(SelectionError) | subclasses(AdapterError)
        if kind.__module__ in {"serving.errors", "selection.errors", "adapters.errors"}
    }

    assert ours == {*_ALL, BusyError, RateLimitError}


@pytest.mark.parametrize("kind", [BusyError, RateLimitError])
def test_the_time_to_retry_survives_pickling(kind: type[BusyError]) -> None:
    again = pickle.loads(pickle.dumps(kind("busy", 2.5)))

    assert (type(again), str(again), again.retry_after) == (kind, "busy", 2.5)
    assert to_http(again)[0] == 429
    assert more_headers(again) == [(b"retry-after", b"3")]


def test_a_restarting_engine_has_a_time_to_retry() -> None:
    status, body = to_http(DownError("the engine has ended"))

    assert (status, body["error"]["code"]) == (503, "engine_restarting")
    assert more_headers(DownError("m")) == [(b"retry-after", b"5")]


def test_the_headers_of_an_error() -> None:
    assert more_headers(AdaptationFailedError("m")) == [(b"x-should-retry", b"false")]
    assert more_headers(RequestError("m")) == []
    assert more_headers(MethodError("m", ("GET", "HEAD"))) == [(b"allow", b"GET, HEAD")]
    assert more_headers(pickle.loads(pickle.dumps(MethodError("m", ("GET",))))) == [
        (b"allow", b"GET")
    ]


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (
            404,
            {"error": {"message": "m", "type": "NotFoundError", "param": "model", "code": 404}},
            ("m", "NotFoundError", "model", None),
        ),
        (
            400,
            {"error": {"message": "m", "type": None, "param": 3, "code": "c"}},
            ("m", "invalid_request_error", None, "c"),
        ),
        (401, {"error": "Unauthorized"}, ("Unauthorized", "invalid_request_error", None, None)),
        (422, {"detail": "m"}, ("m", "invalid_request_error", None, None)),
        (
            405,
            {"detail": [{"loc": "x"}]},
            ("Method Not Allowed", "invalid_request_error", None, None),
        ),
        (415, "", ("Unsupported Media Type", "invalid_request_error", None, None)),
        (503, "busy at /a/b", (_NO_DETAILS, "server_error", None, None)),
        (
            500,
            {"error": {"message": "at 0x7f", "type": "Inside"}},
            (_NO_DETAILS, "Inside", None, None),
        ),
    ],
)
def test_errors_of_others_get_openais_shape(
    status: int, content: Any, error: tuple[str, str, str | None, str | None]
) -> None:
    message, kind, param, code = error
    expected = {"message": message, "type": kind, "param": param, "code": code}
    assert in_openais_shape(status, content) == {"error": expected}


@pytest.mark.parametrize(
    ("problem", "status", "kind", "code", "param"),
    [
        (
            BudgetError("m"),
            400,
            "invalid_request_error",
            "invalid_compute_budget",
            "Compute-Budget",
        ),
        (RequestError("m"), 400, "invalid_request_error", None, None),
        (TokensError("m"), 400, "invalid_request_error", None, "tokens"),
        (UnauthorizedError("m"), 401, "invalid_request_error", "invalid_api_key", None),
        (KeysUnavailableError("m"), 503, "server_error", "keys_unavailable", None),
        (SlowError("m"), 408, "invalid_request_error", "request_timeout", None),
        (TooLargeError("m"), 413, "invalid_request_error", "request_too_large", None),
        (RouteError("m"), 404, "invalid_request_error", "unknown_url", None),
        (ModelError("m"), 404, "invalid_request_error", "model_not_found", "model"),
        (MethodError("m"), 405, "invalid_request_error", "method_not_allowed", None),
        (HostError("m"), 403, "invalid_request_error", "host_not_allowed", None),
        (OriginError("m"), 403, "invalid_request_error", "origin_not_allowed", None),
        (MediaTypeError("m"), 415, "invalid_request_error", "unsupported_media_type", None),
        (
            CorpusNotFoundError("m"),
            404,
            "invalid_request_error",
            "corpus_not_found",
            "adaptation.corpus",
        ),
        (CorpusError("m"), 400, "invalid_request_error", "corpus_mismatch", "adaptation.corpus"),
        (MissingError("m"), 404, "invalid_request_error", "not_found", None),
        (ReadOnlyError("m"), 403, "invalid_request_error", "permission_denied", None),
        (LibraryError("m"), 400, "invalid_request_error", None, None),
        (AdaptationFailedError("m"), 500, "server_error", "adaptation_failed", None),
    ],
)
def test_each_exception_has_its_http_error(
    problem: Exception, status: int, kind: str, code: str | None, param: str | None
) -> None:
    actual, body = to_http(problem)

    assert actual == status
    assert body == {"error": {"message": "m", "type": kind, "param": param, "code": code}}
    assert is_the_clients(problem) is (status < 500)


def test_a_subclass_has_the_error_of_its_nearest_base() -> None:
    class FinerBudgetError(BudgetError):
        pass

    class FinerCorpusError(CorpusNotFoundError):
        pass

    assert to_http(FinerBudgetError("m")) == to_http(BudgetError("m"))
    assert to_http(FinerCorpusError("m")) == to_http(CorpusNotFoundError("m"))


@pytest.mark.parametrize(
    "problem",
    [
        ValueError("secret"),
        OSError("secret"),
        KeyError("secret"),
        MayflyError("secret"),
        StartError("secret"),
    ],
)
def test_an_unexpected_exception_is_a_500_without_details(problem: Exception) -> None:
    status, body = to_http(problem)
    error: dict[str, Any] = body["error"]

    assert status == 500
    assert "secret" not in json.dumps(body)
    assert error == {
        "message": error["message"],
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert "its log says why" in error["message"]
    assert not is_the_clients(problem)


def test_notes_survive_pickling_and_are_not_sent_to_clients() -> None:
    problem = CorpusError("corpus 'notes' is damaged")
    problem.add_note("its folder is /srv/notes")

    again = pickle.loads(pickle.dumps(problem))

    assert in_full(again) == "corpus 'notes' is damaged; its folder is /srv/notes"
    assert to_http(again)[1]["error"]["message"] == "corpus 'notes' is damaged"


def test_any_message_makes_a_valid_body() -> None:
    message = 'quotes " and \\ and \n and ü and \ud800'

    _, body = to_http(RequestError(message))

    assert json.loads(json.dumps(body).encode())["error"]["message"] == message


def test_corpora_that_cannot_be_reached_are_not_the_clients_fault() -> None:
    problem = CorpusUnavailableError("the corpora's database cannot be reached")
    problem.add_note("it is at db.internal")

    status, body = to_http(problem)

    assert (status, body["error"]["code"]) == (503, "corpora_unavailable")
    assert "db.internal" not in body["error"]["message"]
    assert (b"retry-after", b"5") in more_headers(problem)
    assert not is_the_clients(problem)
