"""A virtual environment for each client under .cache/compat, and unpacked source distributions.

pip uses the package index that this machine's settings name. An environment is created anew when
its list of packages changes.
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
    """pip failed; the message is the end of its output."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    def command(self, name: str) -> str:
        """Path of one of its commands."""
        return str(self.folder / "bin" / name)

    def site_packages(self) -> Path:
        """The folder of its packages."""
        (folder,) = self.folder.glob("lib/python*/site-packages")
        return folder


def make_environment(name: str, packages: Sequence[str]) -> Environment:
    """An environment with these pinned packages.

    Raises:
        NotInstalledError: pip could not install them.
    """
    folder = CACHE / name
    stamp = folder / "installed.txt"
    contents = "\n".join([sys.version, *packages])
    if not stamp.exists() or stamp.read_text() != contents:
        progress(f"installing {name}")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip(folder / "bin" / "python", "install", *packages)
        stamp.write_text(contents)
    return Environment(folder)


def source_distribution(requirement: str) -> Path:
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
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
    )
    if process.returncode:
        raise NotInstalledError(process.stderr.strip()[-500:])
