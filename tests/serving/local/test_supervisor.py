"""The node: an engine that is well now and then is waited for, one that never is again is given up;
nobody escapes.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.errors import LostError
from serving.local import supervisor as node_module
from serving.local.supervisor import RaySupervisor

SECONDS = 0.01


# A child that leaves a grandchild behind, with a semaphore that nobody deletes.
_LEAVER = """
import subprocess, sys
from pathlib import Path
left = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
Path(f"/dev/shm/sem.loky-{left.pid}-test").write_bytes(b"")
print(left.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[RaySupervisor]:
    monkeypatch.setattr(node_module, "_SECONDS", SECONDS)
    node = RaySupervisor()
    yield node
    node.end()


@pytest.fixture
def started() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    """Starts a script, and gives it with the first line that it says."""
    processes = []

    def start(script: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_an_engine_that_is_well_at_one_look_in_three_is_waited_for(node: RaySupervisor) -> None:
    looks = 0

    def healthy() -> bool:
        nonlocal looks
        looks += 1
        return looks % 3 == 0 and looks <= 90

    with pytest.raises(LostError, match="no engine"):
        node.watch(healthy, patience=50 * SECONDS)
    assert looks > 90


def test_who_does_not_say_whether_it_is_well_is_not_waited_for(node: RaySupervisor) -> None:
    never = threading.Event()

    with pytest.raises(LostError, match="no engine"):
        node.watch(never.wait, patience=5 * SECONDS)
    never.set()


def test_an_engine_that_does_not_come_back_is_given_up(node: RaySupervisor) -> None:
    with pytest.raises(LostError, match="no engine"):
        node.watch(lambda: False, patience=5 * SECONDS)

    assert node.lost == "engine"


def test_the_end_of_the_raylet_is_seen_though_who_is_asked_does_not_answer(
    node: RaySupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    there = iter([None] * 5)
    monkeypatch.setattr(RaySupervisor, "lost", property(lambda _: next(there, "raylet")))

    with pytest.raises(LostError, match="raylet has ended"):
        node.watch(never.wait, patience=60.0)
    never.set()


def test_what_needs_ray_is_waited_for_while_ray_is_there(
    node: RaySupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, never, hurry = threading.Event(), threading.Event(), threading.Event()
    assert node.while_there(done.set, 60, hurry)
    assert done.is_set()

    monkeypatch.setattr(RaySupervisor, "lost", "raylet")
    assert not node.while_there(never.wait, 60, hurry)
    never.set()


def test_an_orderly_end_that_does_not_come_is_not_waited_for_beyond_its_time_or_in_a_hurry(
    node: RaySupervisor,
) -> None:
    never, calm, hurry = threading.Event(), threading.Event(), threading.Event()
    hurry.set()

    assert not node.while_there(never.wait, 2 * SECONDS, calm)
    assert not node.while_there(never.wait, 600, hurry)
    never.set()


def test_an_orderly_end_that_fails_says_nothing_and_is_none(
    node: RaySupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("the control store has gone")

    assert not node.while_there(fail, 60, threading.Event())
    assert capsys.readouterr().err == ""


def test_the_end_kills_who_has_lost_its_parent_and_deletes_what_it_had_in_shared_memory(
    node: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    parent, pid = started(_LEAVER)
    orphan = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    assert orphan.is_running()

    left = node.end()

    assert left == []
    assert not psutil.pid_exists(orphan.pid)
    assert not Path(f"/dev/shm/sem.loky-{pid}-test").exists()


def test_what_a_process_had_is_deleted_though_it_is_killed_before_the_end(
    node: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    _, pid = started(_LEAVER)

    def end_in_order() -> None:
        psutil.Process(int(pid)).kill()

    assert node.while_there(end_in_order, 60, threading.Event())
    assert node.end() == []
    assert not Path(f"/dev/shm/sem.loky-{pid}-test").exists()


def test_the_end_spares_who_was_there_before(
    started: Callable[[str], tuple[subprocess.Popen[str], str]],
) -> None:
    earlier, _ = started("import sys; print('here', flush=True); sys.stdin.read()")
    node = RaySupervisor()

    assert node.end() == []

    assert earlier.poll() is None


def test_what_cannot_be_killed_is_named(
    node: RaySupervisor,
    started: Callable[[str], tuple[subprocess.Popen[str], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, _ = started("import sys; print('here', flush=True); sys.stdin.read()")
    monkeypatch.setattr(psutil.Process, "kill", lambda _: None)

    (left,) = node.end(seconds=3 * SECONDS)

    assert left.startswith(f"process {process.pid} (python")


def test_the_end_waits_until_every_thread_of_what_it_killed_has_let_go_of_its_locks(
    node: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    _, folder = started(
        "import sys; from serving.engine.staging import Staging; print(Staging().path, flush=True); sys.stdin.read()"
    )
    assert Path(folder).is_dir()

    assert node.end() == []

    assert not Path(folder).exists()


def test_descendants_that_have_ended_do_not_stay_as_zombies(
    node: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    parent, pid = started(_LEAVER)
    parent.kill()
    parent.wait()
    orphan = psutil.Process(int(pid))
    orphan.kill()
    while orphan.status() != psutil.STATUS_ZOMBIE:
        time.sleep(SECONDS)

    with pytest.raises(LostError, match="no engine"):
        node.watch(lambda: False, patience=5 * SECONDS)

    assert int(pid) not in {each.pid for each in psutil.Process().children()}
