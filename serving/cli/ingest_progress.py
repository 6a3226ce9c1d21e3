"""How far `mayfly corpus add` is: files, bytes, sequences a second and the time left.

It knows neither corpora nor terminals: whoever makes it says where a line goes, and by which clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_SECONDS = 5.0  # between lines, where they cannot be drawn over each other


class IngestProgress:
    """Counts what is read and embedded, and tells it now and then.

    Args:
        files: how many there are.
        size: their bytes.
        tell: takes a line.
        every: seconds between lines.
        clock: seconds.
    """

    def __init__(
        self,
        files: int,
        size: int,
        tell: Callable[[str], None],
        every: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._size, self._tell, self._every, self._clock = (
            files,
            size,
            tell,
            every,
            clock,
        )
        self._begun = self._told = clock()
        self._read = self._sequences = 0
        self._embedded = self._passed = 0  # bytes
        self._share: dict[str, int] = {}  # bytes of the documents that are under way, by name
        self._left_of_file = 0

    @property
    def done(self) -> int:
        """Bytes that are embedded or passed over."""
        return min(self._embedded + self._passed, self._size)

    def open_file(self, size: int) -> None:
        """A file is read from now on."""
        self._left_of_file = size
        self.tick()

    def close_file(self) -> None:
        """It was read. What of its bytes belongs to no document is passed over: the syntax of a
        table, for one.
        """
        self._passed += self._left_of_file
        self._left_of_file = 0
        self._read += 1
        self.tick()

    def document(self, name: str, size: int) -> None:
        """A document of that file was read; a table that is packed has fewer bytes than its
        documents.
        """
        share = min(size, self._left_of_file)
        self._left_of_file -= share
        self._share[name] = share

    def settled(self, name: str, sequences: int) -> None:
        """A document is in the corpus, or was there already."""
        share = self._share.pop(name, 0)
        if sequences:
            self._embedded += share
        else:
            self._passed += share
        self.tick()

    def embedded(self, sequences: int) -> None:
        """Sequences were embedded."""
        self._sequences += sequences
        self.tick()

    def tick(self) -> None:
        """Tell how far it is, where that was not told for a while."""
        now = self._clock()
        if now - self._told >= self._every:
            self._told = now
            self._tell(str(self))

    def __str__(self) -> str:
        seconds = max(self._clock() - self._begun, 1e-9)
        said = [
            f"{self._read} of {self._files} files",
            f"{_megabytes(self.done)} of {_megabytes(self._size)} MB",
            f"{self._sequences:,} sequences",
        ]
        if self._sequences:
            said.append(f"{self._sequences / seconds:.1f} a second")
        if self._embedded:
            # What is passed over takes no time, so it says nothing of the rest.
            left = (self._size - self.done) * seconds / self._embedded
            said.append(f"about {_duration(left)} left")
        return ", ".join(said)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count >= 100_000 else f"{count / 1e6:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
