"""Progress of long work: a bar or a spinner on a terminal, a line every few seconds elsewhere.

`progress_counter` is for work that is counted, `Status` for work that is not. Both print that they
are still working when nothing else was printed for QUIET_SECONDS. `report_interrupt` prints what
was kept when the user presses Ctrl-C. This module does not know what the work is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from serving.cli.console import PlainConsole, err, plain_line, say

EVERY_SECONDS = 5.0  # between two progress lines
QUIET_SECONDS = 10.0  # without a line, after which "still working" is printed
_HEARTBEAT_SECONDS = 1.0

Clock = Callable[[], float]


class ProgressLines:
    """Prints progress as lines, at most one in EVERY_SECONDS unless a line is forced.

    Args:
        what: the work; it begins each line.
        print_line: prints one line.
        clock: monotonic time in seconds.
    """

    def __init__(
        self, what: str, print_line: Callable[[str], None], clock: Clock = time.monotonic
    ) -> None:
        self._what, self._print_line, self._clock = what, print_line, clock
        self._started = self._last = clock()
        self._lock = threading.Lock()
        self.count = 0

    def report(self, text: str, *, force: bool = False) -> None:
        """Print a line, or drop it if the last one is less than EVERY_SECONDS old."""
        with self._lock:
            if force or self._clock() - self._last >= EVERY_SECONDS:
                self._print(text)

    def heartbeat(self) -> None:
        """Print "still working" if the last line is at least QUIET_SECONDS old."""
        with self._lock:
            if self._clock() - self._last >= QUIET_SECONDS:
                self._print(f"still working, {self._clock() - self._started:.0f} s")

    def _print(self, text: str) -> None:
        self._last = self._clock()
        self.count += 1
        self._print_line(f"{self._what}: {text}" if text else f"{self._what} ...")


class ProgressCounter:
    """Counts work that is done; `progress_counter` makes one.

    Attributes:
        done: units done, those of an earlier run included.
        total: units in all, None if unknown.
    """

    def __init__(
        self,
        unit: str,
        total: int | None,
        clock: Clock,
        show: Callable[[ProgressCounter], None],
    ) -> None:
        self.done, self.total = 0, total
        self._unit, self._clock, self._started, self._show = unit, clock, clock(), show
        self._resumed_at = 0

    def advance(self, count: int = 1) -> None:
        """Add `count` units."""
        self.update(self.done + count)

    def update(self, done: int, total: int | None = None) -> None:
        """Set the units that are done, and the total if it is given."""
        self.done, self.total = done, self.total if total is None else total
        self._show(self)

    def resume(self, done: int) -> None:
        """Set the units that an earlier run has done; the speed is that of the others, from now."""
        self._resumed_at, self._started = done, self._clock()
        self.update(done)

    def __str__(self) -> str:
        seconds = self._clock() - self._started
        rate = (self.done - self._resumed_at) / seconds if seconds > 0 else 0.0
        if self.total is None:
            return f"{self.done:,} {self._unit}, {_speed(rate)}"
        parts = [f"{self.done:,} of {self.total:,} {self._unit}"]
        if self.total:
            parts[0] += f" ({self.done / self.total:.0%})"
        if rate > 0:
            parts.append(_speed(rate))
            if self.done < self.total:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)


@contextmanager
def progress_counter(
    what: str,
    unit: str,
    total: int | None = None,
    *,
    console: PlainConsole = err,
    clock: Clock = time.monotonic,
) -> Iterator[ProgressCounter]:
    """Show the progress of counted work within the `with` block.

    Args:
        what: the work, such as "embedding".
        unit: what is counted, in the plural.
        total: units in all, if known.
        console: where the progress is shown.
        clock: monotonic time in seconds.
    """
    if console.is_terminal:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            TimeElapsedColumn(),
            _TimeLeftColumn(),
        ]
        with Progress(*columns, console=console) as bars:
            task = bars.add_task(plain_line(what), total=total)
            yield ProgressCounter(
                unit,
                total,
                clock,
                lambda counter: bars.update(task, completed=counter.done, total=counter.total),
            )
        return
    lines = ProgressLines(plain_line(what), lambda line: say(line, to=console), clock)
    counter = ProgressCounter(unit, total, clock, lambda counter: lines.report(str(counter)))
    with _heartbeats(lines):
        yield counter
    if lines.count:
        lines.report(str(counter), force=True)


class _TimeLeftColumn(ProgressColumn):
    """The estimated time left; empty until the speed is known."""

    def __init__(self) -> None:
        super().__init__()
        self._remaining = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        """The text of the column."""
        if task.time_remaining is None:
            return Text("")
        return Text.assemble(self._remaining.render(task), " left")


class Status:
    """Shows within a `with` block what is being done: a spinner on a terminal, lines elsewhere.

    Args:
        what: the work; it begins each line.
        console: where the status is shown.
        clock: monotonic time in seconds.
        announce: whether a line is printed at the beginning; otherwise the first one is printed by
            an update or after QUIET_SECONDS.
    """

    def __init__(
        self,
        what: str,
        console: PlainConsole = err,
        clock: Clock = time.monotonic,
        *,
        announce: bool = True,
    ) -> None:
        self._what, self._announce = what, announce
        self._spinner = console.status(Text(plain_line(what))) if console.is_terminal else None
        self._lines = ProgressLines(plain_line(what), lambda line: say(line, to=console), clock)
        self._stack = ExitStack()

    def __enter__(self) -> Status:
        if self._spinner is not None:
            self._stack.enter_context(self._spinner)
        else:
            if self._announce:
                self._lines.report("", force=True)
            self._stack.enter_context(_heartbeats(self._lines))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the spinner, or print no more lines."""
        self._stack.close()

    def update(self, detail: str, *, force: bool = False) -> None:
        """Show what is being done now; in lines at most one in EVERY_SECONDS, unless forced."""
        if self._spinner is not None:
            self._spinner.update(Text(plain_line(f"{self._what}: {detail}")))
        else:
            self._lines.report(plain_line(detail), force=force)


@contextmanager
def report_interrupt(message: Callable[[], str]) -> Iterator[None]:
    """Within the `with` block, Ctrl-C prints a message and ends the command with status 130.

    Args:
        message: what was kept, called after the interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: {message()}")
        raise typer.Exit(130) from None


@contextmanager
def _heartbeats(lines: ProgressLines) -> Iterator[None]:
    """A thread calls `lines.heartbeat` every _HEARTBEAT_SECONDS within the `with` block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_HEARTBEAT_SECONDS):
            lines.heartbeat()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _speed(rate: float) -> str:
    """A number of units per second, in words that also tell slow work from none."""
    return f"{rate:,.1f}/s" if rate >= 0.5 or rate == 0 else f"{1 / rate:,.1f} s each"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
