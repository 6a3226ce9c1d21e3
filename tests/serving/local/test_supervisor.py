"""The supervisor of Ray's processes: how long it waits for an engine, and that no process escapes
its end.
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
from serving.local import supervisor as supervisor_module
from serving.local.supervisor import RaySupervisor

SECONDS = 0.01


# A child with a grandchild whose semaphore nobody deletes.
_PARENT = """
import subprocess, sys
from pathlib import Path
command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
grandchild = subprocess.Popen(command, stdin=subprocess.PIPE)
Path(f"/dev/shm/sem.loky-{grandchild.pid}-test").write_bytes(b"")
print(grandchild.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[RaySupervisor]:
    monkeypatch.setattr(supervisor_module, "_POLL_SECONDS", SECONDS)
    supervisor = RaySupervisor()
    yield supervisor
    supervisor.end()


@pytest.fixture
def started() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    """Starts a script and returns it with the first line of its output."""
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


def test_an_engine_that_is_healthy_in_one_check_of_three_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "_POLL_SECONDS", SECONDS)
    checks = 0
    # A check takes a second.
    supervisor = RaySupervisor(clock=lambda: float(checks))

    def healthy() -> bool:
        nonlocal checks
        checks += 1
        return checks % 3 == 0 and checks <= 90

    with pytest.raises(LostError, match="no healthy engine"):
        supervisor.watch(healthy, patience=50)
    supervisor.end()

    assert checks > 90


def test_an_engine_whose_check_hangs_is_given_up(supervisor: RaySupervisor) -> None:
    never = threading.Event()

    with pytest.raises(LostError, match="no healthy engine"):
        supervisor.watch(never.wait, patience=5 * SECONDS)
    never.set()


def test_an_engine_that_stays_unhealthy_is_given_up(supervisor: RaySupervisor) -> None:
    with pytest.raises(LostError, match="no healthy engine"):
        supervisor.watch(lambda: False, patience=5 * SECONDS)

    assert supervisor.lost == "engine"


def test_the_end_of_the_raylet_is_noticed_while_a_check_hangs(
    supervisor: RaySupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    lost = iter([None] * 5)
    monkeypatch.setattr(RaySupervisor, "lost", property(lambda _: next(lost, "raylet")))

    with pytest.raises(LostError, match="raylet has ended"):
        supervisor.watch(never.wait, patience=60.0)
    never.set()


def test_an_action_is_awaited_only_while_ray_lives(
    supervisor: RaySupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, never, hurry = threading.Event(), threading.Event(), threading.Event()
    assert supervisor.run_while_ray_lives(done.set, 60, hurry)
    assert done.is_set()

    monkeypatch.setattr(RaySupervisor, "lost", "raylet")
    assert not supervisor.run_while_ray_lives(never.wait, 60, hurry)
    never.set()


def test_an_action_that_hangs_is_abandoned_after_its_time_or_in_a_hurry(
    supervisor: RaySupervisor,
) -> None:
    never, calm, hurry = threading.Event(), threading.Event(), threading.Event()
    hurry.set()

    assert not supervisor.run_while_ray_lives(never.wait, 2 * SECONDS, calm)
    assert not supervisor.run_while_ray_lives(never.wait, 600, hurry)
    never.set()


def test_an_action_that_fails_prints_nothing_and_counts_as_not_done(
    supervisor: RaySupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("the control store has gone")

    assert not supervisor.run_while_ray_lives(fail, 60, threading.Event())
    assert capsys.readouterr().err == ""


def test_the_end_kills_orphans_and_deletes_their_semaphores(
    supervisor: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    parent, pid = started(_PARENT)
    orphan = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    assert orphan.is_running()

    left = supervisor.end()

    assert left == []
    assert not psutil.pid_exists(orphan.pid)
    assert not Path(f"/dev/shm/sem.loky-{pid}-test").exists()


def test_semaphores_are_deleted_although_their_process_was_killed_before_the_end(
    supervisor: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    _, pid = started(_PARENT)

    def end_in_order() -> None:
        psutil.Process(int(pid)).kill()

    assert supervisor.run_while_ray_lives(end_in_order, 60, threading.Event())
    assert supervisor.end() == []
    assert not Path(f"/dev/shm/sem.loky-{pid}-test").exists()


def test_the_end_spares_earlier_children(
    started: Callable[[str], tuple[subprocess.Popen[str], str]],
) -> None:
    earlier, _ = started("import sys; print('here', flush=True); sys.stdin.read()")
    supervisor = RaySupervisor()

    assert supervisor.end() == []

    assert earlier.poll() is None


def test_the_end_names_processes_that_it_could_not_kill(
    supervisor: RaySupervisor,
    started: Callable[[str], tuple[subprocess.Popen[str], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, _ = started("import sys; print('here', flush=True); sys.stdin.read()")
    monkeypatch.setattr(psutil.Process, "kill", lambda _: None)

    (left,) = supervisor.end(seconds=3 * SECONDS)

    assert left.startswith(f"process {process.pid} (python")


def test_the_end_waits_until_killed_processes_have_released_their_locks(
    supervisor: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    _, folder = started(
        "import sys; from serving.engine.staging import Staging; "
        "print(Staging().path, flush=True); sys.stdin.read()"
    )
    assert Path(folder).is_dir()

    assert supervisor.end() == []

    assert not Path(folder).exists()


def test_orphans_that_end_do_not_remain_zombies(
    supervisor: RaySupervisor, started: Callable[[str], tuple[subprocess.Popen[str], str]]
) -> None:
    parent, pid = started(_PARENT)
    parent.kill()
    parent.wait()
    orphan = psutil.Process(int(pid))
    orphan.kill()
    while orphan.status() != psutil.STATUS_ZOMBIE:
        time.sleep(SECONDS)

    with pytest.raises(LostError, match="no healthy engine"):
        supervisor.watch(lambda: False, patience=5 * SECONDS)

    assert int(pid) not in {each.pid for each in psutil.Process().children()}
