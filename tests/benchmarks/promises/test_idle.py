"""Processor time of an idle server, by process."""

from __future__ import annotations

import pytest

from benchmarks.harness.process_names import process_name
from benchmarks.promises.idle import shares


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        ("VLLM::EngineCore", "engine core"),
        ("VLLM::Worker", "worker"),
        ("ray::ServeReplica:mayfly:trainer", "trainer"),
        ("ray::ServeController", "Serve's controller"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/s", "raylet"),
        ("/venv/bin/python /venv/bin/mayfly serve --port 1", "the command"),
        ("/x/haproxy -db -f /tmp/haproxy.cfg", "HAProxy"),
        ("/usr/bin/something", "others"),
    ],
)
def test_a_process_is_named_by_its_command_line(command_line: str, name: str) -> None:
    assert process_name(command_line) == name


def test_a_share_is_the_time_spent_in_between_by_all_processes_of_a_name() -> None:
    before = {(1, "worker"): 10.0, (2, "idle workers"): 1.0, (3, "gone"): 5.0}
    after = {(1, "worker"): 10.6, (2, "idle workers"): 1.3, (4, "idle workers"): 0.9}

    assert shares(before, after, 60.0) == pytest.approx({"idle workers": 0.02, "worker": 0.01})
    assert next(iter(shares(before, after, 60.0))) == "idle workers"
