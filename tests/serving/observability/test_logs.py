"""The logs: one line per event with its request and the outcome, and nothing of its content."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.errors import CorpusError
from serving.errors import StageFailedError
from serving.observability.logs import (
    REQUEST_ID,
    JsonLines,
    TextLines,
    log_failure,
    log_request,
    set_up_logs,
)
from tests.serving.reports import REPORT

log = logging.getLogger("serving.somewhere")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream for the logs of a test; the configuration of `set_up_logs` is undone afterwards."""
    root = logging.getLogger()
    level = root.level
    yield io.StringIO()
    for handler in [*root.handlers]:
        if isinstance(handler.formatter, JsonLines | TextLines):
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def lines(stream: io.StringIO) -> Callable[[], list[dict[str, Any]]]:
    """Gives the events of a server that logs JSON."""
    set_up_logs("json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_has_time_level_logger_and_message(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    log.info("the corpus %s is open", "web")

    (event,) = lines()
    assert set(event) == {"time", "level", "logger", "message"}
    assert (event["level"], event["logger"]) == ("INFO", "serving.somewhere")
    assert event["message"] == "the corpus web is open"
    assert event["time"].endswith("Z")
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (StageFailedError("the trainer has ended"), "a training failed: the trainer has ended"),
        (CorpusError("it is damaged"), "a training failed: it is damaged"),
        (TimeoutError(), "a training failed: TimeoutError"),
    ],
)
def test_a_failure_that_its_message_explains_is_one_line(
    lines: Callable[[], list[dict[str, Any]]], problem: Exception, message: str
) -> None:
    problem.add_note("see the disk") if isinstance(problem, CorpusError) else None

    log_failure(log, "a training failed", problem)

    (event,) = lines()
    assert event["message"].startswith(message)
    assert ("see the disk" in event["message"]) is isinstance(problem, CorpusError)
    assert (event["level"], "error" in event) == ("ERROR", False)


def test_a_bug_is_logged_with_its_stack(lines: Callable[[], list[dict[str, Any]]]) -> None:
    try:
        raise ValueError("the weights are odd")
    except ValueError as problem:
        log_failure(log, "a training failed", problem, logging.WARNING)

    (event,) = lines()
    assert (event["level"], event["message"]) == ("WARNING", "a training failed")
    assert event["error"]["message"] == "the weights are odd"
    assert event["error"]["stack"]


