"""Follows the documentation, page by page: its commands and its Python run in order, with a home of
their own.

A page's `mayfly serve` runs from where it stands to the end of the page. Ports are exchanged for
free ones, and the model for the bundled one, which is faster and always there. Left out is `make
install`, without which nothing here would run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.environment import MODEL_CACHE
from serving.models.catalogue import NANO, SMOLLM2

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (ROOT / "docs").glob("*.md")
    if re.search(r"```(console|python)", path.read_text())
)
# About corpora and how to make them: as long to follow as all others.
CORPUS_PAGES = [
    page for page in PAGES if page.stem in {"corpus", "corpus-adapters", "operations", "quickstart"}
]
_BIN = f"{Path(sys.executable).parent}/"
_SERVE = ".venv/bin/mayfly serve"
START_SECONDS = 300


@dataclass
class Reader:
    """Follows a page in a folder that looks like the repository's."""

    folder: Path
    port: int
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(command)],
            cwd=self.folder, env=self._environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def serve(self, command: str) -> None:
        log = self.folder / f"server-{len(self.servers)}.log"
        with log.open("wb") as said:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(command)}"],
                cwd=self.folder, env=self._environment(), stdout=said, stderr=said, process_group=0,
            )  # fmt: skip
        self.servers.append(server)
        until = time.monotonic() + START_SECONDS
        while "\nready" not in log.read_text():
            assert server.poll() is None, f"{command}\n{log.read_text()}"
            assert time.monotonic() < until, f"{command}\n{log.read_text()}"
            time.sleep(0.2)

    def python(self, code: str) -> None:
        file = self.folder / "build" / "page.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(self._here(code))
        self.run(".venv/bin/python build/page.py")

    def close(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGINT)
        for server in self.servers:
            server.wait(timeout=60)

    def _here(self, text: str) -> str:
        here = text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}").replace(".venv/bin/", _BIN)
        return re.sub(f'"{SMOLLM2}(?=[":])', f'"{NANO}', here)

    def _environment(self) -> dict[str, str]:
        others = {
            name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")
        }
        return {
            **others,
            MODEL_CACHE: os.devnull,
            "MAYFLY_HOME": str(self.folder / "home"),
            "MAYFLY_PORT": str(self.port),
        }


def commands(block: str) -> Iterator[str]:
    """The commands of a block; one goes on where a line ends within a quotation or with `\\`."""
    command = ""
    for line in block.replace("\\\n", " ").splitlines():
        command += line
        try:
            shlex.split(command)
        except ValueError:
            command += "\n"
        else:
            yield command
            command = ""
    assert not command, command


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    for part in ("docs", "selection", "serving", "deploy", "README.md"):
        (tmp_path / part).symlink_to(ROOT / part)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        reader = Reader(tmp_path, free.getsockname()[1])
    yield reader
    reader.close()


def follow(page: Path, reader: Reader) -> None:
    """Run all commands and all Python of a page."""
    for kind, block in re.findall(
        r"^```(console|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        if kind == "python":
            reader.python(block)
            continue
        for command in commands(block):
            if command.startswith(_SERVE):
                reader.serve(command)
            elif command != "make install":
                reader.run(command)
