"""The exceptions: they survive pickling, and each becomes the HTTP answer of its row, telling no secrets."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from selection.store import CorpusError, CorpusNotFoundError
from selection.uploads import LibraryError, MissingError
from serving.errors import (
    AdaptationFailedError,
    BudgetError,
    MayflyError,
    MethodError,
    RequestError,
    RouteError,
    StartError,
    TooLargeError,
    is_the_clients,
    to_http,
)

_ALL = [
    AdaptationFailedError,
    BudgetError,
    CorpusError,
    CorpusNotFoundError,
    MayflyError,
    MethodError,
    RequestError,
    RouteError,
    StartError,
    TooLargeError,
]


@pytest.mark.parametrize("kind", _ALL)
def test_every_exception_survives_pickling(kind: type[Exception]) -> None:
    problem = kind("what happened, and what to do: “ü”")

    again = pickle.loads(pickle.dumps(problem))

    assert type(again) is kind
    assert str(again) == str(problem)
    assert to_http(again) == to_http(problem)


def test_every_exception_of_ours_is_tried_above() -> None:
    def below(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    ours = {
        kind
        for kind in below(MayflyError) | below(CorpusError)
        if kind.__module__ in {"serving.errors", "selection.store"}
    }

    assert ours == set(_ALL)


@pytest.mark.parametrize(
    ("problem", "status", "kind", "code", "param"),
    [
        (BudgetError("m"), 400, "invalid_request_error", "invalid_compute_budget", "Compute-Budget"),
        (RequestError("m"), 400, "invalid_request_error", None, None),
        (TooLargeError("m"), 413, "invalid_request_error", "request_too_large", None),
        (RouteError("m"), 404, "invalid_request_error", "unknown_url", None),
        (MethodError("m"), 405, "invalid_request_error", "method_not_allowed", None),
        (CorpusNotFoundError("m"), 404, "invalid_request_error", "corpus_not_found", "adaptation.corpus"),
        (CorpusError("m"), 400, "invalid_request_error", "corpus_mismatch", "adaptation.corpus"),
        (MissingError("m"), 404, "invalid_request_error", "not_found", None),
        (LibraryError("m"), 400, "invalid_request_error", None, None),
        (AdaptationFailedError("m"), 500, "server_error", "adaptation_failed", None),
    ],
)
def test_each_gets_its_answer_in_openais_shape(
    problem: Exception, status: int, kind: str, code: str | None, param: str | None
) -> None:
    answered, body = to_http(problem)

    assert answered == status
    assert body == {"error": {"message": "m", "type": kind, "param": param, "code": code}}
    assert is_the_clients(problem) is (status < 500)


def test_a_kind_made_later_gets_the_answer_of_its_nearest_base() -> None:
    class FinerBudgetError(BudgetError):
        pass

    class FinerCorpusError(CorpusNotFoundError):
        pass

    assert to_http(FinerBudgetError("m")) == to_http(BudgetError("m"))
    assert to_http(FinerCorpusError("m")) == to_http(CorpusNotFoundError("m"))


@pytest.mark.parametrize(
    "problem",
    [ValueError("secret"), OSError("secret"), KeyError("secret"), MayflyError("secret"), StartError("secret")],
)
def test_what_we_did_not_foresee_tells_nothing_of_our_insides(problem: Exception) -> None:
    status, body = to_http(problem)
    error: dict[str, Any] = body["error"]

    assert status == 500
    assert "secret" not in json.dumps(body)
    assert error == {"message": error["message"], "type": "server_error", "param": None, "code": None}
    assert "its log says why" in error["message"]
    assert not is_the_clients(problem)


def test_any_message_makes_a_body_that_can_be_read() -> None:
    message = 'quotes " and \\ and \n and ü and \ud800'

    _, body = to_http(RequestError(message))

    assert json.loads(json.dumps(body).encode())["error"]["message"] == message
