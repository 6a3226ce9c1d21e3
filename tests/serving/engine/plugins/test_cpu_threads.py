"""Threads of a step of vLLM on a CPU: all cores while no other process computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapters.core_share import CoreShare
from serving.engine.plugins.cpu_threads import share_cores
from tests.core_members import busy_elsewhere


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch._C.set_num_threads(before)


class Runner:
    """In place of vLLM's model runner."""

    def execute_model(self, step: str, *, times: int) -> tuple[str, int]:
        return step * times, torch.get_num_threads()


def test_each_step_computes_with_the_cores_that_others_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cores.lock"
    # As vLLM does.
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    share_cores(Runner, CoreShare(file, 1, 2))
    # VLLM may load the plugin again.
    share_cores(Runner, CoreShare(tmp_path / "another.lock", 1, 3))
    alone = Runner().execute_model("ab", times=2)
    with busy_elsewhere(file):
        beside = Runner().execute_model("ab", times=2)

    assert (alone, beside) == (("abab", 2), ("abab", 1))
