"""Processes: end with a parent, adopt orphans, recognise suspended ones, call a function in a new
one. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Generic, ParamSpec, Self, TypeVar

import psutil

P = ParamSpec("P")
Result = TypeVar("Result")

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (PR_SET_PDEATHSIG).

    So that thread must live as long as the parent.
    """
    # SIGKILL, since a process can ignore other signals.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_stopped(process: psutil.Process) -> bool:
    """Whether a process is suspended by a signal (SIGSTOP) and waits for SIGCONT."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False


class RemoteTracebackError(Exception):
    """The traceback of an exception in another process, as text."""


class Call(Generic[Result]):
    """A call in a new process, so that what it imports takes no memory in this one.

    It ends with the `with` block. Its standard output goes to standard error.

    Args:
        function: the function; like its arguments and its result, it is pickled.
        args, kwargs: its arguments.
    """

    def __init__(self, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> None:
        # Without -P, a folder `serving` in the current folder would be imported.
        command = [sys.executable, "-P", "-m", __name__]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._input = pickle.dumps((function, args, kwargs))

    def __enter__(self) -> Self:
        assert self._process.stdin is not None
        self._process.stdin.write(self._input)
        self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def result(self) -> Result:
        """Wait for the result; an exception of the function is raised here.

        Raises:
            RuntimeError: the process ended without a result.
        """
        output, _ = self._process.communicate()
        if not output:
            raise RuntimeError(f"a process ended with status {self._process.returncode}")
        # The bytes come from the process that this object has started.
        result, problem, text = pickle.loads(output)  # noqa: S301
        if problem is not None:
            raise problem from RemoteTracebackError(text)
        found: Result = result
        return found


def _main() -> None:
    """Answer one `Call`."""
    end_with_parent()
    # The parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    function, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301
    answer: tuple[object, Exception | None, str]
    try:
        answer = (function(*args, **kwargs), None, "")
    except Exception as problem:
        answer = (None, problem, traceback.format_exc())
    with answers:
        pickle.dump(answer, answers)


if __name__ == "__main__":
    _main()
