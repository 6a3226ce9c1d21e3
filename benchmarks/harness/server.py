"""A real `mayfly serve` for a benchmark: in processes of its own, on a free loopback port, with a
home of its own.

What it holds is read from outside, as an operator would: memory, connections and CPU time from the
processes, live work from /metrics, adapters from the staging folders in /dev/shm. It is ended as a
terminal ends it, by SIGINT. Knows nothing of what is asked of the server.
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

from benchmarks.quality.passages import ROOT, progress
from selection.corpus.corpus import Corpus
from selection.embedding import load_embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from serving.config import bundled_model

MODEL = "nano"
PROMPT = "def moving_average(values, window):\n"
# Takes on more than its machine would by itself, for clients that are not there to be turned away.
ROOMY = ("--max-requests", "128", "--max-adaptations", "16", "--undegraded", "16")
# A kept connection would look like one the server holds.
NO_KEEPING = httpx.Limits(max_keepalive_connections=0)
START_SECONDS, END_SECONDS = 600, 90
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_LASTING = re.compile(r"ServeReplica:mayfly:(\w+)|(EngineCore)|/(raylet) ")
_SAMPLE = re.compile(r"([^{ #]+)(?:\{(.*)\})? (\S+)")


@dataclass(frozen=True)
class Server:
    """A running server, and where its shared memory is to be seen.

    `left` is filled when it has ended: processes that would not end, and staging folders.
    """

    url: str
    port: int
    process: subprocess.Popen[bytes]
    left: list[str] = field(default_factory=list)
    memory: Path = _SHARED_MEMORY

    def family(self) -> list[psutil.Process]:
        """The command and everything below it."""
        command = psutil.Process(self.process.pid)
        return [command, *command.children(recursive=True)]

    def workers(self) -> dict[str, psutil.Process]:
        """What must last as long as the server: "engine", "selector", "trainer", "EngineCore", and
        Ray's, "node".
        """
        found = {}
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                name = _LASTING.search(" ".join(process.cmdline()))
                if name is not None:
                    found[name[1] or name[2] or "node"] = process
        return found

    def resident_bytes(self) -> int:
        """Of all its processes; memory that they share counts for each."""
        total = 0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def connections(self) -> int:
        """Clients' connections that its processes hold open."""
        held = 0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                held += sum(
                    bool(each.raddr) and each.laddr.port == self.port
                    for each in process.net_connections("tcp")
                )
        return held

    def staged(self) -> list[str]:
        """Adapters in its staging folders."""
        return sorted(
            adapter.name
            for folder in self._staging()
            for adapter in folder.iterdir()
            if adapter.is_dir()
        )

    def shared(self) -> set[str]:
        """Files in shared memory that no staging folder of its living processes is or names."""
        mine = self._staging()
        named = {
            name for folder in mine for name in (folder / "shared-memory").read_text().splitlines()
        }
        return shared_memory(self.memory) - named - {folder.name for folder in mine}

    def metrics(self, headers: Mapping[str, str] | None = None) -> defaultdict[str, float]:
        """What /metrics says, by name, summed over labels; 0 for what it does not say.

        Raises:
            httpx.HTTPError: it says nothing.
        """
        totals: defaultdict[str, float] = defaultdict(float)
        for name, _, value in samples(self.url, headers):
            totals[name] += value
        return totals

    def live_adapters(self, headers: Mapping[str, str] | None = None) -> int | None:
        """As the server says; None where it does not."""
        totals = self.metrics(headers)
        return int(totals["mayfly_live_adapters"]) if "mayfly_live_adapters" in totals else None

    def busy(self, headers: Mapping[str, str] | None = None) -> bool:
        """Whether anything is in a stage, in vLLM's hands, or staged."""
        totals = self.metrics(headers)
        names = (
            "mayfly_requests_in_stage",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
        )
        return (
            any(totals[name] for name in names)
            or bool(totals["mayfly_live_adapters"])
            or bool(self.staged())
        )

    def quiet_within(
        self, seconds: float, headers: Mapping[str, str] | None = None
    ) -> float | None:
        """Seconds until nothing runs and no client is connected; None if that took longer."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            with contextlib.suppress(httpx.HTTPError):
                if not self.connections() and not self.busy(headers):
                    return time.monotonic() - begun
            time.sleep(0.05)
        return None

    def _staging(self) -> list[Path]:
        pids = {process.pid for process in self.family()}
        return [
            folder
            for folder in self.memory.glob("mayfly-*-*")
            if int(folder.name.split("-")[1]) in pids
        ]


def samples(
    url: str, headers: Mapping[str, str] | None = None, seconds: float = 10.0
) -> Iterator[tuple[str, str, float]]:
    """What /metrics of a server says, given so many seconds to say it: names, labels as they are
    written, values.

    prometheus_client's parser takes ten times as long, which is felt where a server is asked until
    it is quiet.

    Raises:
        httpx.HTTPError: it says nothing.
    """
    reply = httpx.get(
        f"{url}/metrics", headers=dict(headers or {}), timeout=seconds
    ).raise_for_status()
    for line in reply.text.splitlines():
        if found := _SAMPLE.fullmatch(line):
            yield found[1], found[2] or "", float(found[3])


def shared_memory(folder: Path = _SHARED_MEMORY) -> set[str]:
    """Files there, whoever made them."""
    return {each.name for each in folder.iterdir()}


def fill(home: Path, corpora: Mapping[str, Sequence[Document]]) -> None:
    """Make corpora in a home, for the bundled model."""
    from transformers import AutoTokenizer

    tokenizer, embedder = AutoTokenizer.from_pretrained(bundled_model()), load_embedder()
    for name, documents in corpora.items():
        progress(f"corpus {name}")
        corpus = Corpus.create(home / "corpora", name, embedder, tokenizer_digest(tokenizer))
        ingest(corpus, documents, embedder, tokenizer)
        corpus.close()


def sources() -> list[Document]:
    """Text that is there anyway: this repository's own package `selection`."""
    return [
        Document(file.name, file.read_text()) for file in sorted((ROOT / "selection").glob("*.py"))
    ]


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A folder for corpora and logs, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mayfly-benchmark-") as folder:
        yield Path(folder)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, memory_bytes: int | None = None) -> Iterator[Server]:
    """`mayfly serve` with this home and these arguments, for the length of a `with`.

    Args:
        folder: the home.
        arguments: more of them.
        memory_bytes: of a shared memory of its own, which takes root; None for the machine's.

    Raises:
        RuntimeError: it did not come up; with the end of what it said.
    """
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("mayfly")),
        "serve",
        "--port",
        str(port),
        "--home",
        str(folder),
    ]
    if memory_bytes is not None:
        own = f'mount -t tmpfs -o size={memory_bytes} tmpfs {_SHARED_MEMORY} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", own, "sh", *command]
    with running([*command, *arguments], port, folder / "server.log") as process:
        memory = (
            _SHARED_MEMORY
            if memory_bytes is None
            else Path(f"/proc/{process.pid}/root{_SHARED_MEMORY}")
        )
        server = Server(f"http://127.0.0.1:{port}", port, process, memory=memory)
        family, staging = server.family(), server._staging()
        try:
            yield server
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                family, staging = server.family(), server._staging()
    if process.returncode == -signal.SIGKILL:
        server.left.append(f"the command, {END_SECONDS} s after SIGINT")
    server.left.extend(f"process {each.pid}" for each in psutil.wait_procs(family, timeout=10)[1])
    server.left.extend(folder.name for folder in staging if folder.exists())


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server's command until its /health answers, then for the length of a `with`; ended by
    SIGINT to its pid.

    Raises:
        RuntimeError: it did not come up; with the end of what it said.
    """
    # Whoever is ended must end the server first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress(f"starting {Path(command[0]).name} {' '.join(command[1:3])}")
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
    try:
        begun = time.monotonic()
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                raise RuntimeError(
                    f"{' '.join(command)} did not come up:\n{log.read_text()[-2000:]}"
                )
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


def completion(**fields: Any) -> dict[str, Any]:
    """The body of a sound completion."""
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
