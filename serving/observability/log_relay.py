"""Warnings and errors of a server's processes on the standard error of the command that started
them.

Ray writes what a replica says to a file of its own, among much that is Ray's. So each process also
appends its own warnings, and the errors of the libraries that it uses, to one file in the server's
run folder, and the command follows that file. A file neither blocks the process that writes nor
loses a line while the command is busy. Where no command set `LOG_RELAY`, as on a cluster, nothing
is relayed.
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

_LOOK_SECONDS = 0.5
_ROTATE_BYTES = 1 << 20  # the command starts a new file after this much
# A command that is stopped must not fill the disk; Ray's own files have every line.
_MOST_BYTES = 64 << 20
_RAY = "ray"


class RelayHandler(logging.Handler):
    """Appends what the command shows to its file, one write a record; hardly ever twice, and never
    not at all.
    """

    def __init__(self, form: str, file: Path) -> None:
        super().__init__(logging.WARNING)
        self.file = file
        self.setFormatter(JsonLines() if form == "json" else TextLines())
        self.addFilter(_is_shown)

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`; a server whose command has gone is about to end."""
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            # Perhaps the command had read the file for the last time by then.
            if not self._append(line):
                self._append(line)

    def _append(self, line: bytes) -> bool:
        """Whether the command reads on where the line is now."""
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < _MOST_BYTES:
                os.write(descriptor, line)
            return os.fstat(descriptor).st_nlink > 0
        finally:
            os.close(descriptor)


def relay_errors(*loggers: logging.Logger) -> None:
    """Relay what these loggers are given, in a process below the command; once, however often this
    is called.
    """
    form, _, file = os.environ.get(LOG_RELAY, "").partition(":")
    for logger in loggers if file else ():
        if not any(isinstance(each, RelayHandler) for each in logger.handlers):
            logger.addHandler(RelayHandler(form, Path(file)))


class Relay:
    """The command's side: shows what its processes relay until `end`."""

    def __init__(self, form: LogFormat, folder: Path, stream: TextIO | None = None) -> None:
        self._file, self._stream = folder / "relayed", stream or sys.stderr
        self.variable = f"{form}:{self._file}"
        self._lines: BinaryIO | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log relay", daemon=True)
        self._thread.start()

    def end(self, seconds: float = 5.0) -> None:
        """Show what is left; a terminal that takes nothing is not waited for any longer than that."""
        self._over.set()
        self._thread.join(seconds)

    def _follow(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look()
        self._look()
        if self._lines is not None:
            self._lines.close()

    def _look(self) -> None:
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
