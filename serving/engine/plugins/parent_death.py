"""No process of ours outlives the one that started it, however that one ends; and the vLLM plugin
for vLLM's.

The kernel is asked for it (PR_SET_PDEATHSIG): it ends a process when the thread that started it
ends, so that thread must last. vLLM's engine and its workers would otherwise go on, and hold their
memory, when an engine replica is killed. vLLM loads the plugin in every process (entry point
`vllm.general_plugins`); it acts only where `ENDS_WITH_PARENT` is set, which `serving.app` does, so
that other vLLMs of the same Python environment are left alone. What vLLM's processes log as an
error is relayed to the command, where there is one (`serving.observability.log_relay`). Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal

import psutil

from serving.environment import ENDS_WITH_PARENT
from serving.observability.log_relay import relay_errors

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; other signals could
    be ignored.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, so that all of them can be
    found and ended.
    """
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_stopped(process: psutil.Process) -> bool:
    """Whether a process has been stopped, so that it does nothing until it is told to go on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False


def register() -> None:
    """Called by vLLM, more than once; the replica itself, which Ray starts, is Ray's to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        relay_errors(logging.getLogger("vllm"))
    if ENDS_WITH_PARENT.items() <= os.environ.items() and parent is not None:
        end_with_parent()
        if os.getppid() != parent.pid:  # it has ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)
