"""Processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event

import psutil
import pytest

from serving.engine.plugins.parent_death import register
from serving.environment import ENDS_WITH_PARENT

_PARENT = "import tests.serving.engine.plugins.test_parent_death as here; here.start_a_child()"


def start_a_child() -> None:
    """Start a child process as vLLM does, print its id, and wait."""
    context = multiprocessing.get_context("spawn")
    registered = context.Event()
    child = context.Process(target=_child, args=(registered,))
    child.start()
    registered.wait()
    print(child.pid, flush=True)
    time.sleep(60)


def _child(registered: Event) -> None:
    register()
    registered.set()
    time.sleep(60)


@pytest.mark.parametrize(("variables", "lives"), [(ENDS_WITH_PARENT, False), ({}, True)])
def test_vllms_processes_end_with_their_parent_only_if_the_variable_is_set(
    variables: dict[str, str], lives: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([child], timeout=1 if lives else 10)
        assert bool(alive) is lives
        if lives:
            child.kill()
