"""Whether processes that this one has not started have ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil

_POLL_SECONDS = 0.1


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs or is stopped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until all processes have ended, or the seconds are over.

    `psutil.wait_procs` would wait for those, too, that have ended and that nobody has asked for.
    """
    until = time.monotonic() + seconds
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
