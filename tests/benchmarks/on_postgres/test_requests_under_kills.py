"""What a request may get while the database of the corpora is killed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.on_postgres.judge import CORPUS, KINDS, Kind, Known
from benchmarks.on_postgres.requests_under_kills import ALLOWANCE_SECONDS, FAILED, Counts

TEXT = "class Index:\n"
BY_NAME = {kind.name: kind for kind in KINDS}
STEPS, CHAT, NONE = (
    BY_NAME[name] for name in ("completion with steps", "chat with steps", "completion with none")
)
SEARCH = BY_NAME["search"]
REASON = "the adaptation failed; the server's log says why"
SOURCE = {"document": 7, "name": "index.py", "start": 100, "times": 2}


@pytest.fixture
def known() -> Known:
    answers = {
        (STEPS.path, TEXT): {" base"},
        (CHAT.path, TEXT): {"base"},
        (SEARCH.path, TEXT): {'[["index.py", "found"]]', "[]"},
    }
    return Known({(7, "index.py"): {0, 100}}, answers)


def completion(text: str = " base", **report: Any) -> dict[str, Any]:
    base = {
        "adapted": False, "reason": REASON, "sources": [], "shown": None, "adapter": None,
        "corpus": CORPUS, "spent": {"steps": 0}, "stop": "failed",
    }  # fmt: skip
    return {"choices": [{"text": text}], "adaptation": {**base, **report}}


def adapted(**report: Any) -> dict[str, Any]:
    base = {"adapted": True, "reason": None, "adapter": "a", "sources": [SOURCE]}
    return completion(" other", **{**base, "stop": "steps", "spent": {"steps": 2}, **report})


def found(text: str = "found") -> dict[str, Any]:
    return {"data": [{"filename": "index.py", "content": [{"type": "text", "text": text}]}]}


def unavailable(code: str = "corpora_unavailable") -> dict[str, Any]:
    return {"error": {"message": "the database cannot be reached", "code": code}}


@pytest.mark.parametrize(
    ("kind", "status", "headers", "body", "outcome"),
    [
        (STEPS, 200, {}, completion(), FAILED),
        (STEPS, 200, {}, adapted(), "adapted"),
        # What was shown changes the answer of the base model.
        (STEPS, 200, {}, completion(" x", shown={"documents": ["index.py"]}), "shown, failed"),
        (NONE, 200, {}, completion(stop="none"), "base model, none"),
        (
            CHAT,
            200,
            {},
            {**completion(), "choices": [{"message": {"content": "base"}}]},
            FAILED,
        ),
        (SEARCH, 200, {}, found(), "found"),
        (SEARCH, 200, {}, {"data": []}, "found"),
        (SEARCH, 503, {"retry-after": "5"}, unavailable(), "unavailable"),
    ],
)
def test_right_answers_and_clear_errors_are_accepted(
    known: Known, kind: Kind, status: int, headers: dict[str, str], body: Any, outcome: str
) -> None:
    assert known.judge(kind, TEXT, status, headers, body) == (outcome, None)


@pytest.mark.parametrize(
    ("kind", "status", "headers", "body"),
    [
        (STEPS, 200, {}, completion(" other")),
        (STEPS, 200, {}, completion(reason=None)),
        (STEPS, 200, {}, completion(shown={"documents": ["foreign.py"]})),
        (STEPS, 200, {}, adapted(sources=[])),
        (STEPS, 200, {}, adapted(sources=[SOURCE, {**SOURCE, "name": "foreign.py"}])),
        (STEPS, 200, {}, adapted(sources=[{**SOURCE, "document": 8}])),
        (STEPS, 200, {}, adapted(sources=[{**SOURCE, "start": 1}])),
        (STEPS, 200, {}, adapted(corpus="another")),
        (STEPS, 200, {}, adapted(adapter=None)),
        (NONE, 200, {}, adapted()),
        (STEPS, 200, {}, {"choices": []}),
        (STEPS, 200, {}, "not JSON"),
        # Only a search cannot be answered without the database.
        (STEPS, 503, {"retry-after": "5"}, unavailable()),
        (STEPS, 500, {}, {"error": {"message": "x", "code": None}}),
        (SEARCH, 200, {}, found("other")),
        (SEARCH, 503, {}, unavailable()),
        (SEARCH, 503, {"retry-after": "soon"}, unavailable()),
        (SEARCH, 503, {"retry-after": "5"}, unavailable("engine_restarting")),
        (SEARCH, 404, {}, {"error": {"code": "not_found"}}),
        (SEARCH, 503, {"retry-after": "5"}, "no server is available"),
    ],
)
def test_any_other_response_is_wrong(
    known: Known, kind: Kind, status: int, headers: dict[str, str], body: Any
) -> None:
    assert known.judge(kind, TEXT, status, headers, body)[1] is not None


def test_requests_are_counted_by_what_they_got_and_when() -> None:
    counts = Counts()
    counts.record(STEPS, STEPS.seconds - 1, "adapted", None)
    counts.injected = 2
    counts.record(STEPS, STEPS.seconds + ALLOWANCE_SECONDS, FAILED, None)
    counts.record(NONE, ALLOWANCE_SECONDS + 0.5, "base model, none", None)
    counts.record(SEARCH, 1.0, "unavailable", None)
    counts.record(SEARCH, 1.0, "500", "status 500")
    counts.hang(SEARCH)
    counts.hang(SEARCH)
    counts.leave("an engine")
    counts.recovered, counts.recovery_seconds = 2, [0.5, 1.5]

    result = counts.as_dict()

    assert {key: result[key] for key in ("answered", "unavailable", "wrong", "late", "hung")} == {
        "answered": 3,
        "unavailable": 1,
        "wrong": 1,
        "late": 1,
        "hung": 2,
    }
    assert result["left"] == 1
    assert result["recovery_seconds"] == {"p50": 1.0, "max": 1.5}
    assert result["excess_seconds"] == {"before": 0.0, "under_kills": ALLOWANCE_SECONDS + 0.5}
    assert result["outcomes"]["search"] == {"500": 1, "unavailable": 1}
    assert result["adapted_seconds"] == STEPS.seconds - 1
    # Equal ones are counted.
    assert sorted(result["examples"].values()) == [1, 1, 1, 2]


def test_an_adaptation_that_fails_before_the_first_kill_is_wrong() -> None:
    counts = Counts()
    counts.record(STEPS, 1.0, FAILED, None)
    counts.injected = 1
    counts.record(STEPS, 1.0, FAILED, None)

    assert (counts.wrong, counts.answered) == (1, 1)


def test_without_a_recovery_there_are_no_seconds() -> None:
    assert Counts(injected=1).as_dict()["recovery_seconds"] == {"p50": None, "max": None}
