"""Long work speaks on a pipe: at once, every few seconds, when there is no news for long, and when
it is broken off.
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
    Lines,
    kept_when_broken_off,
    reporting,
    working,
)
from serving.environment import START_NEWS
from serving.observability.start_news import READY, News, following, starting, tell


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pipe() -> PlainConsole:
    """A console that is no terminal."""
    console = PlainConsole()
    console.file = io.StringIO()
    return console


def written(console: PlainConsole) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_counted_work_tells_a_line_every_few_seconds_with_speed_and_time_left(
    pipe: PlainConsole, clock: Clock
) -> None:
    with reporting("embedding [x]", "sequences", 1000, console=pipe, clock=clock) as done:
        for _ in range(10):
            clock.now += 1.0
            done.advance(20)

    assert written(pipe) == [
        "embedding [x]: 100 of 1,000 sequences (10%), 20.0 a second, 0:45 left",
        "embedding [x]: 200 of 1,000 sequences (20%), 20.0 a second, 0:40 left",
        "embedding [x]: 200 of 1,000 sequences (20%), 20.0 a second, 0:40 left",
    ]


def test_short_work_says_nothing(pipe: PlainConsole, clock: Clock) -> None:
    with reporting("spreading", "documents", console=pipe, clock=clock) as done:
        done.reach(3, 3)

    assert written(pipe) == []


def test_work_that_goes_on_where_it_was_does_not_count_the_rest_as_its_own(
    pipe: PlainConsole, clock: Clock
) -> None:
    with reporting("embedding", "sequences", 1000, console=pipe, clock=clock) as done:
        done.resume(500)
        clock.now += EVERY_SECONDS
        done.advance(50)

    assert written(pipe)[0] == "embedding: 550 of 1,000 sequences (55%), 10.0 a second, 0:45 left"


def test_without_news_it_says_that_it_still_works(clock: Clock) -> None:
    said: list[str] = []
    lines = Lines("measuring", said.append, clock)

    lines.news("", urgent=True)
    for _ in range(25):
        clock.now += 1.0
        lines.tick()
    lines.news("training")

    assert said == ["measuring ...", "measuring: still working, 10 s", "measuring: still working, 20 s",
                    "measuring: training"]  # fmt: skip


def test_work_that_is_not_counted_speaks_at_once_and_step_by_step(
    pipe: PlainConsole, clock: Clock
) -> None:
    with working("measuring", pipe, clock) as status:
        status.step("choosing")
        status.update("a step just after it")
        status.step("training")

    assert written(pipe) == ["measuring ...", "measuring: choosing", "measuring: training"]


def test_its_thread_ends_with_the_work(pipe: PlainConsole) -> None:
    before = set(threading.enumerate())

    with working("measuring", pipe), reporting("embedding", "sequences", console=pipe):
        assert {each.name for each in set(threading.enumerate()) - before} == {"progress"}

    assert set(threading.enumerate()) <= before


def test_a_command_that_is_broken_off_says_what_was_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(typer.Exit) as ended,
        kept_when_broken_off(lambda: "3 of 5 [new] embeddings are kept"),
    ):
        raise KeyboardInterrupt

    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "broken off: 3 of 5 [new] embeddings are kept\n"


def test_a_start_is_told_stage_by_stage_with_seconds(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    news = News(tmp_path / "news", said.append, clock)
    monkeypatch.setenv(START_NEWS, str(tmp_path / "news"))

    news.look()
    clock.now += 3
    tell("trainer", "loading the base model")
    tell("engine", "importing vLLM")
    news.look()
    clock.now += 4
    tell("trainer", READY)
    news.look()
    clock.now += QUIET_SECONDS
    news.look()

    assert said == [
        "trainer: loading the base model, 3 s",
        "engine: importing vLLM, 3 s",
        "trainer: ready, 7 s",
        "still starting (engine importing vLLM), 17 s",
    ]


def test_why_a_part_did_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    news = News(tmp_path / "news", lambda _line: None)
    monkeypatch.setenv(START_NEWS, str(tmp_path / "news"))

    with pytest.raises(ValueError, match="too long"), starting("engine"):
        raise ValueError("1 error\n  max_model_len is\ntoo long")
    for _ in range(2):
        with suppress(OSError), starting("trainer"):
            raise OSError("at first")
    with starting("trainer"):
        pass
    news.look()

    assert news.failures == {"engine": "1 error max_model_len is too long"}


def test_news_are_passed_on_while_somebody_waits_and_dropped_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(START_NEWS, raising=False)
    said: list[str] = []
    told = threading.Event()

    def hear(line: str) -> None:
        said.append(line)
        told.set()

    with following(hear):
        tell("engine", "importing vLLM")
        assert told.wait(30)
        tell("engine", READY)
    tell("engine", "unheard")

    assert [line.rpartition(",")[0] for line in said] == ["engine: importing vLLM", "engine: ready"]
