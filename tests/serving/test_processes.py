"""Calls in a new process."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from serving.errors import SettingsError
from serving.processes import Call, RemoteTracebackError


def test_a_call_returns_the_result_of_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    with Call(describe, "a", separator="-") as call:
        text, pid = call.result()

    assert text == "a-b"
    assert pid != os.getpid()
    # Standard output of a command is not for what libraries print.
    assert capfd.readouterr() == ("", "printed\n")


def test_an_error_is_raised_here_with_its_notes_and_traceback() -> None:
    with Call(fail) as call, pytest.raises(SettingsError, match="invalid") as raised:
        call.result()

    assert raised.value.__notes__ == ["a note"]
    assert isinstance(raised.value.__cause__, RemoteTracebackError)
    assert "in fail" in str(raised.value.__cause__)


def test_a_process_that_dies_is_reported() -> None:
    with Call(os._exit, 3) as call, pytest.raises(RuntimeError, match="status 3"):
        call.result()


def test_a_call_ends_with_its_block() -> None:
    children = psutil.Process().children()
    with Call(time.sleep, 3600):
        (process,) = set(psutil.Process().children()) - set(children)

    assert not process.is_running()


def describe(text: str, separator: str) -> tuple[str, int]:
    print("printed", flush=True)
    return f"{text}{separator}b", os.getpid()


def fail() -> None:
    problem = SettingsError("invalid")
    problem.add_note("a note")
    raise problem
