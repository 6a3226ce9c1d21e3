"""CoreShare: processes on one machine that compute with all of its cores while the others rest.

Each parallel region of a computation waits for its slowest thread, so more threads than free cores
make it several times slower. A process says that it is busy by a lock on one byte of a common file,
the byte of its process id, and asks the kernel whether others have one; the kernel removes the
locks of a process that ends, however it ends. Programs that take no part are noticed by what they
cost: where a computation with all cores had to wait too much, the next ones take fewer, each time
for longer. Whose computations are long may look for them beforehand.

A computation keeps the number of threads that it began with: this is meant for computations of at
most seconds, such as a step.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# C's `struct flock` on 64-bit Linux: type, whence, first byte, number of bytes, process.
_FLOCK = struct.Struct("@hhqqi0q")
_BEYOND_ALL_PROCESSES = 1 << 32
# Share of its time that a thread computes; below it, it waits for others that have no core. With
# two threads on two cores it is about 0.95, and less than 0.5 beside a program that never rests.
_MIN_SHARE = 0.6
# Seconds of fewer threads after such a computation: the first time, and at most.
_FIRST_CAUTION, _MOST_CAUTION = 10.0, 320.0


class CoreShare:
    """The share of one process, or of another one that computes for it.

    Args:
        file: the common file, created where it does not exist.
        shared: number of threads while another process is busy.
        alone: number of threads while none is.
        member: id of the process that is busy when this one computes; None for this one.
        load: the kernel's file of load averages (`proc_loadavg(5)`), to share the cores also while
            any other thread of the machine runs; None not to look. It is no use where a computation
            begins while the process hands over the result of the one before.
        clock: seconds that only grow.
        thread_clock: seconds that this thread has computed.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(
        self,
        file: Path,
        shared: int,
        alone: int,
        member: int | None = None,
        load: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        thread_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._shared, self._alone = shared, alone
        self._member = os.getpid() if member is None else member
        self._load, self._clock, self._thread_clock = load, clock, thread_clock
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._blocks, self._counted = 0, threading.Lock()
        self._caution, self._cautious_until = _FIRST_CAUTION, clock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Others see within the `with` block that this process is busy; blocks may overlap."""
        with self._counted:
            if self._blocks == 0:
                # Shared, so that it never waits: an id may have two meanings across containers.
                fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, self._member)
            self._blocks += 1
        try:
            yield
        finally:
            with self._counted:
                self._blocks -= 1
                if self._blocks == 0:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._member)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute within the `with` block with the threads that the others leave; one at a time."""
        # Imported here, so that `mayfly serve`, which names this class, starts without it.
        import torch

        started, thread_started = self._clock(), self._thread_clock()
        is_alone = started >= self._cautious_until and not (
            self._others_are_busy() or self._others_run()
        )
        threads = self._alone if is_alone else self._shared
        # OpenMP keeps a number for each thread. vLLM replaces the function of this name in `torch`.
        if torch.get_num_threads() != threads:
            torch._C.set_num_threads(threads)
        yield
        if not is_alone:
            return
        ended = self._clock()
        if self._thread_clock() - thread_started >= _MIN_SHARE * (ended - started):
            self._caution = _FIRST_CAUTION
        # A member that has begun meanwhile is seen the next time.
        elif not self._others_are_busy():
            self._cautious_until = ended + self._caution
            self._caution = min(2 * self._caution, _MOST_CAUTION)

    def _others_are_busy(self) -> bool:
        """Whether another process, but for the member, has a lock on its byte."""
        return any(
            self._is_locked(*others)
            for others in ((0, self._member), (self._member + 1, _BEYOND_ALL_PROCESSES))
        )

    def _others_run(self) -> bool:
        """Whether any thread of the machine but this one runs or could run."""
        if self._load is None:
            return False
        try:
            # "0.50 0.40 0.30 2/345 6789": 2 of 345 threads.
            return int(self._load.read_text().split()[3].split("/")[0]) > 1
        except (OSError, ValueError, IndexError):
            return True

    def _is_locked(self, first: int, end: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, end - first, 0)
        found = fcntl.fcntl(self._file, fcntl.F_GETLK, asked)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
