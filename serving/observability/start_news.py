"""News of a start: what the processes that a server consists of are doing, told to the one that
waits for them.

They append lines to a file that a variable of the environment names; where there is none, as on a
cluster, nothing is told. Who waits is also told that the start still goes on, where there has been
no news for a while.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.environment import START_NEWS

READY = "ready"
FAILED = "failed: "
QUIET_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_MOST = 600  # characters of a reason


def tell(part: str, what: str) -> None:
    """Say what a part of the server does now, such as "loading the model", or that it is READY."""
    file = os.environ.get(START_NEWS)
    if file is not None:
        with suppress(OSError), open(file, "a") as lines:  # who waited may have gone
            lines.write(f"{part}: {what}\n")


@contextmanager
def starting(part: str) -> Iterator[None]:
    """Within it a part of the server starts: that it is READY, or why it failed, is told."""
    try:
        yield
    except Exception as problem:
        tell(part, f"{FAILED}{' '.join(str(problem).split())[:_MOST]}")
        raise
    tell(part, READY)


class News:
    """Lines as they come, each with the seconds since the beginning, and one where none has come
    for long.

    Args:
        file: where they are written.
        on_news: told of each.
        clock: seconds.
    """

    def __init__(
        self,
        file: Path,
        on_news: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._on_news, self._clock = file, on_news, clock
        self._begun = self._last = clock()
        self._read = 0
        self._doing: dict[str, str] = {}
        self.failures: dict[str, str] = {}  # by part, the last of each

    def look(self) -> None:
        """Tell what has come since, or that it still goes on."""
        with suppress(OSError):
            *lines, _unfinished = self._file.read_bytes()[self._read :].split(b"\n")
            for line in lines:
                self._read += len(line) + 1
                part, _, what = line.decode(errors="replace").partition(": ")
                self._doing[part] = what
                if what.startswith(FAILED):
                    self.failures[part] = what.removeprefix(FAILED)
                elif what == READY:
                    self.failures.pop(part, None)
                self._say(f"{part}: {what}")
        if self._clock() - self._last >= QUIET_SECONDS:
            doing = ", ".join(
                f"{part} {what}" for part, what in self._doing.items() if what != READY
            )
            self._say(f"still starting ({doing})" if doing else "still starting")

    def _say(self, words: str) -> None:
        self._last = self._clock()
        self._on_news(f"{words}, {self._last - self._begun:.0f} s")


@contextmanager
def following(on_news: Callable[[str], None]) -> Iterator[News]:
    """Within it, what processes started here tell is passed on, by a thread."""
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        file = Path(folder) / "news"
        news = News(file, on_news)

        def follow() -> None:
            while not over.wait(_LOOK_SECONDS):
                with suppress(OSError):  # the terminal is gone
                    news.look()

        os.environ[START_NEWS] = str(file)
        thread = threading.Thread(target=follow, name="news", daemon=True)
        thread.start()
        try:
            yield news
        finally:
            os.environ.pop(START_NEWS, None)
            over.set()
            thread.join()
        news.look()
