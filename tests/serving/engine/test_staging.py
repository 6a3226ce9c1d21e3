"""Folders of the dead are swept, with the shared memory that they name; nobody else's."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.engine import staging as staging_module
from serving.engine.staging import Staging, sweep

_OWNER = """
import sys
from pathlib import Path
from serving.engine.staging import Staging
staging = Staging(Path(sys.argv[1]))
names = ["psm_theirs", "sem.loky-1-theirs"]
for name in names:
    (Path(sys.argv[1]) / name).write_bytes(b"shared")
staging.adopt(names)
with (staging.path / "shared-memory").open("a") as file:
    file.write("\\n../outside\\npsm_gone")
(staging.path / "adapter").mkdir()
print(staging.path, flush=True)
sys.stdin.read()
"""


def owner(root: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process with a staging folder of its own, that lives until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_server_left_is_swept_with_the_shared_memory_that_it_named(
    tmp_path: Path,
) -> None:
    root = tmp_path / "memory"
    root.mkdir()
    process, folder = owner(root)
    for file in (root / "psm_others", tmp_path / "outside"):
        file.write_bytes(b"shared")
    assert folder.is_dir()

    process.kill()
    process.communicate()
    staging = Staging(root)

    assert sorted(each.name for each in root.iterdir()) == sorted([staging.path.name, "psm_others"])
    assert (tmp_path / "outside").exists()
    staging.end()


def test_a_living_servers_is_left_alone(tmp_path: Path) -> None:
    process, folder = owner(tmp_path)

    sweep(tmp_path)

    assert (folder / "adapter").is_dir()
    assert (tmp_path / "psm_theirs").exists()
    process.kill()
    process.communicate()


def test_who_still_lived_at_the_start_is_swept_later_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wait in (0.3, 600.0):
        monkeypatch.setattr(staging_module, "_AGAIN_SECONDS", wait)
        process, folder = owner(tmp_path)
        staging = Staging(tmp_path)
        assert folder.is_dir()
        process.kill()
        process.communicate()
        for _ in range(500 if wait < 1 else 0):
            if not folder.exists():
                break
            time.sleep(0.02)
        assert folder.exists() is (wait > 1)

        staging.end()
        assert list(tmp_path.iterdir()) == []


def test_its_own_end_leaves_nothing(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    (tmp_path / "psm_mine").write_bytes(b"shared")
    (tmp_path / "psm_earlier").write_bytes(b"of a process that has been killed meanwhile")
    staging.name({"psm_earlier"})
    staging.adopt({"psm_mine", "psm_gone"})
    (staging.path / "adapter").mkdir()

    staging.end()

    assert list(tmp_path.iterdir()) == []


def test_only_adapters_are_staged(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    (tmp_path / "psm_mine").write_bytes(b"shared")
    staging.adopt({"psm_mine"})
    (staging.path / "adapter").mkdir()
    (staging.path / "adapter" / "weights").write_bytes(b"12345")

    assert staging.names() == ["adapter"]
    assert staging.bytes() == 5
    staging.end()


@pytest.mark.parametrize("name", ["mayfly-1-alinkabc", "mayfly-1-afileabc"])
def test_what_is_no_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").write_text("kept")
    if "link" in name:
        (tmp_path / name).symlink_to(target)
    else:
        (tmp_path / name).write_text("kept")

    sweep(tmp_path)

    assert (target / "kept").exists()
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "name", ["mayfly-my-corpus", "mayfly-run-1", "mayfly-12-and-more", "mayfly-entrance-abcdefgh"]
)
def test_folders_that_are_not_a_servers_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "kept").write_text("kept")
    (tmp_path / "mayfly-1-abcdefgh").mkdir()

    sweep(tmp_path)

    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "kept").exists()


def test_shared_memory_takes_what_its_messages_need_and_no_more(tmp_path: Path) -> None:
    ring = tmp_path / "psm_ring"
    with ring.open("wb") as file:
        file.truncate((160 << 20) + 20)
    staging = Staging(tmp_path)

    staging.adopt({"psm_ring"})

    taken = ring.stat().st_blocks * 512
    assert 5 << 20 <= taken <= 8 << 20
    assert ring.stat().st_size == (160 << 20) + 20
    staging.end()
