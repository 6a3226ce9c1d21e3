"""Progress: how far long work is, as a bar or a spinner on a terminal and as a line every few
seconds elsewhere.

`reporting` is for work that is counted, `working` for work that is not. Work that has no news for
QUIET_SECONDS says that it still goes on. `kept_when_broken_off` says after Ctrl-C what was kept.
Knows nothing of what is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from serving.cli.console import err, plain_line, say

EVERY_SECONDS = 5.0  # between two lines of work that goes on
QUIET_SECONDS = 10.0  # without news, after which it says that it still goes on
_TICK_SECONDS = 1.0

Clock = Callable[[], float]


class Lines:
    """News as lines: the first at once, then no more often than EVERY_SECONDS, and one where there
    is none for long.

    Args:
        what: the work, in words that begin each line.
        tell: prints a line.
        clock: seconds.
    """

    def __init__(
        self, what: str, tell: Callable[[str], None], clock: Clock = time.monotonic
    ) -> None:
        self._what, self._tell, self._clock = what, tell, clock
        self._begun = self._last = clock()
        self._lock = threading.Lock()
        self.said = 0

    def news(self, text: str, *, urgent: bool = False) -> None:
        """Print this now, unless a line was printed just before and it is not urgent."""
        with self._lock:
            if urgent or self._clock() - self._last >= EVERY_SECONDS:
                self._print(text)

    def tick(self) -> None:
        """Say that the work still goes on, where nothing was said for QUIET_SECONDS."""
        with self._lock:
            if self._clock() - self._last >= QUIET_SECONDS:
                self._print(f"still working, {self._clock() - self._begun:.0f} s")

    def _print(self, text: str) -> None:
        self._last = self._clock()
        self.said += 1
        self._tell(f"{self._what}: {text}" if text else f"{self._what} ...")


class Counted:
    """Work that is counted; what `reporting` gives."""

    def __init__(
        self, what: str, unit: str, total: int | None, clock: Clock, show: Callable[[Counted], None]
    ) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self._clock, self._begun, self._show = clock, clock(), show
        self._before = 0

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.reach(self.done + count)

    def reach(self, done: int, total: int | None = None) -> None:
        """So many are done in all, of so many."""
        self.done, self.total = done, self.total if total is None else total
        self._show(self)

    def resume(self, done: int) -> None:
        """So many were done by an earlier run: they do not count for the speed."""
        self._before = done
        self.reach(done)

    def __str__(self) -> str:
        seconds = self._clock() - self._begun
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        if self.total is None:
            return f"{self.done:,} {self.unit}, {rate:,.1f} a second"
        parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        if self.total:
            parts[0] += f" ({self.done / self.total:.0%})"
        if rate > 0:
            parts.append(f"{rate:,.1f} a second")
            if self.done < self.total:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)


@contextmanager
def reporting(
    what: str,
    unit: str,
    total: int | None = None,
    *,
    console: Console = err,
    clock: Clock = time.monotonic,
) -> Iterator[Counted]:
    """Tell how far counted work is.

    Args:
        what: the work, such as "embedding".
        unit: what is counted, in the plural.
        total: how many there are, if that is known.
        console: where it is told.
        clock: seconds.
    """
    if console.is_terminal:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
        ]
        columns += [
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            TimeElapsedColumn(),
            _Left(),
        ]
        with Bars(*columns, console=console) as bars:
            task = bars.add_task(plain_line(what), total=total)
            yield Counted(
                what,
                unit,
                total,
                clock,
                lambda now: bars.update(task, completed=now.done, total=now.total),
            )
        return
    lines = Lines(plain_line(what), lambda line: say(line, to=console), clock)
    counted = Counted(what, unit, total, clock, lambda now: lines.news(str(now)))
    with _ticking(lines):
        yield counted
    if lines.said:
        lines.news(str(counted), urgent=True)


class _Left(ProgressColumn):
    """The time left, where it can be told."""

    def __init__(self) -> None:
        super().__init__()
        self._remaining = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        """Nothing before the speed is known."""
        return (
            Text("")
            if task.time_remaining is None
            else Text.assemble(self._remaining.render(task), " left")
        )


class Working:
    """Work that is not counted: on a terminal a spinner, elsewhere lines, the first of them at once
    or only later.
    """

    def __init__(
        self,
        what: str,
        console: Console = err,
        clock: Clock = time.monotonic,
        *,
        at_once: bool = True,
    ) -> None:
        self._what, self._at_once = what, at_once
        self._spinner = console.status(Text(plain_line(what))) if console.is_terminal else None
        self._lines = Lines(plain_line(what), lambda line: say(line, to=console), clock)
        self._open = ExitStack()

    def __enter__(self) -> Working:
        if self._spinner is not None:
            self._open.enter_context(self._spinner)
        else:
            if self._at_once:
                self._lines.news("", urgent=True)
            self._open.enter_context(_ticking(self._lines))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Tell no more."""
        self._open.close()

    def update(self, now: str) -> None:
        """What it does now; often enough to be told no more often than EVERY_SECONDS."""
        if self._spinner is not None:
            self._spinner.update(Text(plain_line(f"{self._what}: {now}")))
        else:
            self._lines.news(plain_line(now))

    def step(self, now: str) -> None:
        """What it does now, told in any case."""
        if self._spinner is not None:
            self.update(now)
        else:
            self._lines.news(plain_line(now), urgent=True)


def working(what: str, console: Console = err, clock: Clock = time.monotonic) -> Working:
    """Tell that work goes on, for the length of a `with`."""
    return Working(what, console, clock)


@contextmanager
def kept_when_broken_off(what: Callable[[], str]) -> Iterator[None]:
    """Within it Ctrl-C ends the command with a line that says what was kept."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"broken off: {what()}")
        raise typer.Exit(130) from None


@contextmanager
def _ticking(lines: Lines) -> Iterator[None]:
    """Within it `lines.tick` is called again and again, by a thread."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_TICK_SECONDS):
            lines.tick()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
