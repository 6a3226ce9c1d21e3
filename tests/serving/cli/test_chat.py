"""`mayfly chat`: the line of facts; one prompt; and a conversation on a real terminal, stopped and
ended.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import typer
from starlette.responses import JSONResponse
from typer.testing import CliRunner, Result

from serving.cli.chat import chat, facts_line
from serving.client import AnswerError
from tests.serving.replay import CHAT, COMMENTS, FIRST, REPORT, Replay, events, spoken

_FACTS = (
    "loss of the prompt itself: 2.29 -> 1.42 (best after 4 of 5 sequences, which was kept) · "
    "5 steps in 1.23 s · stop alpha · sigma 1.00 to 0.51 · from paths.py x3, flow.py x2"
)


def run(replay: Replay, *arguments: str, stdin: str | None = None, **environment: str) -> Result:
    app = typer.Typer()
    app.command()(chat)
    return CliRunner(env=environment).invoke(app, ["--url", replay.url, *arguments], input=stdin)


class Terminal:
    """A conversation in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._here, there = pty.openpty()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import typer; from serving.cli.chat import chat; typer.run(chat)",
                *arguments,
            ],
            stdin=there,
            stdout=there,
            stderr=there,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        )
        os.close(there)
        self._unread = ""

    def type(self, line: str) -> None:
        os.write(self._here, f"{line}\n".encode())

    def interrupt(self) -> None:
        """Ctrl-C, no sooner than a person's: a signal between a prompt and the wait for a key is
        heard at the key.
        """
        time.sleep(0.2)
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str) -> None:
        """Read until the terminal shows a text."""
        end = time.monotonic() + 60
        while text not in self._unread:
            ready, _, _ = select.select([self._here], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} is not in {self._unread!r}"
            self._unread += os.read(self._here, 1 << 16).decode()
        self._unread = self._unread.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._here)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(*arguments)
    try:
        terminal.wait_for("nano answers")
        terminal.wait_for("> ")
        yield terminal
    finally:
        terminal.close()


def test_the_facts_of_an_adaptation_are_one_line() -> None:
    assert facts_line(REPORT) == _FACTS


def test_many_sources_are_counted_and_the_most_used_named() -> None:
    names = ["one"] + ["two"] * 2 + ["three"] * 3 + ["four"] * 4 + ["five"] * 5
    sources = [
        {"document": name, "name": name, "start": i, "times": 1} for i, name in enumerate(names)
    ]

    assert facts_line({**REPORT, "sources": sources}).endswith(
        " · from five x5, four x4, three x3 and 2 more"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {
                "reason": "nobody asked",
                "losses": [],
                "uncertainty": [],
                "sources": [],
                "prompt_loss": None,
            },
            "base model: nobody asked",
        ),
        (
            {
                "reason": "training diverged",
                "losses": [9.0, 99.0],
                "spent": {"steps": 2, "seconds": 0.5},
                "sources": [],
                "prompt_loss": None,
            },
            "2 steps in 0.50 s · base model: training diverged · sigma 1.00 to 0.51",
        ),
    ],
)
def test_an_answer_of_the_base_model_says_why(changes: dict[str, Any], line: str) -> None:
    assert facts_line({**REPORT, "adapted": False, **changes}) == line


def test_what_a_busy_server_took_is_said() -> None:
    assert " · 5 of 50 steps: it is busy · from " in facts_line(
        {**REPORT, "degraded": "5 of 50 steps: it is busy"}
    )


def test_one_prompt_is_answered_on_standard_output_and_the_facts_are_beside_it(
    replay: Replay,
) -> None:
    result = run(replay, "Hello?")

    assert result.exit_code == 0
    assert result.stdout == "Hello\tthere\u2028you\n"
    assert result.stderr == f"{_FACTS}\n"
    messages = [{"role": "user", "content": "Hello?"}]
    body = {"model": "nano", "messages": messages, "adaptation": {"progress": True}, "stream": True}
    assert replay.asked == [("chat/completions", body)]


def test_options_reach_the_server(replay: Replay) -> None:
    replay.plays = events({"choices": [{"index": 0, "text": "a, b):"}], "adaptation": REPORT})

    result = run(
        replay,
        "--completion",
        "--model",
        "mine",
        "--budget",
        "steps=5; alpha=1.0",
        "--corpus",
        "nx",
        "def add(",
    )

    assert result.stdout == "a, b):\n"
    (path, body) = replay.asked[0]
    assert path == "completions"
    assert body.pop("max_tokens") > 16
    assert body == {
        "model": "mine",
        "prompt": "def add(",
        "compute_budget": "steps=5; alpha=1.0",
        "adaptation": {"corpus": "nx", "progress": True},
        "stream": True,
    }


