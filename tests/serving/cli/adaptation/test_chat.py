"""`mayfly chat`: the report line, a single prompt, and an interactive chat on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from starlette.responses import JSONResponse
from typer.testing import CliRunner, Result

from selection.errors import SelectionError
from serving.cli.adaptation.chat import chat
from serving.cli.adaptation.report_line import format_report
from serving.client import AnswerError
from serving.errors import SettingsError
from tests.serving.replay import CHAT, COMMENTS, FIRST, REPORT, Replay, events, spoken

_REPORT_LINE = (
    "prompt loss 2.29 -> 1.42 (best adapter kept: after 4 of 5 sequences) · "
    "5 steps in 1.23 s · stop alpha · sigma 1.00 to 0.51 · from paths.py x3, flow.py x2"
)


def run(replay: Replay, *arguments: str, stdin: str | None = None, **environment: str) -> Result:
    app = typer.Typer()
    app.command()(chat)
    return CliRunner(env=environment).invoke(app, ["--url", replay.url, *arguments], input=stdin)


class Terminal:
    """An interactive chat in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import typer; from serving.cli.adaptation.chat import chat; typer.run(chat)",
                *arguments,
            ],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        )
        os.close(terminal)
        self._unread = ""

    def type(self, line: str) -> None:
        os.write(self._controller, f"{line}\n".encode())

    def interrupt(self) -> None:
        """Send what Ctrl-C sends.

        The pause lets the process get from printing its prompt to waiting for a key; Python would
        handle a signal in between only after the next key.
        """
        time.sleep(0.2)
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str) -> None:
        """Read until the terminal shows a text."""
        end = time.monotonic() + 60
        while text not in self._unread:
            ready, _, _ = select.select(
                [self._controller], [], [], max(0.0, end - time.monotonic())
            )
            assert ready, f"{text!r} is not in {self._unread!r}"
            self._unread += os.read(self._controller, 1 << 16).decode()
        self._unread = self._unread.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._controller)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    terminal = Terminal(*arguments)
    try:
        terminal.wait_for("chatting with nano")
        terminal.wait_for("> ")
        yield terminal
    finally:
        terminal.close()


def test_the_losses_that_auto_has_decided_by_are_in_the_line() -> None:
    auto = {"answers": "corpus", "losses": {"base": 2.5, "corpus": 2.25}}

    assert "loss of the prompt: base 2.500; corpus 2.250" in format_report({**REPORT, "auto": auto})


def test_a_report_is_one_line() -> None:
    assert format_report(REPORT) == _REPORT_LINE


