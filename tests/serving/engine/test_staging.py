"""Staging: folders of dead servers are swept with their shared memory, and nothing else is."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from serving.engine import staging as staging_module
from serving.engine.staging import Staging, locked_folder, shared_memory_of_children, sweep

_OWNER = """
import sys
from pathlib import Path
from serving.engine.staging import Staging
staging = Staging(Path(sys.argv[1]))
names = ["psm_theirs", "sem.loky-1-theirs"]
for name in names:
    (Path(sys.argv[1]) / name).write_bytes(b"shared")
staging.reserve(names)
with (staging.path / "shared-memory").open("a") as file:
    file.write("\\n../outside\\npsm_gone")
(staging.path / "adapter").mkdir()
print(staging.path, flush=True)
sys.stdin.read()
"""


def start_owner(root: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process with a staging folder in `root`; returns both."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_killed_servers_folder_is_swept_with_the_shared_memory_listed_in_it(
    tmp_path: Path,
) -> None:
    root = tmp_path / "memory"
    root.mkdir()
    process, folder = start_owner(root)
    for file in (root / "psm_others", tmp_path / "outside"):
        file.write_bytes(b"shared")
    assert folder.is_dir()

    kill(process)
    staging = Staging(root)

    assert sorted(each.name for each in root.iterdir()) == sorted([staging.path.name, "psm_others"])
    assert (tmp_path / "outside").exists()
    staging.end()


def test_a_running_servers_folder_is_not_swept(tmp_path: Path) -> None:
    process, folder = start_owner(tmp_path)

    sweep(tmp_path)

    assert (folder / "adapter").is_dir()
    assert (tmp_path / "psm_theirs").exists()
    kill(process)


def test_a_second_sweep_follows_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging_module, "_SECOND_SWEEP_SECONDS", 0.3)
    process, folder = start_owner(tmp_path)
    staging = Staging(tmp_path)
    assert folder.is_dir()

    kill(process)

    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.exists()
    staging.end()


def test_the_end_sweeps_once_more(tmp_path: Path) -> None:
    process, folder = start_owner(tmp_path)
    staging = Staging(tmp_path)
    kill(process)
    assert folder.exists()

    staging.end()

    assert list(tmp_path.iterdir()) == []


def test_the_end_deletes_the_folder_and_its_shared_memory(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    (tmp_path / "psm_mine").write_bytes(b"shared")
    (tmp_path / "psm_earlier").write_bytes(b"of a process that has been killed meanwhile")
    staging.record({"psm_earlier"})
    staging.reserve({"psm_mine", "psm_gone"})
    (staging.path / "adapter").mkdir()

    staging.end()

    assert list(tmp_path.iterdir()) == []


def test_only_adapters_count_as_staged(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    (tmp_path / "psm_mine").write_bytes(b"shared")
    staging.reserve({"psm_mine"})
    (staging.path / "adapter").mkdir()
    (staging.path / "adapter" / "weights").write_bytes(b"12345")

    assert staging.names() == ["adapter"]
    assert staging.bytes() == 5
    staging.end()


@pytest.mark.parametrize("name", ["mayfly-1-alinkabc", "mayfly-1-afileabc"])
def test_links_and_files_are_not_swept(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / staging_module._MARKER).touch()
    if "link" in name:
        (tmp_path / name).symlink_to(target)
    else:
        (tmp_path / name).write_text("content")

    sweep(tmp_path)

    assert (target / staging_module._MARKER).exists()
    assert (tmp_path / name).exists()


def abandoned_folder(root: Path, name: str) -> Path:
    """A folder like that of a killed server, under another name."""
    folder = root / name
    folder.mkdir()
    (folder / staging_module._MARKER).touch()
    return folder


@pytest.mark.parametrize(
    "name", ["mayfly-my-corpus", "mayfly-run-1", "mayfly-12-and-more", "mayfly-haproxy-abcdefgh"]
)
def test_folders_with_other_names_are_not_swept(tmp_path: Path, name: str) -> None:
    folder = abandoned_folder(tmp_path, name)
    abandoned_folder(tmp_path, "mayfly-1-abcdefgh")

    sweep(tmp_path)

    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["mayfly-run-holidays", "mayfly-2024-pictures"])
def test_a_users_folder_that_is_named_like_a_servers_is_not_swept(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("content")

    sweep(tmp_path)

    assert (tmp_path / name / "precious").read_text() == "content"


def test_the_folders_of_servers_are_those_that_a_sweep_deletes(tmp_path: Path) -> None:
    for prefix in ("mayfly-run-", "mayfly-1234-"):
        folder, lock = locked_folder(tmp_path, prefix)
        sweep(tmp_path)
        assert folder.is_dir()

        os.close(lock)
        sweep(tmp_path)
        assert not folder.exists()


def test_only_the_space_that_messages_need_is_reserved(tmp_path: Path) -> None:
    ring = tmp_path / "psm_ring"
    with ring.open("wb") as file:
        file.truncate((160 << 20) + 20)
    staging = Staging(tmp_path)

    staging.reserve({"psm_ring"})

    reserved = ring.stat().st_blocks * 512
    assert 5 << 20 <= reserved <= 8 << 20
    assert ring.stat().st_size == (160 << 20) + 20
    staging.end()


def test_semaphores_of_spawned_processes_are_found() -> None:
    """vLLM's core creates one, which outlives it when it is killed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold_semaphore, args=(theirs,))
    process.start()
    try:
        assert ours.poll(60)
        name = ours.recv()
        found = shared_memory_of_children()
    finally:
        ours.send("end")
        process.join(60)

    assert f"sem.{name.removeprefix('/')}" in found


def _hold_semaphore(connection: Connection) -> None:
    lock = multiprocessing.get_context("spawn").Lock()
    connection.send(lock._semlock.name)  # type: ignore[attr-defined]
    connection.recv()
