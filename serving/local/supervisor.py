"""RaySupervisor: notices when a server on one machine has lost Ray or its engine, and ends all its
processes.

A server on one machine cannot run without its raylet and its control store. When one of them ends,
it is not replaced, and Ray cannot be shut down in an orderly way, so all processes are killed here.
A descendant whose parent ends becomes a child of this process, so none escapes. This module deals
with processes and shared memory only and is independent of Ray's interface.

When only vLLM's engine core dies, the server recovers without a restart. Requests and health checks
fail with DownError (`serving.engine.engine`), so `EngineReplica.check_health` (`serving.app`)
fails, and Ray Serve replaces the replica. HAProxy answers with status 503 until the new replica
listens. The supervisor acts in this case only when no engine has been healthy for long: `watch`
raises LostError, this module kills all processes, and `mayfly serve` starts again
(`serving.cli.serve`).
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

from serving.engine.staging import Staging, memory_folder, semaphores
from serving.errors import LostError
from serving.processes import adopt_orphans

log = logging.getLogger(__name__)

_VITAL = ("raylet", "gcs_server")
_POLL_SECONDS = 1.0
# While the engine is healthy, its health is checked in every tenth poll only.
_HEALTHY_POLLS = 10
# New semaphores are recorded in every thirtieth poll.
_SEMAPHORE_POLLS = 30
# Killed processes may take long to end: on a busy machine their threads end slowly.
_END_SECONDS = 30.0


class RaySupervisor:
    """Watches and ends the child processes that are started after its creation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        adopt_orphans()
        self._clock = clock
        self._earlier_children = set(psutil.Process().children())
        self._vital: dict[psutil.Process, str] = {}
        self._staging = Staging()
        self._engine_is_lost = False

    def ray_started(self) -> None:
        """Find the vital processes of Ray, which has just started."""
        names = {each: each.name() for each in self.children()}
        self._vital = {each: name for each, name in names.items() if name in _VITAL}

    @property
    def lost(self) -> str | None:
        """The vital process that has ended, "engine" if `watch` gave up on it, or None."""
        if self._engine_is_lost:
            return "engine"
        for process, name in self._vital.items():
            if not _is_alive(process):
                return name
        return None

    def children(self) -> list[psutil.Process]:
        """The watched processes that are children of this one, adopted orphans included."""
        return [each for each in psutil.Process().children() if each not in self._earlier_children]

    def descendants(self) -> list[psutil.Process]:
        """The watched processes with all their descendants."""
        found = []
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child, *child.children(recursive=True)]
        return found

    def watch(self, is_healthy: Callable[[], bool], patience: float) -> NoReturn:
        """Wait until a vital process ends, or the engine is not healthy for `patience` seconds.

        Args:
            is_healthy: checks the engine; called in a thread, since it may hang.
            patience: seconds without a healthy engine.

        Raises:
            LostError: a vital process has ended, or the engine has not become healthy.
        """
        last_healthy, was_healthy = self._clock(), False

        def check() -> None:
            nonlocal last_healthy, was_healthy
            was_healthy = is_healthy()
            last_healthy = self._clock() if was_healthy else last_healthy

        checking, polls = threading.Thread(), 0
        while (lost := self.lost) is None:
            is_due = not was_healthy or polls % _HEALTHY_POLLS == 0
            if is_due and not checking.is_alive():
                checking = threading.Thread(target=check, name="health", daemon=True)
                checking.start()
            if polls % _SEMAPHORE_POLLS == 0:
                self._record_semaphores()
            self._reap()
            polls += 1
            time.sleep(_POLL_SECONDS)
            self._engine_is_lost = self._clock() - last_healthy > patience
        if self._engine_is_lost:
            raise LostError(f"there has been no healthy engine for {patience:.0f} seconds")
        raise LostError(f"Ray's {lost} has ended, and with it everything that runs on this machine")

    def run_while_ray_lives(
        self, action: Callable[[], object], seconds: float, hurry: threading.Event
    ) -> bool:
        """Run an action that needs Ray, in a thread that is abandoned when it cannot or must not
        end.

        Args:
            action: the action.
            seconds: the longest time to wait for it.
            hurry: ends the waiting when set.

        Returns:
            Whether the action returned without an exception.
        """
        self._record_semaphores()
        done = threading.Event()

        def run() -> None:
            try:
                action()
                done.set()
            except Exception:
                log.debug("the orderly end failed", exc_info=True)

        thread = threading.Thread(target=run, name="orderly end", daemon=True)
        thread.start()
        deadline = time.monotonic() + seconds
        while (
            thread.is_alive()
            and not self.lost
            and not hurry.is_set()
            and time.monotonic() < deadline
        ):
            thread.join(_POLL_SECONDS / 10)
        return done.is_set()

    def end(self, seconds: float = _END_SECONDS) -> list[str]:
        """Kill the watched processes and delete the shared memory that they leave behind.

        Args:
            seconds: the longest time to wait for their end.

        Returns:
            Descriptions of the processes and files that could not be removed.
        """
        pids, deadline = {os.getpid()}, time.monotonic() + seconds
        # A zombie counts: some of its threads may still run and hold its files and locks.
        while (alive := self.descendants()) and time.monotonic() < deadline:
            self._record_semaphores_of(alive)
            pids.update(each.pid for each in alive)
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=_POLL_SECONDS / 5)
        self._staging.end()
        left = [f"process {each.pid} ({_name_of(each)})" for each in alive]
        for pid in sorted(pids):
            left += sorted(str(memory_folder() / each) for each in semaphores(pid))
            if pid != os.getpid():
                left += sorted(str(each) for each in memory_folder().glob(f"mayfly-{pid}-*"))
        return left + [str(path) for path in (self._staging.path,) if path.exists()]

    def _record_semaphores(self) -> None:
        """Have the semaphores of running processes deleted with this server, however it ends."""
        if any(memory_folder().glob("sem.loky-*")):
            self._record_semaphores_of(self.descendants())

    def _record_semaphores_of(self, processes: list[psutil.Process]) -> None:
        self._staging.record({name for each in processes for name in semaphores(each.pid)})

    def _reap(self) -> None:
        """Remove the zombies of adopted children that have ended."""
        earlier = {each.pid for each in self._earlier_children}
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, options)) is not None:
                if ended.si_pid in earlier:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _name_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return "?"
