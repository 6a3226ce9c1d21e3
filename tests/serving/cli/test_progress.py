"""Progress on a pipe: a line every few seconds, a heartbeat when nothing happens, and a message
when the work is interrupted.
"""

from __future__ import annotations

import io
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import typer

from serving.cli.console import PlainConsole
from serving.cli.progress import (
    EVERY_SECONDS,
    QUIET_SECONDS,
    ProgressLines,
    Status,
    progress_counter,
    report_interrupt,
)
from serving.environment import STARTUP_PROGRESS
from serving.errors import StartError
from serving.observability.startup_progress import (
    READY,
    StartupProgress,
    follow_startup,
    report_startup,
    reported_startup,
)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pipe() -> PlainConsole:
    """A console that is not a terminal."""
    console = PlainConsole()
    console.file = io.StringIO()
    return console


def written(console: PlainConsole) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_counted_work_prints_a_line_every_few_seconds_with_speed_and_time_left(
    pipe: PlainConsole, clock: Clock
) -> None:
    with progress_counter("embedding [x]", "sequences", 1000, console=pipe, clock=clock) as counter:
        for _ in range(10):
            clock.now += 1.0
            counter.advance(20)

    assert written(pipe) == [
        "embedding [x]: 100 of 1,000 sequences (10%), 20.0/s, 0:45 left",
        "embedding [x]: 200 of 1,000 sequences (20%), 20.0/s, 0:40 left",
        "embedding [x]: 200 of 1,000 sequences (20%), 20.0/s, 0:40 left",
    ]


def test_short_work_prints_nothing(pipe: PlainConsole, clock: Clock) -> None:
    with progress_counter("copying", "documents", console=pipe, clock=clock) as counter:
        counter.update(3, 3)

    assert written(pipe) == []


def test_the_speed_of_resumed_work_is_of_what_this_run_did_since_it_began(
    pipe: PlainConsole, clock: Clock
) -> None:
    with progress_counter("embedding", "sequences", 1000, console=pipe, clock=clock) as counter:
        clock.now += EVERY_SECONDS - 1
        counter.resume(500)
        clock.now += EVERY_SECONDS
        counter.advance(50)

    assert written(pipe)[0] == "embedding: 550 of 1,000 sequences (55%), 10.0/s, 0:45 left"


def test_slow_work_is_shown_with_its_seconds_for_each_unit(
    pipe: PlainConsole, clock: Clock
) -> None:
    with progress_counter("searching", "documents", 10, console=pipe, clock=clock) as counter:
        clock.now += 25.0
        counter.advance()

    assert written(pipe)[0] == "searching: 1 of 10 documents (10%), 25.0 s each, 3:45 left"


def test_a_heartbeat_is_printed_when_nothing_else_is(clock: Clock) -> None:
    printed: list[str] = []
    lines = ProgressLines("measuring", printed.append, clock)

    lines.report("", force=True)
    for _ in range(25):
        clock.now += 1.0
        lines.heartbeat()
    lines.report("training")

    assert printed == [
        "measuring ...",
        "measuring: still working, 10 s",
        "measuring: still working, 20 s",
        "measuring: training",
    ]


def test_a_status_prints_at_once_and_every_forced_update(pipe: PlainConsole, clock: Clock) -> None:
    with Status("measuring", pipe, clock) as status:
        status.update("choosing", force=True)
        status.update("an update right after it")
        status.update("training", force=True)

    assert written(pipe) == ["measuring ...", "measuring: choosing", "measuring: training"]


def test_the_heartbeat_thread_ends_with_the_work(pipe: PlainConsole) -> None:
    before = set(threading.enumerate())

    with Status("measuring", pipe), progress_counter("embedding", "sequences", console=pipe):
        assert {each.name for each in set(threading.enumerate()) - before} == {"progress"}

    assert set(threading.enumerate()) <= before


def test_an_interrupted_command_prints_what_was_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(typer.Exit) as ended,
        report_interrupt(lambda: "3 of 5 [new] embeddings were kept"),
    ):
        raise KeyboardInterrupt

    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted: 3 of 5 [new] embeddings were kept\n"


def test_a_start_is_told_stage_by_stage_with_seconds(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    news = StartupProgress(tmp_path / "news", said.append, clock)
    monkeypatch.setenv(STARTUP_PROGRESS, str(tmp_path / "news"))

    news.poll()
    clock.now += 3
    report_startup("trainer", "loading the base model")
    report_startup("engine", "importing vLLM")
    news.poll()
    clock.now += 4
    report_startup("trainer", READY)
    news.poll()
    clock.now += QUIET_SECONDS
    news.poll()

    assert said == [
        "trainer: loading the base model, 3 s",
        "engine: importing vLLM, 3 s",
        "trainer: ready, 7 s",
        "still starting (engine importing vLLM), 17 s",
    ]


def test_why_a_part_did_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    news = StartupProgress(tmp_path / "news", lambda _line: None)
    monkeypatch.setenv(STARTUP_PROGRESS, str(tmp_path / "news"))

    with pytest.raises(ValueError, match="too long"), reported_startup("engine"):
        raise ValueError("1 error\n  max_model_len is\ntoo long")
    for _ in range(2):
        with suppress(OSError), reported_startup("trainer"):
            raise OSError("at first")
    with reported_startup("trainer"):
        pass
    news.poll()

    assert news.failures == {"engine": "1 error max_model_len is too long"}
    assert not news.is_final


def test_a_part_that_cannot_start_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    news = StartupProgress(tmp_path / "news", said.append, lambda: 0.0)
    monkeypatch.setenv(STARTUP_PROGRESS, str(tmp_path / "news"))

    with pytest.raises(StartError), reported_startup("engine"):
        raise StartError("vLLM refuses: everything")
    news.poll()

    assert said == ["engine: cannot start: vLLM refuses: everything, 0 s"]
    assert news.failures == {"engine": "vLLM refuses: everything"}
    assert news.is_final


def test_news_are_passed_on_while_somebody_waits_and_dropped_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(STARTUP_PROGRESS, raising=False)
    said: list[str] = []
    told = threading.Event()

    def hear(line: str) -> None:
        said.append(line)
        told.set()

    with follow_startup(hear):
        report_startup("engine", "importing vLLM")
        assert told.wait(30)
        report_startup("engine", READY)
    report_startup("engine", "unheard")

    assert [line.rpartition(",")[0] for line in said] == ["engine: importing vLLM", "engine: ready"]
