"""The run folder holds a server's temporary files and is deleted with it, also if it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serving.local.run_folder import RunFolder

_OWNER = """
import sys
from serving.local import run_folder
from serving.local.run_folder import RunFolder
run_folder._MAX_ROOT = 200
folder = RunFolder()
(folder.path / "session_1").mkdir()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, with a path short enough for sockets."""
    monkeypatch.setattr("serving.local.run_folder._MAX_ROOT", 200)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_temporary_files_are_created_in_it_and_deleted_with_it(root: Path) -> None:
    folder = RunFolder()
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"an upload")
    assert Path(file.name).parent == folder.path
    assert os.environ["TMPDIR"] == str(folder.path)

    folder.end()

    assert list(root.iterdir()) == []
    assert (os.environ["TMPDIR"], tempfile.gettempdir()) == (str(root), str(root))


def test_only_the_folder_of_a_killed_server_is_swept(
    root: Path,
) -> None:
    def start_owner() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, swept), (alive, kept) = start_owner(), start_owner()
    (root / "ray" / "session_of_others").mkdir(parents=True)
    killed.kill()
    killed.communicate()

    folder = RunFolder()

    assert not swept.exists()
    assert (kept / "session_1").is_dir()
    assert (root / "ray" / "session_of_others").is_dir()
    folder.end()
    alive.kill()
    alive.communicate()


def test_logs_of_a_failed_start_replace_those_of_the_previous_one(
    root: Path, tmp_path: Path
) -> None:
    place = tmp_path / "home" / "logs" / "failed"
    for name in ("first", "second"):
        folder = RunFolder()
        logs = folder.path / "session_1" / "logs"
        logs.mkdir(parents=True)
        (logs / f"{name}.err").write_text("what went wrong")
        (folder.path / "session_latest").symlink_to(folder.path / "session_1")

        assert folder.keep_logs(place) == place
        folder.end()

    assert [each.name for each in place.iterdir()] == ["second.err"]


def test_a_start_that_failed_before_ray_logged_keeps_no_logs(tmp_path: Path) -> None:
    folder = RunFolder()

    assert folder.keep_logs(tmp_path / "logs") is None
    folder.end()


def test_paths_of_rays_sockets_are_short_enough_in_any_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))

    folder = RunFolder()

    socket = (
        folder.path / "session_2026-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store.1"
    )
    assert len(os.fsencode(socket)) <= 107
    folder.end()
