"""Ray's own processes on one machine: whether they live, and the end of all the others once they do not.

A server of one machine cannot go on without its raylet and its control store: what has died is not replaced any more,
and Ray cannot be ended in an orderly way. So all of it is ended here, by force. Knows processes only, nothing of Ray's
interface.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import psutil

from serving.errors import LostError
from serving.staging import storage, sweep

_VITAL = ("raylet", "gcs_server")
_SECONDS = 1.0  # between two looks: an engine that is killed again and again is well for some seconds at a time
_END_SECONDS = 10.0


class Node:
    """The processes below this one; made once Ray has started its own."""

    def __init__(self) -> None:
        children = {each: each.name() for each in psutil.Process().children()}
        self._vital: dict[psutil.Process, str] = {each: name for each, name in children.items() if name in _VITAL}
        self._family = set(children)
        self._given_up = False

    @property
    def lost(self) -> str | None:
        """Which of those that Ray cannot do without has ended; "engine" once it is not waited for any more."""
        if self._given_up:
            return "engine"
        for process, name in self._vital.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    continue
            return name
        return None

    def watch(self, healthy: Callable[[], bool], patience: float) -> NoReturn:
        """Wait for the end of one, or until nothing has been healthy for so many seconds.

        Raises:
            LostError: that is so.
        """
        last = time.monotonic()

        def look() -> None:
            nonlocal last
            last = time.monotonic() if healthy() else last

        looking = threading.Thread()
        while (lost := self.lost) is None:
            # They must be known beforehand: those of a dead parent are nobody's children.
            self._family.update(psutil.Process().children(recursive=True))
            if not looking.is_alive():  # whoever is asked may not answer any more
                looking = threading.Thread(target=look, name="health", daemon=True)
                looking.start()
            time.sleep(_SECONDS)
            self._given_up = time.monotonic() - last > patience
        if self._given_up:
            raise LostError(f"there has been no engine for {patience:.0f} seconds")
        raise LostError(f"Ray's {lost} has ended, and with it everything that runs on this machine")

    def while_there(self, act: Callable[[], object]) -> None:
        """Do what needs Ray, and wait for its end, or for Ray's."""
        acting = threading.Thread(target=act, name="act", daemon=True)
        acting.start()
        while acting.is_alive() and not self.lost:
            acting.join(_SECONDS / 10)

    def end(self) -> None:
        """Kill what is left, and delete what only a process that ends in order deletes itself."""
        self._family.update(psutil.Process().children(recursive=True))
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self._family, timeout=_END_SECONDS)
        sweep(storage())
