"""Locked folders of a server, and the cleaning up after servers that were killed: adapters on their
way into vLLM, temporary files, and lists of shared memory to delete.

Each server locks its folders while it runs. Unlike a process id, a lock is visible from other
containers that share the storage, and the kernel releases it however the process ends. The shared
memory between vLLM's processes outlives them when they are killed, so its names are written to a
file in the folder, and it is deleted together with the folder. Nothing else is ever deleted: only
folders of the same user that carry Mayfly's marker file, and only shared memory that is listed in
such a folder.

This module contains the folders, their clean-up, and the reserving of shared memory. How an adapter
reaches vLLM is in `serving.engine.engine` (`Engine.load`) and `serving.engine.plugins.generate`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

_MEMORY = Path("/dev/shm")  # noqa: S108
# Seconds until a second sweep, for the folder of a hanging engine, which has half a minute to end
# after its successor has started.
_SECOND_SWEEP_SECONDS = 90.0
# The file in every folder of a server that tells it from folders of other programs.
_MARKER = ".mayfly-server"
# The file in a staging folder with the names of shared memory, one per line.
_SHARED_MEMORY_LIST = "shared-memory"
# vLLM's ring buffers have one slot per message, of 16 or 24 MiB, and at their end the flags of the
# slots. Only very long messages take more than `_RESERVED_BYTES` of a slot.
_SLOT_STEP, _RESERVED_BYTES = 8 << 20, 256 << 10
_TRACK_SECONDS = 0.25
# The names that `locked_folder` gives to folders of servers.
_FOLDER_NAME = re.compile(r"mayfly-(run|[0-9]+)-\w{8}")
_MAPPED_RING = re.compile(r"/dev/shm/(psm_\w+)\n")  # noqa: S108
# The inode of a semaphore; the process that has created it maps it under another name.
_MAPPED_SEMAPHORE = re.compile(r" (\d+) +/dev/shm/sem\.")
# The names that Python and joblib give to shared memory and semaphores.
_SHARED_MEMORY_NAME = re.compile(r"psm_\w+|sem\.mp-\w+|sem\.loky-[\w-]+")


class Staging:
    """The staging folder of this process; creating it sweeps the folders of dead servers first.

    Args:
        root: folder to create it in; None for `memory_folder()`.

    Attributes:
        path: the staging folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = root or memory_folder()
        sweep(root)
        self._root, self._recorded = root, set[str]()
        self.path, lock = locked_folder(root, f"mayfly-{os.getpid()}-")
        self._lock: int | None = lock
        (self.path / _SHARED_MEMORY_LIST).touch()
        self._second_sweep = threading.Timer(_SECOND_SWEEP_SECONDS, sweep, (root,))
        self._second_sweep.daemon = True
        self._second_sweep.start()

    def names(self) -> list[str]:
        """Names of the staged adapters."""
        return sorted(each.name for each in self._staged())

    def bytes(self) -> int:
        """Total size of the staged adapters, in bytes."""
        total = 0
        for folder in self._staged():
            # Suppressed where the request ends and its adapter is deleted meanwhile.
            with contextlib.suppress(FileNotFoundError):
                total += sum(file.stat().st_size for file in folder.iterdir())
        return total

    def record(self, shared: Collection[str]) -> None:
        """Have further shared memory, given by its names, deleted together with the folder."""
        if self._recorded.issuperset(shared):
            return
        self._recorded.update(shared)
        (self.path / _SHARED_MEMORY_LIST).write_text("\n".join(self._recorded))

    def reserve(self, shared: Collection[str]) -> None:
        """Record shared memory and reserve now the space that its use will need.

        When the storage is full, the kernel kills a process that touches a page for the first time
        (SIGBUS).

        Raises:
            OSError: there is not enough space.
        """
        self.record(shared)
        for name in shared:
            # Suppressed where the shared memory has been deleted meanwhile.
            with contextlib.suppress(FileNotFoundError), (self._root / name).open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                for start in (*range(0, size, _SLOT_STEP), max(0, size - _RESERVED_BYTES)):
                    length = min(_RESERVED_BYTES, size - start)
                    os.posix_fallocate(file.fileno(), start, length)

    def end(self) -> None:
        """Delete the folder, the shared memory recorded in it, and folders of dead servers."""
        self._second_sweep.cancel()
        sweep(self._root)
        if self._lock is not None:
            _delete(self.path, self._root)
            os.close(self._lock)
            self._lock = None

    def _staged(self) -> list[Path]:
        return [each for each in self.path.iterdir() if each.is_dir()]


def semaphores(pid: int, root: Path | None = None) -> set[str]:
    """Names of a process's semaphores from joblib, which outlive it when it is killed."""
    return {each.name for each in (root or memory_folder()).glob(f"sem.loky-{pid}-*")}


@contextlib.contextmanager
def track_shared_memory(staging: Staging) -> Iterator[None]:
    """Record the shared memory of vLLM's processes while they start within the `with` block.

    Each piece is recorded soon after vLLM creates it, since vLLM may be killed before it has
    started. If the block raises, the staging folder is deleted.
    """
    started = threading.Event()

    def follow() -> None:
        while not started.wait(_TRACK_SECONDS):
            staging.record(shared_memory_of_children())

    thread = threading.Thread(target=follow, name="shared memory")
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(staging.end)
        thread.start()
        try:
            yield
        finally:
            started.set()
            thread.join()
        on_failure.pop_all()


def shared_memory_of_children() -> set[str]:
    """Names of the shared memory and semaphores of this process's descendants."""
    names: set[str] = set()
    inodes: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        names.update(semaphores(process.pid))
        # Suppressed where the process ends meanwhile.
        with contextlib.suppress(OSError):
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            names.update(_MAPPED_RING.findall(mapped))
            inodes.update(map(int, _MAPPED_SEMAPHORE.findall(mapped)))
    if inodes:
        with os.scandir(memory_folder()) as files:
            names.update(each.name for each in files if each.inode() in inodes)
    return names


def memory_folder() -> Path:
    """The system's folder in memory, or the folder for temporary files if there is none."""
    return _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())


def sweep(root: Path) -> None:
    """Delete the folders in `root` of this user's servers that no longer run.

    A folder is deleted only if it has the name and the marker file that `locked_folder` gives, so a
    folder of another program that has such a name stays.
    """
    for folder in root.glob("mayfly-*-*"):
        if not _FOLDER_NAME.fullmatch(folder.name):
            continue
        # Suppressed where the folder is locked by a running server, or another server deletes it.
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid() and (folder / _MARKER).is_file():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _delete(folder, root)
            finally:
                os.close(lock)


def locked_folder(root: Path, prefix: str) -> tuple[Path, int]:
    """Create a folder that `sweep` does not delete before its lock is released.

    Returns:
        The folder and the file descriptor of its lock; closing that releases the lock.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Written after the folder is locked, so a sweep never sees it in an unlocked folder that is
    # new.
    (folder / _MARKER).touch()
    return folder, lock


def _delete(folder: Path, root: Path) -> None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for name in (folder / _SHARED_MEMORY_LIST).read_text().splitlines():
            if _SHARED_MEMORY_NAME.fullmatch(name):
                (root / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
