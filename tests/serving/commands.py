"""Runs the command `mayfly` in a process of its own, and walks through its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "ray",
    "vllm",
    "faiss",
    "numba",
    "pyarrow",
    "scipy",
)
_CODE = """
import sys
from serving.cli.main import main
sys.argv = ["mayfly", *sys.argv[2:]]
try:
    main()
finally:
    with open(sys.orig_argv[3], "w") as file:
        file.write(" ".join(sys.modules))
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status.
        out, err: standard output and standard error.
        imported: names of all imported modules.
    """

    status: int
    out: str
    err: str
    imported: frozenset[str]

    @property
    def heavy(self) -> frozenset[str]:
        """Imported modules that take long to import."""
        return self.imported.intersection(HEAVY)


def run(tmp_path: Path, *arguments: str, stdin: str = "", **environment: str) -> Ended:
    """Run `mayfly` with these arguments in a new process."""
    modules = tmp_path / "modules"
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(modules), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        timeout=300,
    )
    return Ended(done.returncode, done.stdout, done.stderr, frozenset(modules.read_text().split()))
