"""The log relay shows all warnings of a server's processes on the command's terminal, and nothing
of Ray's.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.environment import LOG_RELAY
from serving.observability import log_relay
from serving.observability.log_relay import Relay, RelayHandler, relay_errors

_REPLICA = """
import logging, sys
from serving.observability.log_relay import relay_errors
relay_errors(logging.getLogger())
for number in range(300):
    logging.getLogger("serving.http.gateway").error("request %s-%d failed", sys.argv[1], number)
"""


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A logger that takes the place of the root logger."""
    monkeypatch.setattr(log_relay, "_POLL_SECONDS", 0.01)
    logger = logging.getLogger("a process")
    logger.propagate = False
    yield logger
    logger.handlers.clear()


def log(
    logger: logging.Logger, name: str, level: int, message: str, problem: Exception | None = None
) -> None:
    """Handle a record of the logger called `name`, as the root logger would."""
    error = None if problem is None else (type(problem), problem, problem.__traceback__)
    logger.handle(logging.LogRecord(name, level, "file.py", 1, message, None, error))


def test_our_warnings_and_errors_of_libraries_except_rays_are_shown(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    relay = Relay("text", tmp_path, terminal)
    monkeypatch.setenv(LOG_RELAY, relay.variable)
    relay_errors(logger)
    # A second call has no effect.
    relay_errors(logger)

    log(logger, "serving.http.gateway", logging.WARNING, "ours")
    log(logger, "serving.http.gateway", logging.INFO, "an ended request")
    log(logger, "vllm.v1.engine.core", logging.ERROR, "theirs", ValueError("the grammar is wrong"))
    log(logger, "vllm.v1.engine.core", logging.WARNING, "a hint")
    log(logger, "ray.serve", logging.ERROR, "noise")
    relay.end()

    lines = terminal.getvalue().splitlines()
    assert [line.split(" ", 1)[1].strip() for line in lines] == [
        "WARNING serving.http.gateway ours",
        "ERROR vllm.v1.engine.core theirs",
        "ValueError: the grammar is wrong",
    ]


def test_lines_are_json_if_the_servers_logs_are(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    relay = Relay("json", tmp_path, terminal)
    monkeypatch.setenv(LOG_RELAY, relay.variable)
    relay_errors(logger)

    log(logger, "serving.http.gateway", logging.ERROR, "a request failed", KeyError("layer 3"))
    relay.end()

    (event,) = (json.loads(line) for line in terminal.getvalue().splitlines())
    assert (event["message"], event["error"]["type"]) == ("a request failed", "KeyError")


def test_no_line_is_lost_while_the_command_is_busy_or_starts_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_relay, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(log_relay, "_ROTATE_BYTES", 2000)
    terminal = io.StringIO()
    relay = Relay("text", tmp_path, terminal)
    monkeypatch.setenv(LOG_RELAY, relay.variable)

    processes = [subprocess.Popen([sys.executable, "-c", _REPLICA, name]) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    relay.end()

    messages = [line.split("serving.http.gateway ")[1] for line in terminal.getvalue().splitlines()]
    assert set(messages) == {
        f"request {name}-{number} failed" for name in "ab" for number in range(300)
    }


def test_a_process_continues_after_its_command_has_ended(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_RELAY, f"text:{tmp_path}/gone/relayed")
    relay_errors(logger)

    log(logger, "serving.http.gateway", logging.ERROR, "nobody reads this")

    assert not (tmp_path / "gone").exists()


def test_without_a_command_nothing_is_relayed(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOG_RELAY, raising=False)

    relay_errors(logger)

    assert not any(isinstance(each, RelayHandler) for each in logger.handlers)


def test_a_closed_terminal_does_not_stop_the_server(tmp_path: Path, logger: logging.Logger) -> None:
    terminal = io.StringIO()
    terminal.close()
    relay = Relay("text", tmp_path, terminal)

    (tmp_path / "relayed").write_text("a line\n")
    relay.end()
