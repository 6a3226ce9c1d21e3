"""Follows the documentation, page by page: its commands and its Python run in order.

A page's `mayfly serve` runs from where it stands to the end of the page. Pages that start a server
with the same command follow one another in one folder, with one home, and share the server, whose
start takes longest; each can be followed alone, too. The other pages, and those in `_ALONE`, have a
folder, a home and a server of their own. Ports are exchanged for free ones, and the model for the
bundled one, which is faster and always there. Left out is `make install`, without which nothing
here would run.
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
from collections.abc import Callable, Iterable, Iterator
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
# About data of one's own, and how to begin: as long to follow as all others.
CORPUS_PAGES = [
    page for page in PAGES if page.stem in {"corpus", "examples", "operations", "quickstart"}
]
# The first page that someone follows, and one about homes and keys.
_ALONE = {"operations", "quickstart"}
_BIN = f"{Path(sys.executable).parent}/"
_SERVE = ".venv/bin/mayfly serve"
START_SECONDS = 300


@dataclass
class Reader:
    """Follows a page in a folder that looks like the repository's."""

    folder: Path
    port: int
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(command)],
            cwd=self.folder, env=self._environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def serve(self, command: str) -> None:
        if command in self.servers:
            assert self.servers[command].poll() is None, "the page before has ended the server"
            return
        log = self.folder / f"server-{len(self.servers)}.log"
        with log.open("wb") as said:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(command)}"],
                cwd=self.folder, env=self._environment(), stdout=said, stderr=said, process_group=0,
            )  # fmt: skip
        self.servers[command] = server
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
        for server in self.servers.values():
            server.send_signal(signal.SIGINT)
        for server in self.servers.values():
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


class Readers:
    """Gives each page a reader; pages with the same server share one if they follow one another.

    Args:
        new_folder: makes an empty folder.
    """

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._reader: Reader | None = None
        self._group = ""

    def reader(self, page: Path) -> Reader:
        """The reader of a page; the one of the page before ends if it is another."""
        if self._reader is None or self._group != _group(page):
            self.close()
            folder = self._new_folder()
            for part in ("docs", "selection", "serving", "deploy", "README.md"):
                (folder / part).symlink_to(ROOT / part)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._reader = Reader(folder, free.getsockname()[1])
            self._group = _group(page)
        return self._reader

    def close(self) -> None:
        """End the reader and its server."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    readers = Readers(lambda: tmp_path_factory.mktemp("page"))
    yield readers
    readers.close()


def in_groups(pages: Iterable[Path]) -> list[Path]:
    """Pages in such an order that those with the same server follow one another."""
    return sorted(pages, key=_group)


def follow(page: Path, reader: Reader) -> None:
    """Run all commands and all Python of a page."""
    for kind, step in _steps(page):
        if kind == "python":
            reader.python(step)
        elif step.startswith(_SERVE):
            reader.serve(step)
        elif step != "make install":
            reader.run(step)


def _steps(page: Path) -> Iterator[tuple[str, str]]:
    """The commands ("console") and the blocks of Python ("python") of a page, in order."""
    for kind, block in re.findall(
        r"^```(console|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        yield from ((kind, step) for step in ([block] if kind == "python" else commands(block)))


def _group(page: Path) -> str:
    """What pages that share a server have in common."""
    serves = {step for _, step in _steps(page) if step.startswith(_SERVE)}
    return page.stem if page.stem in _ALONE or len(serves) != 1 else serves.pop()
