"""Processes: end with a parent, adopt orphans, recognise suspended ones. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import signal

import psutil

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
