"""Processes that have ended, and those that only stand still."""

from __future__ import annotations

import signal
import subprocess

import psutil

from benchmarks.harness.process_ends import is_alive, wait_for_end


def test_a_stopped_process_is_alive_and_a_killed_one_is_not() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(child.pid)
    try:
        process.send_signal(signal.SIGSTOP)
        wait_for_end([process], 0.2)
        stopped = is_alive(process)
    finally:
        process.kill()
    # Nobody has asked for its status yet.
    wait_for_end([process], 30)
    killed = is_alive(process)
    child.wait()

    assert (stopped, killed, is_alive(process)) == (True, False, False)
