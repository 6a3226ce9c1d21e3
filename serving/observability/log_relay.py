"""Show warnings and errors of a server's processes on the standard error of the command that
started them.

Ray writes the output of each replica to a file of its own, among many lines of Ray itself. So each
process also appends Mayfly's warnings, and the errors of libraries, to one file in the server's run
folder, and the command follows that file. A file neither blocks the process that writes to it nor
loses a line while the command is busy. On a cluster `LOG_RELAY` is not set, and nothing is relayed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO, TextIO

from serving.environment import LOG_RELAY
from serving.observability.logs import OURS, JsonLines, LogFormat, TextLines

_POLL_SECONDS = 0.5
# Size of the file after which the command deletes it, so that processes start a new one.
_ROTATE_BYTES = 1 << 20
# Size after which no more is appended, so that the file of a suspended command cannot fill the
# disk; Ray's own files contain every line.
_MAX_BYTES = 64 << 20
_RAY = "ray"


class RelayHandler(logging.Handler):
    """Appends records to the command's file, each with one write.

    No record is lost; in rare cases one is shown twice.

    Args:
        log_format: "json" or "text".
        file: the file.
    """

    def __init__(self, log_format: str, file: Path) -> None:
        super().__init__(logging.WARNING)
        self.file = file
        self.setFormatter(JsonLines() if log_format == "json" else TextLines())
        self.addFilter(_is_shown)

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`."""
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        # Suppressed where the command has ended, since its server is about to end as well.
        with contextlib.suppress(OSError):
            # The command may have read the file for the last time before the line was appended.
            if not self._append(line):
                self._append(line)

    def _append(self, line: bytes) -> bool:
        """Append a line; returns whether the file has not been deleted by the command."""
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < _MAX_BYTES:
                os.write(descriptor, line)
            return os.fstat(descriptor).st_nlink > 0
        finally:
            os.close(descriptor)


def relay_errors(*loggers: logging.Logger) -> None:
    """Relay the records of these loggers, if this process was started by a command.

    Further calls for the same logger have no effect.
    """
    log_format, _, file = os.environ.get(LOG_RELAY, "").partition(":")
    for logger in loggers if file else ():
        if not any(isinstance(each, RelayHandler) for each in logger.handlers):
            logger.addHandler(RelayHandler(log_format, Path(file)))


class Relay:
    """The command's side, which shows relayed lines until `end`.

    Args:
        log_format: format of the lines.
        folder: folder for the file of relayed lines.
        stream: where lines are shown; None for standard error.

    Attributes:
        variable: value of `LOG_RELAY` for the command's processes.
    """

    def __init__(self, log_format: LogFormat, folder: Path, stream: TextIO | None = None) -> None:
        self._file, self._stream = folder / "relayed", stream or sys.stderr
        self.variable = f"{log_format}:{self._file}"
        self._lines: BinaryIO | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log relay", daemon=True)
        self._thread.start()

    def end(self, seconds: float = 5.0) -> None:
        """Show the remaining lines; a blocked terminal is waited for at most `seconds`."""
        self._ended.set()
        self._thread.join(seconds)

    def _follow(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._poll()
        self._poll()
        if self._lines is not None:
            self._lines.close()

    def _poll(self) -> None:
        if self._lines is None:
            if not self._file.exists():
                return
            self._lines = self._file.open("rb")
        self._show(self._lines.read())
        if self._lines.tell() > _ROTATE_BYTES:
            self._file.unlink(missing_ok=True)
            self._show(self._lines.read())
            self._lines.close()
            self._lines = None

    def _show(self, lines: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(lines.decode(errors="replace"))
            self._stream.flush()


def _is_shown(record: logging.LogRecord) -> bool:
    package = record.name.partition(".")[0]
    return package in OURS or (record.levelno >= logging.ERROR and package != _RAY)
