"""Child processes that end with their parent, and the vLLM plugin that makes vLLM's do so.

When an engine replica is killed, vLLM's engine and workers would otherwise continue and keep their
memory. The kernel kills such a process when the thread that started it ends (PR_SET_PDEATHSIG), so
that thread must live as long as the parent. vLLM loads the plugin in each of its processes (entry
point `vllm.general_plugins`). It acts only where `serving.app` has set `ENDS_WITH_PARENT`, so that
other programs that use the same installation of vLLM are not affected. The plugin also relays the
errors that vLLM's processes log (`serving.observability.log_relay`). Linux only.
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
    """Have the kernel kill this process when the thread that started it ends."""
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


def register() -> None:
    """End this process with its parent; vLLM may call this repeatedly.

    The replica itself loads the plugin, too, but has no parent of `multiprocessing`: Ray ends it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        relay_errors(logging.getLogger("vllm"))
    if ENDS_WITH_PARENT.items() <= os.environ.items() and parent is not None:
        end_with_parent()
        # The parent may have ended before the kernel was informed.
        if os.getppid() != parent.pid:
            os.kill(os.getpid(), signal.SIGKILL)
