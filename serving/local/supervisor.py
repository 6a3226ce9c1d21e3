"""The processes below this one on one machine: whether those that Ray cannot do without live, and
the end of them all.

A server of one machine cannot go on without its raylet and its control store: what has died is not
replaced any more, and Ray cannot be ended in an orderly way. So all of it is ended here, by force.
A descendant whose parent dies becomes a child of this process, so none escapes. Knows processes and
shared memory only, nothing of Ray's interface.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import psutil

from serving.engine.plugins.parent_death import adopt_orphans
from serving.engine.staging import Staging, semaphores, storage
from serving.errors import LostError

log = logging.getLogger(__name__)

_VITAL = ("raylet", "gcs_server")
_SECONDS = 1.0  # between two looks
# Whether there is an engine is asked at each of so many looks only, while there is one.
_WELL_LOOKS = 10
_CLAIM_LOOKS = 30  # likewise, for new semaphores
# That what was killed may take to be gone: threads end slowly on a busy machine.
_END_SECONDS = 30.0


class RaySupervisor:
    """The processes below this one that began after it was made."""

    def __init__(self) -> None:
        adopt_orphans()
        self._others = set(psutil.Process().children())
        self._vital: dict[psutil.Process, str] = {}
        self._staging = Staging()
        self._given_up = False

    def began(self) -> None:
        """Ray has started its processes."""
        children = {each: each.name() for each in self.children()}
        self._vital = {each: name for each, name in children.items() if name in _VITAL}

    @property
    def lost(self) -> str | None:
        """Which of those that Ray cannot do without has ended; "engine" once it is not waited for
        any more.
        """
        if self._given_up:
            return "engine"
        for process, name in self._vital.items():
            if not _lives(process):
                return name
        return None

    def children(self) -> list[psutil.Process]:
        """The processes that this one has started, or whose parent has ended."""
        return [each for each in psutil.Process().children() if each not in self._others]

    def family(self) -> list[psutil.Process]:
        """All processes of the server but this one."""
        found = []
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child, *child.children(recursive=True)]
        return found

    def watch(self, healthy: Callable[[], bool], patience: float) -> NoReturn:
        """Wait for the end of one, or until nothing has been healthy for so many seconds.

        Raises:
            LostError: that is so.
        """
        last, was_well = time.monotonic(), False

        def ask() -> None:
            nonlocal last, was_well
            was_well = healthy()
            last = time.monotonic() if was_well else last

        asking, looks = threading.Thread(), 0
        while (lost := self.lost) is None:
            due = not was_well or looks % _WELL_LOOKS == 0
            if due and not asking.is_alive():  # whoever is asked may not answer any more
                asking = threading.Thread(target=ask, name="health", daemon=True)
                asking.start()
            if looks % _CLAIM_LOOKS == 0:
                self._claim()
            self._reap()
            looks += 1
            time.sleep(_SECONDS)
            self._given_up = time.monotonic() - last > patience
        if self._given_up:
            raise LostError(f"there has been no engine for {patience:.0f} seconds")
        raise LostError(f"Ray's {lost} has ended, and with it everything that runs on this machine")

    def while_there(
        self, act: Callable[[], object], seconds: float, hurry: threading.Event
    ) -> bool:
        """Do what needs Ray, and wait for its end, or for Ray's, or until it is due or in a hurry.

        Returns whether it was done, without an error.
        """
        self._claim()
        done = threading.Event()

        def acting() -> None:
            try:
                act()
                done.set()
            except Exception:
                log.debug("the orderly end failed", exc_info=True)

        thread = threading.Thread(target=acting, name="act", daemon=True)
        thread.start()
        until = time.monotonic() + seconds
        while (
            thread.is_alive() and not self.lost and not hurry.is_set() and time.monotonic() < until
        ):
            thread.join(_SECONDS / 10)
        return done.is_set()

    def end(self, seconds: float = _END_SECONDS) -> list[str]:
        """Kill what is left, and delete what only a process that ends in order deletes itself.

        Returns what is there all the same, in words.
        """
        pids, until = {os.getpid()}, time.monotonic() + seconds
        # A zombie counts: some threads of it may not have ended yet, and hold its files and locks.
        while (there := self.family()) and time.monotonic() < until:
            self._name(there)
            pids.update(each.pid for each in there)
            for process in there:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(there, timeout=_SECONDS / 5)
        self._staging.end()
        left = [f"process {each.pid} ({_name_of(each)})" for each in there]
        for pid in sorted(pids):
            left += sorted(str(storage() / each) for each in semaphores(pid))
            if pid != os.getpid():
                left += sorted(str(each) for each in storage().glob(f"mayfly-{pid}-*"))
        return left + [str(path) for path in (self._staging.path,) if path.exists()]

    def _claim(self) -> None:
        """Have the semaphores of the processes that live go with this server, however it ends."""
        if any(storage().glob("sem.loky-*")):
            self._name(self.family())

    def _name(self, processes: list[psutil.Process]) -> None:
        self._staging.name({name for each in processes for name in semaphores(each.pid)})

    def _reap(self) -> None:
        """Take note of the end of descendants that became children: until then the kernel keeps
        them as zombies.
        """
        others = {each.pid for each in self._others}
        with contextlib.suppress(ChildProcessError):
            while (
                ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            ) is not None:
                if ended.si_pid in others:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _name_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return "?"
