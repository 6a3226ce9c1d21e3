"""A source tree whose `mayfly` command runs: this one, or a checkout of an earlier commit.

An earlier commit has other modules, and vLLM finds Mayfly's plugins by the entry points of the
installed package. So a checkout gets metadata of its own, which hides the installed package from
processes that have the checkout on their path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.provenance import ROOT

_CHECKOUTS = ROOT / ".cache" / "checkouts"
# The name of the installed package, which the metadata of a checkout must hide.
_PACKAGE = "mayfly-serve"
_SHOW = (
    "import json, serving; from importlib.metadata import entry_points; "
    "print(json.dumps([serving.__file__, "
    "*(each.value for each in entry_points(group='vllm.general_plugins'))]))"
)
# As `make` sets them for every command.
_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


@dataclass(frozen=True)
class Tree:
    """A source tree.

    Attributes:
        name: "old" or "new".
        root: its folder.
    """

    name: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Python imports this tree; to be run in its folder."""
        return {**os.environ, **_THREADS, "PYTHONPATH": str(self.root)}

    @property
    def project(self) -> Mapping[str, Any]:
        """The section `project` of its pyproject.toml."""
        return dict(tomllib.loads((self.root / "pyproject.toml").read_text())["project"])

    def command(self, *arguments: str) -> list[str]:
        """The command line of `mayfly` with these arguments."""
        module, _, function = self.project["scripts"]["mayfly"].partition(":")
        return [sys.executable, "-c", f"from {module} import {function}; {function}()", *arguments]

    def run(self, *arguments: str) -> str:
        """Run `mayfly` to its end and return its output.

        Raises:
            RuntimeError: it failed; the message has the end of its output.
        """
        return self._output(self.command(*arguments))

    def check(self) -> None:
        """Check that Python imports this tree and finds its plugins.

        Raises:
            RuntimeError: it imports another one.
        """
        plugins = self.project["entry-points"]["vllm.general_plugins"].values()
        shown = self._output([sys.executable, "-c", _SHOW])
        expected = [str(self.root / "serving"), *plugins]
        if missing := [each for each in expected if each not in shown]:
            raise RuntimeError(f"not the code of {self.root}: {missing} not in {shown}")

    def check_process(self, process: psutil.Process) -> None:
        """Check that a process of a server has this tree first on its path.

        Raises:
            RuntimeError: it has not.
        """
        path = process.environ().get("PYTHONPATH", "").split(os.pathsep)[0]
        if path != str(self.root):
            raise RuntimeError(f"process {process.pid} runs the code of {path!r}, not {self.root}")

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout


def this_tree() -> Tree:
    """The tree of this script."""
    return Tree("new", ROOT)


def checkout(commit: str) -> Tree:
    """A checkout of an earlier commit below .cache, with metadata that names its plugins.

    Raises:
        subprocess.CalledProcessError: the repository does not contain the commit.
    """
    folder = _CHECKOUTS / commit
    if not folder.exists():
        unfinished = _CHECKOUTS / f"{commit}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        with subprocess.Popen(
            ["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE
        ) as archive:
            subprocess.run(["tar", "-x", "-C", unfinished], stdin=archive.stdout, check=True)
        if archive.returncode:
            raise subprocess.CalledProcessError(archive.returncode, archive.args)
        _write_metadata(Tree("old", unfinished))
        unfinished.rename(folder)
    tree = Tree("old", folder)
    tree.check()
    return tree


def _write_metadata(tree: Tree) -> None:
    folder = tree.root / f"{_PACKAGE.replace('-', '_')}-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: 0\n")
    lines = []
    for group, points in tree.project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
