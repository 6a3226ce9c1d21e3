"""The folder of one running server on this machine: Ray's session, sockets and logs, and what else
its processes put where temporary files go.

It is locked while the server lives, so that the next server of the same user deletes what one that
was killed left behind (`serving.engine.staging.sweep`). Other Ray sessions lie elsewhere and are
not touched. Its path is short: Ray's sockets lie below it, and a path of a Unix socket has 107
bytes at most.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from serving.engine.staging import locked_folder, sweep

_PREFIX = "mayfly-run-"
_LONGEST_ROOT = 24  # bytes; below it come the folder's own name and those of Ray's sockets
_SHORT_ROOT = Path("/tmp")  # noqa: S108


class RunFolder:
    """A new folder, `path`, where temporary files of this process and of those that it starts go
    until `end`.
    """

    def __init__(self) -> None:
        self._earlier = os.environ.get("TMPDIR")
        root = Path(tempfile.gettempdir())
        if len(os.fsencode(root)) > _LONGEST_ROOT:
            root = _SHORT_ROOT
        sweep(root)
        self.path, self._lock = locked_folder(root, _PREFIX)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.path)

    def keep_logs(self, place: Path) -> Path | None:
        """Move Ray's logs to a place of their own, where they replace those that were kept before.

        Returns the place, or None where there are no logs.
        """
        logs = self.path / "session_latest" / "logs"
        if not logs.is_dir():
            return None
        with contextlib.suppress(OSError):
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(logs, place, ignore_dangling_symlinks=True)
            return place
        return None

    def end(self) -> None:
        """Delete it, and put temporary files where they went before."""
        tempfile.tempdir = None
        if self._earlier is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = self._earlier
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
