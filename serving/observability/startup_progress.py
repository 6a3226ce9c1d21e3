"""Progress of a server's start, reported by its processes to the command that waits for them.

The processes append lines to a file that the environment variable `STARTUP_PROGRESS` names. On a
cluster the variable is not set, and nothing is reported. When no line has come for a while, the
command is informed that the start still goes on.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.environment import STARTUP_PROGRESS
from serving.errors import StartError

READY = "ready"
FAILED = "failed: "
# Before the reason of a failure with which every further attempt would end, too.
CANNOT_START = "cannot start: "
QUIET_SECONDS = 10.0
_POLL_SECONDS = 0.2
_MAX_REASON = 600


def report_startup(part: str, status: str) -> None:
    """Report what a part of the server does now, such as "loading the model"."""
    file = os.environ.get(STARTUP_PROGRESS)
    if file is not None:
        # Suppressed where the command has ended and its file is deleted.
        with suppress(OSError), open(file, "a") as lines:
            lines.write(f"{part}: {status}\n")


@contextmanager
def reported_startup(part: str) -> Iterator[None]:
    """Report, at the end of the `with` block, that a part is READY, or why it FAILED, or, for a
    StartError, why it CANNOT_START.
    """
    try:
        yield
    except Exception as problem:
        reason = " ".join(str(problem).split())[:_MAX_REASON]
        kind = CANNOT_START if isinstance(problem, StartError) else FAILED
        report_startup(part, f"{kind}{reason}")
        raise
    report_startup(part, READY)


class StartupProgress:
    """Reads reported lines and passes them on with the seconds since the beginning.

    Args:
        file: file that the lines are appended to.
        on_progress: called with each line, and with "still starting" after QUIET_SECONDS without
            one.
        clock: gives the time in seconds.

    Attributes:
        failures: the last failure of each part that has not become ready since.
        is_final: whether every further attempt would end with one of them, too.
    """

    def __init__(
        self,
        file: Path,
        on_progress: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._on_progress, self._clock = file, on_progress, clock
        self._began = self._last = clock()
        self._bytes_read = 0
        self._status: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.is_final = False
        self._lock = threading.Lock()

    def poll(self) -> None:
        """Pass on the lines that have been appended since the last call; any thread may call it."""
        with self._lock:
            self._poll()

    def _poll(self) -> None:
        with suppress(OSError):
            *lines, _unfinished = self._file.read_bytes()[self._bytes_read :].split(b"\n")
            for line in lines:
                self._bytes_read += len(line) + 1
                part, _, status = line.decode(errors="replace").partition(": ")
                self._status[part] = status
                if status.startswith((FAILED, CANNOT_START)):
                    self.failures[part] = status.partition(": ")[2]
                    self.is_final |= status.startswith(CANNOT_START)
                elif status == READY:
                    self.failures.pop(part, None)
                self._pass_on(f"{part}: {status}")
        if self._clock() - self._last >= QUIET_SECONDS:
            parts = ", ".join(
                f"{part} {status}" for part, status in self._status.items() if status != READY
            )
            self._pass_on(f"still starting ({parts})" if parts else "still starting")

    def _pass_on(self, line: str) -> None:
        self._last = self._clock()
        self._on_progress(f"{line}, {self._last - self._began:.0f} s")


@contextmanager
def follow_startup(on_progress: Callable[[str], None]) -> Iterator[StartupProgress]:
    """Pass on, from a thread, what processes started within the `with` block report."""
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        file = Path(folder) / "progress"
        progress = StartupProgress(file, on_progress)

        def follow() -> None:
            while not ended.wait(_POLL_SECONDS):
                # Suppressed where the terminal is gone.
                with suppress(OSError):
                    progress.poll()

        os.environ[STARTUP_PROGRESS] = str(file)
        thread = threading.Thread(target=follow, name="startup progress", daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            os.environ.pop(STARTUP_PROGRESS, None)
            ended.set()
            thread.join()
        progress.poll()
