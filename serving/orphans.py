"""No process of ours outlives the one that started it, however that one ends; and the vLLM plugin for vLLM's.

The kernel is asked for it (PR_SET_PDEATHSIG): it ends a process when the thread that started it ends, so that thread
must last. vLLM's engine and its workers would otherwise go on, and hold their memory, when an engine replica is killed.
vLLM loads the plugin in every process (entry point `vllm.general_plugins`); it acts only where `ENVIRONMENT` is set,
which `serving.app` does, so that other vLLMs of the same Python environment are left alone. Linux only.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

ENVIRONMENT = {"MAYFLY_ENDS_WITH_PARENT": "1"}
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; other signals could be ignored."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def register() -> None:
    """Called by vLLM, more than once; the replica itself, which Ray starts, is Ray's to end."""
    parent = multiprocessing.parent_process()
    if ENVIRONMENT.items() <= os.environ.items() and parent is not None:
        end_with_parent()
        if os.getppid() != parent.pid:  # it has ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)
