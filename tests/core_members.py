"""Another process that shares the cores: it is busy, or it sees whether some process is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMBER = """
import sys
from pathlib import Path
from adapters.core_share import CoreShare

with CoreShare(Path(sys.argv[1]), 1, 2).busy():
    print("busy", flush=True)
    sys.stdin.read()
"""
_WATCHER = """
import sys
from pathlib import Path
import torch
from adapters.core_share import CoreShare

with CoreShare(Path(sys.argv[1]), 1, 2).computing():
    print(torch.get_num_threads())
"""


@contextmanager
def busy_elsewhere(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which is busy within the `with` block."""
    member = subprocess.Popen(
        [sys.executable, "-c", _MEMBER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with member:
        try:
            assert member.stdout is not None
            assert member.stdout.readline() == "busy\n"
            yield member
        finally:
            member.kill()


def sees_busy(file: Path) -> bool:
    """Whether another process sees that some process is busy."""
    command = [sys.executable, "-c", _WATCHER, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
