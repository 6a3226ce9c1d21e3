"""A server of a source tree: seconds until it is ready, its memory, its requests."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.harness.memory import memory_by_process
from benchmarks.harness.server import END_SECONDS, START_SECONDS, free_port
from benchmarks.side_by_side.tree import Tree

# Until then the trainer has returned the memory of its warm-up.
_SETTLE_SECONDS = 8.0
_POLL_SECONDS = 0.1
_BUSY_SECONDS = 60.0
# A line of the command's progress, with the seconds since it began to start Ray.
_PROGRESS = re.compile(r"^(?!still)(.+), (\d+) s$", re.MULTILINE)
# As many adaptations as the benchmark sends at once, each with all its steps.
_FLAGS = ("--max-adaptations", "8", "--undegraded", "8")


@dataclass(frozen=True)
class Start:
    """The start of a server.

    Attributes:
        ready_seconds: from the start of the command until all parts answered.
        progress: seconds by what the command reported, from the start of Ray.
        memory: bytes by process, after it has settled.
    """

    ready_seconds: float
    progress: dict[str, int]
    memory: dict[str, dict[str, int]]


@dataclass(frozen=True)
class RunningServer:
    """A running server.

    Attributes:
        client: sends requests to it.
        model: name of its model.
        start: how it started.
    """

    client: httpx.Client
    model: str
    start: Start

    def complete(self, budget: str, **fields: Any) -> dict[str, Any]:
        """Request a completion with a budget, again while the server is busy with requests whose
        clients have left.

        Raises:
            RuntimeError: the server refused it, or answered without the adapter it should have.
        """
        headers, body = {"Compute-Budget": budget}, {"model": self.model, **fields}
        started = time.monotonic()
        while True:
            reply = self.client.post("/v1/completions", headers=headers, json=body)
            if reply.status_code != 429 or time.monotonic() - started > _BUSY_SECONDS:
                break
            time.sleep(1)
        answer: dict[str, Any] = reply.json()
        report = answer.get("adaptation") or {}
        if reply.status_code != 200 or bool(report.get("adapted")) != (budget != "none"):
            raise RuntimeError(f"{budget}: {reply.status_code}: {report or reply.text[:500]}")
        return answer


@contextlib.contextmanager
def running(tree: Tree, home: Path, model: str, *flags: str) -> Iterator[RunningServer]:
    """Run `mayfly serve` of a tree within the `with` block.

    Args:
        tree: the tree.
        home: folder of its corpora.
        model: folder of the model.
        flags: further arguments of the command.

    Raises:
        RuntimeError: the server did not start; the message has the end of its log.
    """
    port, log = free_port(), home / "server.log"
    arguments = ["serve", "--home", str(home), "--port", str(port), *_FLAGS, *flags]
    command = tree.command(*arguments, "--model", model)
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=tree.root,
            env=tree.environment,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        ready_seconds = time.monotonic() - started
        time.sleep(_SETTLE_SECONDS)
        command_process = psutil.Process(process.pid)
        children = command_process.children(recursive=True)
        for each in children:
            if "ServeReplica" in " ".join(each.cmdline()):
                tree.check_process(each)
        memory = memory_by_process(children)
        own = memory_by_process([command_process])["total"]
        memory["the command"] = own
        memory["total"] = {field: size + own[field] for field, size in memory["total"].items()}
        progress = {what: int(seconds) for what, seconds in _PROGRESS.findall(log.read_text())}
        with httpx.Client(base_url=url, timeout=600) as client:
            name = client.get("/v1/models").json()["data"][0]["id"]
            yield RunningServer(client, name, Start(ready_seconds, progress, memory))
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(END_SECONDS)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=30).status_code == 200
    except httpx.HTTPError:
        return False
