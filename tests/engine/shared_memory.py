"""What a server has left in shared memory, where other programs have files of their own."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import psutil


def left_in_shared_memory(before: set[str]) -> set[str]:
    """What a server whose processes have all ended has left in /dev/shm.

    Args:
        before: what was there before it started.
    """
    found = set(os.listdir("/dev/shm")) - before - _in_use()
    # Of another program, which has removed it meanwhile.
    return {name for name in found if Path("/dev/shm", name).exists()}


def _in_use() -> set[str]:
    """What living processes have in /dev/shm: mapped files, and folders named after their ids."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # a process that has ended
            lines = [line.split() for line in maps.read_text().splitlines() if "/dev/shm/" in line]
            # A semaphore is mapped under a name that it has only while it is made.
            mapped |= {int(inode) for _, _, _, _, inode, *_ in lines}
    used = {each.name for each in os.scandir("/dev/shm") if each.inode() in mapped}
    marked = (re.match(r"mayfly-(\d+)-.*", each) for each in os.listdir("/dev/shm"))
    return used | {each[0] for each in marked if each and psutil.pid_exists(int(each[1]))}
