"""Memory by process."""

from __future__ import annotations

import os

import numpy as np
import psutil

from benchmarks.harness.memory import memory_by_process


def test_private_memory_counts_in_every_size() -> None:
    process = psutil.Process(os.getpid())
    before = memory_by_process([process])["total"]
    filled = np.ones(256 << 20, np.uint8)
    after = memory_by_process([process])["total"]

    assert filled.nbytes == 256 << 20
    for field in ("resident", "proportional", "private"):
        assert 240 << 20 < after[field] - before[field] < 320 << 20
    assert after["private"] <= after["proportional"] <= after["resident"]