def test_a_request_is_logged_with_its_adaptation(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    REQUEST_ID.set("r-1")

    log_request("POST", "/v1/completions", 200, 1.23456, REPORT)

    (event,) = lines()
    REQUEST_ID.set(None)
    assert event["message"] == "POST /v1/completions 200"
    assert event["request_id"] == "r-1"
    assert event["seconds"] == 1.2346
    assert (event["steps"], event["stop"], event["adapted"]) == (2, "alpha", True)
    assert (event["method"], event["path"], event["status"]) == ("POST", "/v1/completions", 200)
    assert not any(private in json.dumps(event) for private in ("notes-of-a-patient", "diagnosis"))


def test_a_request_without_adaptation_is_logged_without_one(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    log_request("GET", "/v1/models", 200, 0.001, None)

    (event,) = lines()
    assert not {"steps", "stop", "adapted"} & set(event)


def test_polled_routes_are_logged_only_when_they_fail(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    for status in (200, 503):
        log_request("GET", "/ready", status, 0.001, None)

    (event,) = lines()
    assert (event["level"], event["status"]) == ("ERROR", 503)


async def test_events_of_concurrent_requests_have_their_own_ids(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    async def request(name: str) -> None:
        REQUEST_ID.set(name)
        await asyncio.sleep(0.01)
        await asyncio.to_thread(log.warning, "slow: %s", name)

    await asyncio.gather(*(request(f"r-{number}") for number in range(8)))

    assert {(event["message"], event["request_id"]) for event in lines()} == {
        (f"slow: r-{number}", f"r-{number}") for number in range(8)
    }
    assert REQUEST_ID.get() is None


def test_an_exception_is_logged_by_type_message_and_stack_without_variables(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    def answer(prompt: str) -> None:
        try:
            raise KeyError("layer 3")
        except KeyError as cause:
            raise RuntimeError("the weights are gone") from cause

    try:
        answer("my secret")
    except RuntimeError:
        log.exception("a request failed")

    (event,) = lines()
    error = event["error"]
    assert (error["type"], error["message"]) == ("RuntimeError", "the weights are gone")
    assert error["stack"][-1].endswith("in answer")
    assert [cause["type"] for cause in error["causes"]] == ["KeyError"]
    assert "my secret" not in json.dumps(event)


def test_the_notes_of_an_exception_are_logged(lines: Callable[[], list[dict[str, Any]]]) -> None:
    problem = ValueError("corpus 'notes' is damaged")
    problem.add_note("its folder is /srv/notes")

    log.error("a request failed", exc_info=problem)

    assert lines()[0]["error"]["message"] == "corpus 'notes' is damaged; its folder is /srv/notes"


def test_groups_and_long_chains_of_exceptions_are_truncated(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    chained: Exception = ValueError("x" * 100_000)
    for _ in range(100):
        outer = RuntimeError("again")
        outer.__cause__ = chained
        chained = outer
    group = ExceptionGroup("two at once", [chained, ValueError("x" * 100_000)])

    log.error("failed", exc_info=group)

    (event,) = lines()
    assert len(event["error"]["causes"]) == 2
    assert len(json.dumps(event)) < 10_000


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer hunter2hunter2",
        "bearer abc",
        "mf-0123456789abcdefABCDEF_-01234567",
        "sk-proj-1234567890",
    ],
)
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_anything_like_a_key_is_masked(secret: str, log_format: Any, stream: io.StringIO) -> None:
    set_up_logs(log_format, stream)

    log.error("refused %s", secret, exc_info=ValueError(f"no such key: {secret}"))

    assert secret.split()[-1] not in stream.getvalue()
    assert "***" in stream.getvalue()


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=50))
def test_an_event_is_one_line_for_any_input_of_clients(message: str, path: str, name: str) -> None:
    token = REQUEST_ID.set(name)
    sinks = {form: io.StringIO() for form in (JsonLines, TextLines)}
    handlers: list[logging.Handler] = []
    for form, sink in sinks.items():
        handler = logging.StreamHandler(sink)
        handler.setFormatter(form())
        handlers.append(handler)
    root = logging.getLogger()
    earlier, root.handlers = root.handlers, handlers
    try:
        logging.getLogger("serving").setLevel(logging.INFO)
        log.warning("%s", message)
        log_request("GET", path, 404, 0.1, None)
    finally:
        root.handlers = earlier
        REQUEST_ID.reset(token)

    warning, ended = (json.loads(line) for line in sinks[JsonLines].getvalue().splitlines())
    assert (warning["request_id"], ended["status"]) == (name, 404)
    assert ended["path"].isascii()
    assert len(sinks[TextLines].getvalue().splitlines()) == 2


def test_an_event_as_text(stream: io.StringIO) -> None:
    set_up_logs("text", stream)
    token = REQUEST_ID.set("r-1")

    log_request("POST", "/v1/completions", 200, 1.25, REPORT)
    log.error("a request failed", exc_info=RuntimeError("the weights are gone"))

    REQUEST_ID.reset(token)
    first, second, third = stream.getvalue().splitlines()
    assert first.split(" ", 1)[1] == (
        "INFO serving.observability.logs [r-1] POST /v1/completions 200 "
        "seconds=1.25 steps=2 stop=alpha adapted=True"
    )
    assert second.endswith("ERROR serving.somewhere [r-1] a request failed")
    assert third.strip() == "RuntimeError: the weights are gone"


def test_a_second_configuration_replaces_the_first(stream: io.StringIO) -> None:
    later = io.StringIO()
    set_up_logs("text", stream)
    set_up_logs("json", later)

    log.info("once")
    logging.getLogger("a.library").info("hidden")
    logging.getLogger("a.library").warning("shown")

    assert stream.getvalue() == ""
    assert [json.loads(line)["message"] for line in later.getvalue().splitlines()] == [
        "once",
        "shown",
    ]
