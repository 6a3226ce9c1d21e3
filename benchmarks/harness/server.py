"""A real `mayfly serve` for a benchmark: its own processes, a free loopback port, its own home.

The server is observed from outside, as an operator would: memory, connections and processor time
from its processes, live work from /metrics, adapters from the staging folders in /dev/shm. It is
ended by SIGINT, as a terminal does. Knows nothing of the requests that a benchmark sends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import ROOT
from selection.corpus.corpus import Corpus
from selection.embedding import load_embedder
from selection.ingest.ingest import Chunking, Document, ingest, tokenizer_digest
from serving.config import bundled_model

MODEL = "nano"
PROMPT = "def moving_average(values, window):\n"
# Limits above the machine's defaults, for clients that expect no refusal.
ROOMY_FLAGS = ("--max-requests", "128", "--max-adaptations", "16", "--undegraded", "16")
# A connection that the client keeps alive would count as one that the server leaked.
NO_KEEP_ALIVE = httpx.Limits(max_keepalive_connections=0)
START_SECONDS, END_SECONDS = 600, 90
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_WORKER = re.compile(r"ServeReplica:mayfly:(\w+)|(EngineCore)|/(raylet) ")
_SAMPLE = re.compile(r"([^{ #]+)(?:\{(.*)\})? (\S+)")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: base URL.
        port: port on the loopback interface.
        process: the `mayfly serve` command.
        leftovers: filled when the server has ended: processes and staging folders that remain.
        shared_memory: path of its shared memory, as seen from here.
    """

    url: str
    port: int
    process: subprocess.Popen[bytes]
    leftovers: list[str] = field(default_factory=list)
    shared_memory: Path = _SHARED_MEMORY

    def processes(self) -> list[psutil.Process]:
        """The command and all its descendants."""
        command = psutil.Process(self.process.pid)
        return [command, *command.children(recursive=True)]

    def workers(self) -> dict[str, psutil.Process]:
        """Processes that must live as long as the server, by name.

        Names are "engine", "selector", "trainer", "EngineCore", and "node" for Ray's raylet.
        """
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                name = _WORKER.search(" ".join(process.cmdline()))
                if name is not None:
                    found[name[1] or name[2] or "node"] = process
        return found

    def resident_bytes(self) -> int:
        """Resident memory of all processes; memory that they share counts for each."""
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def connections(self) -> int:
        """Number of open connections from clients."""
        count = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                count += sum(
                    bool(each.raddr) and each.laddr.port == self.port
                    for each in process.net_connections("tcp")
                )
        return count

    def staged_adapters(self) -> list[str]:
        """Names of the adapters in its staging folders."""
        return sorted(
            adapter.name
            for folder in self._staging()
            for adapter in folder.iterdir()
            if adapter.is_dir()
        )

    def unclaimed_shared_memory(self) -> set[str]:
        """Files in shared memory that belong to no living process of this server.

        A process claims its staging folder and the files that this folder lists.
        """
        folders = self._staging()
        listed = {
            name
            for folder in folders
            for name in (folder / "shared-memory").read_text().splitlines()
        }
        claimed = listed | {folder.name for folder in folders}
        return shared_memory_files(self.shared_memory) - claimed

    def metrics(self, headers: Mapping[str, str] | None = None) -> defaultdict[str, float]:
        """Values of /metrics by name, summed over labels; 0 for unknown names.

        Raises:
            httpx.HTTPError: the server did not answer.
        """
        totals: defaultdict[str, float] = defaultdict(float)
        for name, _, value in metric_samples(self.url, headers):
            totals[name] += value
        return totals

    def live_adapters(self, headers: Mapping[str, str] | None = None) -> int | None:
        """Live adapters by /metrics; None if it does not report them."""
        totals = self.metrics(headers)
        return int(totals["mayfly_live_adapters"]) if "mayfly_live_adapters" in totals else None

    def has_work(self, headers: Mapping[str, str] | None = None) -> bool:
        """Whether a request is in a stage or in vLLM, or an adapter is live or staged."""
        totals = self.metrics(headers)
        names = (
            "mayfly_requests_in_stage",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
        )
        return (
            any(totals[name] for name in names)
            or bool(totals["mayfly_live_adapters"])
            or bool(self.staged_adapters())
        )

    def seconds_until_idle(
        self, seconds: float, headers: Mapping[str, str] | None = None
    ) -> float | None:
        """Wait until nothing runs and no client is connected.

        Returns:
            The seconds waited; None if that takes longer than `seconds`.
        """
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            with contextlib.suppress(httpx.HTTPError):
                if not self.connections() and not self.has_work(headers):
                    return time.monotonic() - started
            time.sleep(0.05)
        return None

    def _staging(self) -> list[Path]:
        pids = {process.pid for process in self.processes()}
        return [
            folder
            for folder in self.shared_memory.glob("mayfly-*-*")
            if int(folder.name.split("-")[1]) in pids
        ]