def test_the_most_used_sources_are_named_and_the_others_counted() -> None:
    names = ["one"] + ["two"] * 2 + ["three"] * 3 + ["four"] * 4 + ["five"] * 5
    sources = [
        {"document": name, "name": name, "start": i, "times": 1} for i, name in enumerate(names)
    ]

    assert format_report({**REPORT, "sources": sources}).endswith(
        " · from five x5, four x4, three x3 and 2 more"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {
                "reason": "no adaptation was asked for",
                "losses": [],
                "uncertainty": [],
                "sources": [],
                "prompt_loss": None,
            },
            "base model: no adaptation was asked for",
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
def test_the_report_of_the_base_model_says_why_there_is_no_adapter(
    changes: dict[str, Any], line: str
) -> None:
    assert format_report({**REPORT, "adapted": False, **changes}) == line


def test_the_report_shows_how_a_busy_server_degraded_the_adaptation() -> None:
    assert " · 5 of 50 steps: it is busy · from " in format_report(
        {**REPORT, "degraded": "5 of 50 steps: it is busy"}
    )


def test_the_report_says_what_was_shown() -> None:
    shown = {"sequences": 3, "of": 8, "tokens": 120, "documents": ["a", "b", "c"], "reason": "full"}

    assert " · shown 3 of 8, 120 tokens · from " in format_report({**REPORT, "shown": shown})


def test_the_report_names_the_adapter_of_the_corpus() -> None:
    start = {"from": "corpus", "sequences": 400, "not_learnt": 0}
    instant: dict[str, Any] = {"losses": [], "uncertainty": [], "sources": [], "prompt_loss": None}

    assert " · the corpus's adapter learnt 400 sequences · from " in format_report(
        {**REPORT, "start": start}
    )
    assert format_report(
        {**REPORT, **instant, "stop": "instant", "start": {**start, "not_learnt": 3}}
    ) == ("stop instant · the corpus's adapter learnt 400 sequences, 3 not yet")
    assert (
        format_report(
            {**REPORT, **instant, "stop": "diverged", "reason": "training diverged", "start": start}
        )
        == "stop diverged · training diverged · the corpus's adapter learnt 400 sequences"
    )
    fresh = {"from": "fresh", "reason": "the corpus has no adapter"}
    assert format_report({**REPORT, "start": fresh}) == _REPORT_LINE


def test_the_answer_goes_to_standard_output_and_the_report_to_standard_error(
    replay: Replay,
) -> None:
    result = run(replay, "Hello?")

    assert result.exit_code == 0
    assert result.stdout == "Hello\tthere\u2028you\n"
    assert result.stderr == f"{_REPORT_LINE}\n"
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
    assert body == {
        "model": "mine",
        "max_tokens": 256,
        "prompt": "def add(",
        "compute_budget": "steps=5; alpha=1.0",
        "adaptation": {"corpus": "nx", "progress": True},
        "stream": True,
    }


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ([], None),
        (["--completion"], 256),
        (["--max-tokens", "32"], 32),
        (["--completion", "--max-tokens", "512"], 512),
    ],
)
def test_an_answer_is_as_long_as_the_user_lets_it(
    replay: Replay, options: list[str], limit: int | None
) -> None:
    run(replay, "Hello?", "--base", *options)

    assert [body.get("max_tokens") for _, body in replay.asked] == [limit] * 2


def test_an_answer_without_tokens_is_refused(replay: Replay) -> None:
    assert run(replay, "Hello?", "--max-tokens", "0").exit_code == 2
    assert not replay.asked