def test_the_base_model_answers_first_where_it_is_wanted(replay: Replay) -> None:
    result = run(replay, "--base", "Hello?", "--budget", "steps=5")

    assert result.stdout.splitlines()[0] == "base model:"
    assert "\nadapted:\n" in result.stdout
    assert result.stderr.count("steps in") == 1
    assert [body["compute_budget"] for _, body in replay.asked] == ["none", "steps=5"]


def test_standard_input_is_read_when_it_is_no_terminal(replay: Replay) -> None:
    result = run(replay, stdin="two\nlines")

    assert result.exit_code == 0
    assert replay.asked[0][1]["messages"][0]["content"] == "two\nlines"


@pytest.mark.parametrize(
    "names", [{"MAYFLY_API_KEY": "a", "OPENAI_API_KEY": "b"}, {"OPENAI_API_KEY": "a"}]
)
def test_the_key_comes_from_the_environment(replay: Replay, names: dict[str, str]) -> None:
    run(replay, "Hello?", **names)

    assert replay.keys[-1] == "Bearer a"


def test_an_empty_prompt_is_refused(replay: Replay) -> None:
    result = run(replay, stdin=" \n")

    assert isinstance(result.exception, AnswerError)
    assert replay.asked == []


def test_a_refusal_is_an_error_that_a_user_can_mend(replay: Replay) -> None:
    replay.refuses = JSONResponse({"error": {"message": "no such corpus"}}, 404)

    result = run(replay, "Hello?")

    assert isinstance(result.exception, AnswerError)
    assert str(result.exception) == "no such corpus"
    assert result.stdout == ""


def test_a_model_cannot_steer_the_terminal(replay: Replay) -> None:
    report = {
        **REPORT,
        "sources": [{"document": "x", "name": "x\x1b]0;title\x07", "start": 0, "times": 1}],
    }
    replay.plays = events({**FIRST, "adaptation": report}, *spoken("a\x1b[2J", "\x9b1mb\r"))

    result = run(replay, "Hello?")

    assert result.stdout == "a[2J1mb\n"
    assert "\x1b" not in result.stderr
    assert "\x07" not in result.stderr


def test_a_conversation_goes_on_and_obeys(replay: Replay) -> None:
    replay.plays = (*COMMENTS, 0.5, *CHAT[len(COMMENTS) :])
    with terminal("--url", replay.url) as user:
        user.type("Hello?")
        user.wait_for("step 2 of 50")
        user.wait_for("Hello")
        user.wait_for("5 steps in 1.23 s")
        user.type("/budget steps=3")
        user.wait_for("budget: steps=3")
        user.type("/corpus nx")
        user.wait_for("corpus: nx")
        user.type("/corpora")
        user.wait_for("there is no /corpora; /help")
        user.type("/help")
        user.wait_for("Ctrl-C stops an answer")
        user.type("And?")
        user.wait_for("Hello")
        user.wait_for("5 steps in 1.23 s")
        user.type("/quit")
        assert user.process.wait(30) == 0

    (_, first), (_, second) = replay.asked
    assert "compute_budget" not in first
    assert second["compute_budget"] == "steps=3"
    assert second["adaptation"]["corpus"] == "nx"
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in second["messages"]] == [
        "Hello?",
        "Hello\tthere\u2028you",
        "And?",
    ]


def test_ctrl_c_stops_the_answer_and_twice_ends(replay: Replay) -> None:
    replay.plays = (*events(FIRST, *spoken("Once upon"))[:-1], 60.0)
    with terminal("--url", replay.url) as user:
        user.type("A story?")
        user.wait_for("Once upon")
        user.interrupt()
        user.wait_for("Ctrl-C again ends")
        assert replay.left.wait(10)
        user.wait_for("> ")

        replay.plays = CHAT
        user.type("Go on.")
        user.wait_for("5 steps in 1.23 s")
        user.wait_for("> ")
        user.interrupt()
        user.wait_for("Ctrl-C again ends")
        user.wait_for("> ")
        user.interrupt()
        assert user.process.wait(30) == 0

    said = [turn["content"] for turn in replay.asked[-1][1]["messages"]]
    assert said == ["A story?", "Once upon", "Go on."]


def test_an_error_does_not_end_a_conversation(replay: Replay) -> None:
    with terminal("--url", replay.url) as user:
        replay.refuses = JSONResponse({"error": {"message": "compute_budget is [odd]"}}, 400)
        user.type("Hello?")
        user.wait_for("mayfly: compute_budget is [odd]")
        replay.refuses = None
        user.type("Hello again?")
        user.wait_for("5 steps in 1.23 s")
        user.wait_for("> ")  # before its prompt the key would be the terminal's own
        user.type("\x04")
        assert user.process.wait(30) == 0

    assert [turn["content"] for turn in replay.asked[-1][1]["messages"]] == ["Hello again?"]
