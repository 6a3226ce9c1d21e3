"""The folder for all temporary files of one server on this machine, Ray's session among them.

It is locked while the server runs. If the server is killed, the next server of the same user
deletes it (`serving.engine.staging.sweep`). Ray sessions of other programs are in other folders and
are not touched. The path is short, because Ray's sockets lie below it and the path of a Unix socket
has at most 107 bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from serving.engine.staging import locked_folder, sweep

_PREFIX = "mayfly-run-"
# Largest length of the parent folder's path, in bytes: the names of this folder and of Ray's
# sockets follow.
_MAX_ROOT = 24
_SHORT_ROOT = Path("/tmp")  # noqa: S108


class RunFolder:
    """A new folder that is the TMPDIR of this process and its children until `end`.

    Attributes:
        path: the folder.
    """

    def __init__(self) -> None:
        self._earlier_tmpdir = os.environ.get("TMPDIR")
        root = Path(tempfile.gettempdir())
        if len(os.fsencode(root)) > _MAX_ROOT:
            root = _SHORT_ROOT
        sweep(root)
        self.path, self._lock = locked_folder(root, _PREFIX)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.path)

    def keep_logs(self, target: Path) -> Path | None:
        """Copy Ray's logs to a folder, in place of what it contained before.

        Returns:
            The folder, or None if there are no logs or they could not be copied.
        """
        logs = self.path / "session_latest" / "logs"
        if not logs.is_dir():
            return None
        with contextlib.suppress(OSError):
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(logs, target, ignore_dangling_symlinks=True)
            return target
        return None

    def end(self) -> None:
        """Delete the folder and restore TMPDIR."""
        tempfile.tempdir = None
        if self._earlier_tmpdir is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = self._earlier_tmpdir
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
