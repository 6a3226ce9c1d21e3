"""A virtual environment for each client under .cache/compat, and the sources of a package.

pip asks the registries that this machine's own settings know. An environment is kept, and made anew
when the packages that are asked for change. Knows nothing of what they are for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import ROOT

CACHE = ROOT / ".cache" / "compat"
INSTALL_SECONDS = 900


class NotInstalledError(RuntimeError):
    """pip could not install something; the message is the end of what it said."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    def command(self, name: str) -> str:
        """The path of one of its commands."""
        return str(self.folder / "bin" / name)

    def site_packages(self) -> Path:
        """Where its packages lie."""
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found


def make(name: str, packages: Sequence[str]) -> Environment:
    """An environment with these packages, pinned as pip takes them.

    Raises:
        NotInstalledError: pip could not.
    """
    folder = CACHE / name
    stamp = folder / "installed.txt"
    wanted = "\n".join([sys.version, *packages])
    if not stamp.exists() or stamp.read_text() != wanted:
        progress(f"installing {name}")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip(folder / "bin" / "python", "install", *packages)
        stamp.write_text(wanted)
    return Environment(folder)


def sources(requirement: str) -> Path:
    """The unpacked source distribution of a package, given as `name==version`.

    Raises:
        NotInstalledError: pip could not download it.
    """
    folder = CACHE / "sources" / requirement.replace("==", "-")
    if not folder.exists():
        progress(f"downloading the sources of {requirement}")
        download = folder.with_name(f"{folder.name}.download")
        shutil.rmtree(download, ignore_errors=True)
        _pip(
            Path(sys.executable),
            "download",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            str(download),
            requirement,
        )
        (archive,) = download.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(download, filter="data")
        (unpacked,) = (path for path in download.iterdir() if path.is_dir())
        unpacked.rename(folder)
        shutil.rmtree(download)
    return folder


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
    )
    if ran.returncode:
        raise NotInstalledError(ran.stderr.strip()[-500:])
