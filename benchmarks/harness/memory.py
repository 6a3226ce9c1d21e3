"""Memory of a server by process, as the kernel counts it.

Resident memory counts pages that several processes share, such as libraries, once for each. The
proportional size divides them among the processes, so that its sum is what the machine spends.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from benchmarks.harness.process_names import process_name

_FIELDS = {
    "Rss:": "resident",
    "Pss:": "proportional",
    "Private_Clean:": "private",
    "Private_Dirty:": "private",
}


def memory_by_process(processes: Iterable[psutil.Process]) -> dict[str, dict[str, int]]:
    """Resident, proportional and private bytes by name of process, and of all as "total"."""
    found: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            name = process_name(" ".join(process.cmdline()))
            for field, size in _memory(process.pid).items():
                found[name][field] += size
                found["total"][field] += size
    largest = sorted(found, key=lambda name: -found[name]["proportional"])
    return {name: dict(found[name]) for name in largest}


def _memory(pid: int) -> Mapping[str, int]:
    sizes: defaultdict[str, int] = defaultdict(int)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, _unit = line.split()
        if name in _FIELDS:
            sizes[_FIELDS[name]] += int(size) << 10
    return sizes
