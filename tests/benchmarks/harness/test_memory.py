"""Memory by process."""

from __future__ import annotations

import subprocess
import sys

import psutil

from benchmarks.harness.memory import memory_by_process

# A process of its own: in that of the tests, libraries may return memory at any moment.
_ALLOCATE = """
import numpy as np
print("imported", flush=True)
input()
filled = np.ones(256 << 20, np.uint8)
print("filled", flush=True)
input()
"""


def test_private_memory_counts_in_every_size() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ALLOCATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        process = psutil.Process(started.pid)
        assert started.stdout.readline() == "imported\n"
        before = memory_by_process([process])["total"]
        print(file=started.stdin, flush=True)
        assert started.stdout.readline() == "filled\n"
        after = memory_by_process([process])["total"]
        print(file=started.stdin, flush=True)

    for field in ("resident", "proportional", "private"):
        assert 240 << 20 < after[field] - before[field] < 320 << 20
    assert after["private"] <= after["proportional"] <= after["resident"]
