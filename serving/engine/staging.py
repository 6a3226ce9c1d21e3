"""Staging: a folder in memory-backed storage for adapters while they are loaded, and what dead
servers left there.

Each server locks its folders for as long as it lives. Unlike a process id, a lock is seen from
other containers that share the storage, and the kernel lets go of it however a process ends. The
shared memory that vLLM's processes talk through outlives them when they are killed; its names are
kept in the folder, so that it goes with it. Nothing else is ever touched: not what another user
owns, nor shared memory that no such folder names.
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
_AGAIN_SECONDS = 90.0  # an engine that hangs has half a minute to end after its successor has begun
_NAMES = "shared-memory"  # a file in the folder
# vLLM's rings have a slot for a message each 16 or 24 MiB, and say at their end which are in use;
# more than this much of a slot is taken by a very long message only.
_APART, _TAKEN = 8 << 20, 256 << 10
_NAMING_SECONDS = 0.25
_FOLDERS = re.compile(r"mayfly-(run|[0-9]+)-\w{8}")  # as `locked_folder` names those of servers
_RING = re.compile(r"/dev/shm/(psm_\w+)\n")  # noqa: S108
# What Python and joblib call shared memory and semaphores.
_OTHERS = re.compile(r"psm_\w+|sem\.loky-[\w-]+")


class Staging:
    """This process's folder, `path`; made after the folders of dead servers were swept."""

    def __init__(self, root: Path | None = None) -> None:
        root = root or storage()
        sweep(root)
        self._root, self._named = root, set[str]()
        self.path, lock = locked_folder(root, f"mayfly-{os.getpid()}-")
        self._lock: int | None = lock
        (self.path / _NAMES).touch()
        self._again = threading.Timer(_AGAIN_SECONDS, sweep, (root,))
        self._again.daemon = True
        self._again.start()

    def names(self) -> list[str]:
        """Of what is staged."""
        return sorted(each.name for each in self._staged())

    def bytes(self) -> int:
        """How many are staged, whoever left them there."""
        total = 0
        for folder in self._staged():
            with contextlib.suppress(FileNotFoundError):  # its request has just ended
                total += sum(file.stat().st_size for file in folder.iterdir())
        return total

    def name(self, shared: Collection[str]) -> None:
        """Shared memory that is to go with the folder, beside what was named before."""
        if self._named.issuperset(shared):
            return
        self._named.update(shared)
        (self.path / _NAMES).write_text("\n".join(self._named))

    def adopt(self, shared: Collection[str]) -> None:
        """As `name`; and it takes now what it would take later.

        Where there is no room left, a process that touches a page for the first time is killed
        (SIGBUS).

        Raises:
            OSError: there is none now.
        """
        self.name(shared)
        for name in shared:
            # Else it went since.
            with contextlib.suppress(FileNotFoundError), (self._root / name).open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                for start in (*range(0, size, _APART), max(0, size - _TAKEN)):
                    os.posix_fallocate(file.fileno(), start, min(_TAKEN, size - start))

    def end(self) -> None:
        """Delete the folder and what it names, and what others have left since."""
        self._again.cancel()
        sweep(self._root)
        if self._lock is not None:
            _delete(self.path, self._root)
            os.close(self._lock)
            self._lock = None

    def _staged(self) -> list[Path]:
        return [each for each in self.path.iterdir() if each.is_dir()]


def semaphores(pid: int, root: Path | None = None) -> set[str]:
    """Names of those that a process has in shared memory: joblib's outlive a process that is
    killed.
    """
    return {each.name for each in (root or storage()).glob(f"sem.loky-{pid}-*")}


@contextlib.contextmanager
def naming(staging: Staging) -> Iterator[None]:
    """Within it what vLLM makes in shared memory is named as it comes: it may be killed while it
    starts.
    """
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_NAMING_SECONDS):
            staging.name(shared_by_children())

    thread = threading.Thread(target=follow, name="naming")
    with contextlib.ExitStack() as failed:
        failed.callback(staging.end)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        failed.pop_all()


def shared_by_children() -> set[str]:
    """Names of what vLLM's processes, children of this one, have in shared memory beside their
    adapters.
    """
    names: set[str] = set()
    for process in psutil.Process().children(recursive=True):
        names.update(semaphores(process.pid))
        with contextlib.suppress(OSError):  # it has ended
            names.update(_RING.findall(Path(f"/proc/{process.pid}/maps").read_text()))
    return names


def storage() -> Path:
    """Memory, where the system has it as files."""
    return _MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())


def sweep(root: Path) -> None:
    """Delete the folders of servers of this user that are gone, and no other folder, whatever it is
    called.
    """
    for folder in root.glob("mayfly-*-*"):
        if not _FOLDERS.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):  # locked: it lives; or another one has just swept it
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _delete(folder, root)
            finally:
                os.close(lock)


def locked_folder(root: Path, prefix: str) -> tuple[Path, int]:
    """A new folder that `sweep` leaves alone until the descriptor, which is given with it, is
    closed.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        # Another server swept it before it was locked.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                return folder, lock


def _delete(folder: Path, root: Path) -> None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for name in (folder / _NAMES).read_text().splitlines():
            if _OTHERS.fullmatch(name):
                (root / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