def test_with_base_the_base_model_answers_first(replay: Replay) -> None:
    result = run(replay, "--base", "Hello?", "--budget", "steps=5")

    assert result.stdout.splitlines()[0] == "base model:"
    assert "\nadapted:\n" in result.stdout
    assert result.stderr.count("steps in") == 1
    assert [body["compute_budget"] for _, body in replay.asked] == ["none", "steps=5"]


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A file with a row of each kind."""
    file = tmp_path / "orders.jsonl"
    messages = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "One tea."},
        {"role": "assistant", "content": "1*tea"},
    ]
    rows = [
        {"prompt": "Two coffees.", "completion": "2*coffee"},
        {"messages": messages},
        {"text": "Tea is green or black."},
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def test_examples_of_a_file_and_what_is_shown_reach_the_server(
    replay: Replay, orders: Path
) -> None:
    options = ("--show", "8", "--examples-as", "single", "--reuse", "examples")

    result = run(replay, "--examples", str(orders), *options, "Three teas.")

    assert result.exit_code == 0, result.output
    adaptation = replay.asked[0][1]["adaptation"]
    pair, conversation = adaptation["examples"]
    assert [message["content"] for message in pair["messages"]] == ["Two coffees.", "2*coffee"]
    assert [message["role"] for message in conversation["messages"]] == [
        "system",
        "user",
        "assistant",
    ]
    assert adaptation["texts"] == ["Tea is green or black."]
    assert adaptation["show"] == 8
    assert (adaptation["examples_as"], adaptation["reuse"]) == ("single", "examples")


def test_an_invalid_row_of_examples_is_named_before_anything_is_asked(
    replay: Replay, orders: Path
) -> None:
    orders.write_text(orders.read_text() + '{"prompt": "Four teas."}\n')

    result = run(replay, "--examples", str(orders), "Three teas.")

    assert isinstance(result.exception, SelectionError)
    assert "orders.jsonl, row 4" in str(result.exception)
    assert replay.asked == []


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), ("\n", "the file has no rows")]
)
def test_a_file_without_examples_is_refused(
    replay: Replay, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "none.jsonl"
    if content is not None:
        file.write_text(content)

    result = run(replay, "--examples", str(file), "Three teas.")

    assert isinstance(result.exception, SettingsError)
    assert message in str(result.exception)


def test_with_base_and_show_the_base_model_answers_with_and_without_what_is_shown(
    replay: Replay, orders: Path
) -> None:
    result = run(replay, "--base", "--examples", str(orders), "--show", "2", "Three teas.")

    assert result.exit_code == 0, result.output
    bodies = [body for _, body in replay.asked]
    assert [body.get("compute_budget") for body in bodies] == ["none", "none", None]
    assert [body["adaptation"]["show"] for body in bodies] == [0, 2, 2]
    assert ["examples" in body["adaptation"] for body in bodies] == [False, True, True]


def test_standard_input_is_the_prompt_if_it_is_not_a_terminal(replay: Replay) -> None:
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


def test_an_error_of_the_server_is_raised_with_its_message(replay: Replay) -> None:
    replay.refuses = JSONResponse({"error": {"message": "no such corpus"}}, 404)

    result = run(replay, "Hello?")

    assert isinstance(result.exception, AnswerError)
    assert str(result.exception) == "no such corpus"
    assert result.stdout == ""


def test_a_model_cannot_control_the_terminal(replay: Replay) -> None:
    report = {
        **REPORT,
        "sources": [{"document": "x", "name": "x\x1b]0;title\x07", "start": 0, "times": 1}],
    }
    replay.plays = events({**FIRST, "adaptation": report}, *spoken("a\x1b[2J", "\x9b1mb\r"))

    result = run(replay, "Hello?")

    assert result.stdout == "a[2J1mb\n"
    assert "\x1b" not in result.stderr
    assert "\x07" not in result.stderr


def test_an_interactive_chat_runs_commands_and_keeps_its_messages(
    replay: Replay, orders: Path
) -> None:
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
        user.type(f"/examples {orders}")
        user.wait_for("2 examples and 1 text from orders.jsonl")
        user.type("/examples nowhere.jsonl")
        user.wait_for("No such file")
        user.type("/show 3")
        user.wait_for("show: 3")
        user.type("/show some")
        user.wait_for("invalid number 'some'")
        user.type("/corpora")
        user.wait_for("unknown command /corpora; /help")
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
    assert (len(second["adaptation"]["examples"]), second["adaptation"]["show"]) == (2, 3)
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in second["messages"]] == [
        "Hello?",
        "Hello\tthere\u2028you",
        "And?",
    ]


def test_ctrl_c_stops_the_answer_and_twice_ends_the_chat(replay: Replay) -> None:
    replay.plays = (*events(FIRST, *spoken("Once upon"))[:-1], 60.0)
    with terminal("--url", replay.url) as user:
        user.type("A story?")
        user.wait_for("Once upon")
        user.interrupt()
        user.wait_for("Ctrl-C again to end")
        assert replay.left.wait(10)
        user.wait_for("> ")

        replay.plays = CHAT
        user.type("Go on.")
        user.wait_for("5 steps in 1.23 s")
        user.wait_for("> ")
        user.interrupt()
        user.wait_for("Ctrl-C again to end")
        user.wait_for("> ")
        user.interrupt()
        assert user.process.wait(30) == 0

    contents = [turn["content"] for turn in replay.asked[-1][1]["messages"]]
    assert contents == ["A story?", "Once upon", "Go on."]


def test_an_error_does_not_end_the_chat(replay: Replay) -> None:
    with terminal("--url", replay.url) as user:
        replay.refuses = JSONResponse({"error": {"message": "compute_budget is [odd]"}}, 400)
        user.type("Hello?")
        user.wait_for("mayfly: compute_budget is [odd]")
        replay.refuses = None
        user.type("Hello again?")
        user.wait_for("5 steps in 1.23 s")
        # Before the prompt, the terminal itself would handle the key.
        user.wait_for("> ")
        user.type("\x04")
        assert user.process.wait(30) == 0

    assert [turn["content"] for turn in replay.asked[-1][1]["messages"]] == ["Hello again?"]
