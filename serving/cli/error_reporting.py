"""How the command `mayfly` reports errors: one line for an error that its user can fix, a traceback
for a bug.

The user can fix the errors of our three exception trees (`serving.errors`, `selection.errors` and
`adapters.errors`), and errors of the operating system that have a remedy, such as a full disk or a
folder without read permission. Any other exception is a bug, a ValueError included.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from rich.text import Text

from serving.cli.console import plain_line, say
from serving.errors import USER_ERRORS, in_full

_REMEDIES = {
    errno.EACCES: "check its permissions, or use another path",
    errno.EPERM: "check its permissions, or use another path",
    errno.EROFS: "use a writable path (--home for corpora)",
    errno.ENOSPC: "free space on that disk, or use another one (--home for corpora)",
    errno.EDQUOT: "free space within your quota, or use another disk (--home for corpora)",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder: check the path",
    errno.EISDIR: "name a file in that folder",
    errno.EEXIST: "remove it, or use another path",
    errno.ENOTEMPTY: "empty it, or use another path",
    errno.ELOOP: "its symbolic links form a loop: fix the links",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "the system has too many open files: close some",
    errno.ENOMEM: "free some memory",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
    errno.EADDRINUSE: "another process uses that address: use another",
}


class ErrorReporter:
    """Runs a command and reports what it raises.

    Attributes:
        debug: whether the traceback is printed for every error.
    """

    def __init__(self) -> None:
        self.debug = False

    def run(self, command: Callable[[], object]) -> int:
        """Run a command, report its error if it raises one, and return its exit status."""
        _escape_unencodable_output()
        self.debug = False
        try:
            command()
        except SystemExit as end:
            return _flush_output(end.code if isinstance(end.code, int) else 1 if end.code else 0)
        except BrokenPipeError:
            return _flush_output(1)
        except Exception as problem:
            self._report(problem)
            return _flush_output(1)
        return _flush_output(0)

    def _report(self, problem: Exception) -> None:
        message = user_message(problem)
        if message is None or self.debug:
            say("".join(traceback.format_exception(problem)).rstrip())
        if message is None:
            message = "this is a bug in Mayfly: please report it, with the traceback above"
        say(Text.assemble(("mayfly: ", "red"), plain_line(message)))


def user_message(problem: BaseException) -> str | None:
    """The error and its remedy in one line; None for an exception that is a bug."""
    if isinstance(problem, USER_ERRORS):
        return in_full(problem)
    # Up to Python 3.12, pathlib raises a RuntimeError for a loop of symbolic links.
    if isinstance(problem, RuntimeError) and str(problem).startswith("Symlink loop from "):
        path = str(problem).removeprefix("Symlink loop from ").strip("'\"")
        return f"{path}: {os.strerror(errno.ELOOP)}; {_REMEDIES[errno.ELOOP]}"
    if isinstance(problem, OSError) and problem.errno in _REMEDIES:
        paths = [str(path) for path in (problem.filename, problem.filename2) if path is not None]
        reason = problem.strerror or os.strerror(problem.errno)
        prefix = f"{' and '.join(paths)}: " if paths else ""
        return f"{prefix}{reason}; {_REMEDIES[problem.errno]}"
    return None


def _escape_unencodable_output() -> None:
    """Print what the terminal's encoding lacks, such as undecodable bytes of a file name, as
    escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush_output(status: int) -> int:
    """Flush standard output and return the exit status.

    A closed pipe is not reported: its reader has ended, as in `mayfly corpus show x | head`.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 1
    except ValueError:  # standard output is closed
        pass
    return status
