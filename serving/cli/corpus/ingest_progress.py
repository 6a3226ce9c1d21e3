"""Progress of `mayfly corpus add`: files, bytes, sequences per second and the time left.

It only counts. Where and how often the progress is shown is up to its caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class IngestProgress:
    """Counts what was read and embedded.

    Args:
        files: number of files.
        size: size of all files in bytes.
        show: called after each change.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        files: int,
        size: int,
        show: Callable[[IngestProgress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._size, self._show, self._clock = files, size, show, clock
        self._started = clock()
        self._files_read = self._sequences = 0
        self._bytes_embedded = self._bytes_skipped = 0
        # Bytes of the file that each unfinished document takes up, by document name.
        self._pending: dict[str, int] = {}
        self._rest_of_file = 0

    @property
    def done(self) -> int:
        """Bytes that were embedded or skipped."""
        return min(self._bytes_embedded + self._bytes_skipped, self._size)

    def open_file(self, size: int) -> None:
        """Start a file of `size` bytes."""
        self._rest_of_file = size
        self.refresh()

    def close_file(self) -> None:
        """End the file. Bytes that belong to no document, such as a table's syntax, are skipped."""
        self._bytes_skipped += self._rest_of_file
        self._rest_of_file = 0
        self._files_read += 1
        self.refresh()

    def read_document(self, name: str, size: int) -> None:
        """A document of `size` bytes was read from the file.

        The documents of a compressed table have more bytes than its file: they count at most as
        much as is left of the file.
        """
        share = min(size, self._rest_of_file)
        self._rest_of_file -= share
        self._pending[name] = share

    def finish_document(self, name: str, sequences: int) -> None:
        """A document is in the corpus; with 0 new sequences it was there before."""
        share = self._pending.pop(name, 0)
        if sequences:
            self._bytes_embedded += share
        else:
            self._bytes_skipped += share
        self.refresh()

    def add_embedded(self, sequences: int) -> None:
        """Add sequences that were embedded."""
        self._sequences += sequences
        self.refresh()

    def refresh(self) -> None:
        """Show the progress."""
        self._show(self)

    def __str__(self) -> str:
        seconds = max(self._clock() - self._started, 1e-9)
        parts = [
            f"{self._files_read} of {self._files} files",
            f"{_megabytes(self.done)} of {_megabytes(self._size)} MB",
            f"{self._sequences:,} sequences",
        ]
        if self._sequences:
            parts.append(f"{self._sequences / seconds:.1f}/s")
        if self._bytes_embedded:
            # Skipping takes no time, so it does not count towards the speed.
            left = (self._size - self.done) * seconds / self._bytes_embedded
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count >= 100_000 else f"{count / 1e6:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