def metric_samples(
    url: str, headers: Mapping[str, str] | None = None, timeout: float = 10.0
) -> Iterator[tuple[str, str, float]]:
    """Samples of a server's /metrics: name, labels as text, value.

    prometheus_client's parser takes ten times as long, which matters to a caller that polls.

    Args:
        url: base URL of the server.
        headers: sent with the request.
        timeout: seconds.

    Raises:
        httpx.HTTPError: the server did not answer.
    """
    reply = httpx.get(f"{url}/metrics", headers=dict(headers or {}), timeout=timeout)
    for line in reply.raise_for_status().text.splitlines():
        if match := _SAMPLE.fullmatch(line):
            yield match[1], match[2] or "", float(match[3])


def shared_memory_files(folder: Path = _SHARED_MEMORY) -> set[str]:
    """Names of all files in the shared memory, of any process."""
    return {each.name for each in folder.iterdir()}


def create_corpora(
    home: Path,
    corpora: Mapping[str, Sequence[Document]],
    chunking: Chunking | None = None,
    model: str | None = None,
) -> None:
    """Create corpora in a home, for the model in a folder; None for the bundled one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model or bundled_model())
    embedder = load_embedder()
    for name, documents in corpora.items():
        progress(f"corpus {name}")
        corpus = Corpus.create(home / "corpora", name, embedder, tokenizer_digest(tokenizer))
        ingest(corpus, documents, embedder, tokenizer, chunking=chunking)
        corpus.close()


def source_documents() -> list[Document]:
    """Text that every checkout has: this repository's own package `selection`."""
    package = ROOT / "selection"
    return [
        Document(file.relative_to(package).as_posix(), file.read_text())
        for file in sorted(package.rglob("*.py"))
        if file.stat().st_size
    ]


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A temporary folder for corpora and logs."""
    with tempfile.TemporaryDirectory(prefix="mayfly-benchmark-") as folder:
        yield Path(folder)


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mayfly_server(
    folder: Path, *arguments: str, memory_bytes: int | None = None
) -> Iterator[Server]:
    """Run `mayfly serve` within the `with` block.

    Args:
        folder: its home.
        arguments: further arguments of the command.
        memory_bytes: size of a shared memory of its own, which takes root; None for the machine's.

    Raises:
        RuntimeError: the server did not start; the message has the end of its log.
    """
    port = free_port()
    mayfly = str(Path(sys.executable).with_name("mayfly"))
    # The last model counts, so that a benchmark can name another one.
    command = [mayfly, "serve", "--model", MODEL, "--port", str(port), "--home", str(folder)]
    if memory_bytes is not None:
        own = f'mount -t tmpfs -o size={memory_bytes} tmpfs {_SHARED_MEMORY} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", own, "sh", *command]
    with running_server([*command, *arguments], port, folder / "server.log") as process:
        memory = (
            _SHARED_MEMORY
            if memory_bytes is None
            else Path(f"/proc/{process.pid}/root{_SHARED_MEMORY}")
        )
        server = Server(f"http://127.0.0.1:{port}", port, process, shared_memory=memory)
        processes, staging = server.processes(), server._staging()
        try:
            yield server
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes, staging = server.processes(), server._staging()
    if process.returncode == -signal.SIGKILL:
        server.leftovers.append(f"the command, {END_SECONDS} s after SIGINT")
    server.leftovers.extend(
        f"process {each.pid}" for each in psutil.wait_procs(processes, timeout=10)[1]
    )
    server.leftovers.extend(folder.name for folder in staging if folder.exists())


@contextlib.contextmanager
def running_server(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, wait until its /health answers, and end it by SIGINT after the block.

    Args:
        command: command line of the server.
        port: port on which it answers.
        log: file for its output.
        environment: variables to add to this process's own.

    Raises:
        RuntimeError: the server did not start; the message has the end of its log.
    """
    # A benchmark that is terminated must end its server first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress(f"starting {Path(command[0]).name} {' '.join(command[1:3])}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
    try:
        started = time.monotonic()
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield process
    finally:
        progress("ending the server")
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    each.kill()
            process.wait()
        progress("")


def completion_body(**fields: Any) -> dict[str, Any]:
    """The body of a valid completion request."""
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
