"""What the command `mayfly` makes of an exception: one line for what its user can mend, a traceback
for a bug.

Ours are the three trees of `serving.errors`, `selection.errors` and `adapters.errors`; of the
operating system's errors those with a remedy count, such as a full disk or a folder that may not be
read. A ValueError that is none of ours is a bug like any other.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from rich.text import Text

from adapters.errors import AdapterError
from selection.errors import SelectionError
from serving.cli.console import plain_line, say
from serving.errors import MayflyError, in_full

OURS = (MayflyError, SelectionError, AdapterError)
_REMEDIES = {
    errno.EACCES: "see to it that you may read and write there, or name another place",
    errno.EPERM: "see to it that you may read and write there, or name another place",
    errno.EROFS: "name a place that can be written to, for corpora with --home",
    errno.ENOSPC: "make room on that disk, or name another place, for corpora with --home",
    errno.EDQUOT: "make room within your quota, or name another place, for corpora with --home",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder: check the path",
    errno.EISDIR: "name a file in it",
    errno.EEXIST: "something else is there: remove it, or name another place",
    errno.ENOTEMPTY: "something else is there: remove it, or name another place",
    errno.ELOOP: "its symbolic links lead back to themselves: mend the links",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "the system has too many open files: close some",
    errno.ENOMEM: "free some memory",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
    errno.EADDRINUSE: "another process has that address: use another",
}


class Failures:
    """How the command ends; `debug` shows the traceback of every error."""

    def __init__(self) -> None:
        self.debug = False

    def status_of(self, command: Callable[[], object]) -> int:
        """Run a command and give its exit status; what it fails with is printed."""
        _escape_what_cannot_be_encoded()
        self.debug = False
        try:
            command()
        except SystemExit as end:
            return _flushed(end.code if isinstance(end.code, int) else 1 if end.code else 0)
        except BrokenPipeError:
            return _flushed(1)
        except Exception as problem:
            return _flushed(self._tell(problem))
        return _flushed(0)

    def _tell(self, problem: Exception) -> int:
        words = mendable(problem)
        if words is None or self.debug:
            say("".join(traceback.format_exception(problem)).rstrip())
        if words is None:
            words = "this is a bug in Mayfly: please report it, with the traceback above"
        say(Text.assemble(("mayfly: ", "red"), plain_line(words)))
        return 1


def mendable(problem: BaseException) -> str | None:
    """What a user is told in one line, with what to do; None where only the developers can mend it."""
    if isinstance(problem, OURS):
        return in_full(problem)
    # Pathlib's, up to 3.12.
    if isinstance(problem, RuntimeError) and str(problem).startswith("Symlink loop from "):
        path = str(problem).removeprefix("Symlink loop from ").strip("'\"")
        return f"{path}: {os.strerror(errno.ELOOP)}; {_REMEDIES[errno.ELOOP]}"
    if isinstance(problem, OSError) and problem.errno in _REMEDIES:
        where = " and ".join(
            str(name) for name in (problem.filename, problem.filename2) if name is not None
        )
        said = problem.strerror or os.strerror(problem.errno)
        return (
            f"{where}: {said}; {_REMEDIES[problem.errno]}"
            if where
            else f"{said}; {_REMEDIES[problem.errno]}"
        )
    return None


def _escape_what_cannot_be_encoded() -> None:
    """Names of files may hold bytes that are no text, and a terminal's encoding may not have every
    character.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flushed(status: int) -> int:
    """The status, once all is written; who reads may have gone, which is no news (`mayfly corpus
    show x | head`).
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 1
    except ValueError:  # it is closed
        pass
    return status
