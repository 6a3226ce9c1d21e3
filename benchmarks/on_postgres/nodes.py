"""Loss of a node: two nodes of a cluster share corpora in PostgreSQL, and one of them is killed
again and again while files are added. Is a file lost or there twice, and when are answers adapted
again?

Each node has an engine, a trainer and a selector, whose ingest worker takes files. Both nodes are
processes of this machine, and so is the database, which goes on; a node is killed with its Ray
daemon, and a new one takes its place. Clients speak to the proxy of the node that stays.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import MODEL, create_corpora, free_port, source_documents
from selection.corpus.copying import copy_corpus
from selection.corpus.corpus import Corpus
from selection.location import DatabaseLocation, Location

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

CORPUS, STORE, KEY = "code", "added", "the-operator"
_KINDS = ("engine", "trainer", "selector")
_START_SECONDS, _REQUEST_SECONDS, _FINISH_SECONDS = 300.0, 60.0, 180.0
# Answers in a row that must be adapted after a kill: some go to what the node has left.
_ANSWERS = 4


class Client:
    """A client of the cluster's proxy.

    Attributes:
        hung: requests without a response.
        problem: the last error.
        added: ids of the files whose addition was acknowledged, by their text.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=_REQUEST_SECONDS,
        )
        self.hung, self.problem = 0, ""
        self.added: dict[str, str] = {}
        self.store = ""

    def wait(self) -> None:
        """Wait until the application answers.

        Raises:
            RuntimeError: it takes too long.
        """
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                response = self._http.get("/ready")
                if response.status_code == 200:
                    return
                self.problem = f"{response.status_code}: {response.text}"
            time.sleep(1)
        raise RuntimeError(f"the cluster answers with {self.problem}")

    def is_adapted(self) -> bool:
        """Whether a request is answered with an adapter of its own."""
        body = {
            "model": MODEL,
            "prompt": "class Router:\n",
            "max_tokens": 4,
            "adaptation": {"required": True, "corpus": CORPUS},
        }
        found = self._send("/v1/completions", json=body, headers={"Compute-Budget": "steps=2"})
        return found is not None and found["adaptation"]["adapted"]

    def make_store(self) -> None:
        """Make the vector store to which files are added.

        Raises:
            RuntimeError: it was refused.
        """
        found = self._send("/v1/vector_stores", json={"name": STORE})
        if found is None:
            raise RuntimeError(f"the cluster answers with {self.problem}")
        self.store = found["id"]

    def add(self, number: int) -> None:
        """Add a file."""
        text = f"Note {number} says that ship {number} left harbour {number * number}."
        file = self._send(
            "/v1/files",
            files={"file": (f"{number}.md", text.encode())},
            data={"purpose": "assistants"},
        )
        if file is not None:
            body = {"file_id": file["id"]}
            if self._send(f"/v1/vector_stores/{self.store}/files", json=body) is not None:
                self.added[text] = file["id"]

    def statuses(self) -> Counter[str]:
        """The statuses of the files that were added; of those that are missing, "missing"."""
        found: Counter[str] = Counter()
        for identity in self.added.values():
            response = self._http.get(f"/v1/vector_stores/{self.store}/files/{identity}")
            found[response.json()["status"] if response.status_code == 200 else "missing"] += 1
        return found

    def _send(self, path: str, **content: Any) -> dict[str, Any] | None:
        """The answer to a POST; None for an error."""
        try:
            response = self._http.post(path, **content)
        except httpx.TimeoutException as problem:
            self.hung, self.problem = self.hung + 1, repr(problem)
            return None
        except httpx.HTTPError as problem:
            self.problem = repr(problem)
            return None
        if response.status_code != 200:
            self.problem = f"{response.status_code}: {response.text}"
            return None
        found: dict[str, Any] = response.json()
        return found


def lose_nodes(location: DatabaseLocation, folder: Path, losses: int, seed: int) -> dict[str, Any]:
    """Kill one of two nodes repeatedly; what was lost, and when answers were adapted again."""
    rng = random.Random(seed)  # noqa: S311
    home = folder / "home"
    create_corpora(home, {CORPUS: source_documents()[:8]})
    copy_corpus(home / "corpora", CORPUS, location, lambda *_: nullcontext(lambda _: None))
    seconds: list[float] = []
    with _cluster() as cluster, _application(cluster, location, home) as url:
        client = Client(url)
        spare = cluster.add_node(num_cpus=2)
        _wait_for_replicas(spare)
        client.wait()
        client.make_store()
        ended = threading.Event()
        adding = threading.Thread(target=_add_until, args=(client, ended))
        adding.start()
        try:
            for number in range(losses):
                progress(f"{number + 1} of {losses} nodes lost")
                time.sleep(rng.uniform(2, 8))
                killed = time.monotonic()
                cluster.remove_node(spare, allow_graceful=False)
                seconds.append(_until_adapted(client, killed))
                if number + 1 < losses:
                    spare = cluster.add_node(num_cpus=2)
                    _wait_for_replicas(spare)
        finally:
            ended.set()
            adding.join()
        end = time.monotonic() + _FINISH_SECONDS
        while client.statuses()["in_progress"] and time.monotonic() < end:
            time.sleep(1)
        statuses = client.statuses()
    texts = _texts(location, client.store)
    return {
        "injected": losses,
        "recovered": sum(each < _START_SECONDS for each in seconds),
        "acknowledged": len(client.added),
        "lost": statuses.total() - statuses["completed"] + sum(not texts[t] for t in client.added),
        "twice": sum(texts[text] > 1 for text in client.added),
        "hung": client.hung,
        "seconds_to_adapted": [round(each, 1) for each in seconds],
    }


def _add_until(client: Client, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(0.2):
        client.add(number)
        number += 1


def _until_adapted(client: Client, killed: float) -> float:
    """Seconds from a kill to the first of several adapted answers in a row."""
    first, count = killed, 0
    while count < _ANSWERS and time.monotonic() - killed < _START_SECONDS:
        is_adapted = client.is_adapted()
        if is_adapted and not count:
            first = time.monotonic()
        count = count + 1 if is_adapted else 0
    return first - killed if count == _ANSWERS else _START_SECONDS


def _texts(location: Location, store: str) -> Counter[str]:
    """How often each text is in a corpus."""
    with closing(Corpus.open(location, store)) as corpus:
        return Counter(
            sequence.source.text
            for document in corpus.documents()
            for sequence in corpus.sequences_of(document.id)
        )


@contextmanager
def _cluster() -> Iterator[Cluster]:
    """A cluster of one node, to which others are added."""
    from ray.cluster_utils import Cluster as RayCluster

    from serving.app import NODE

    environment = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "MAYFLY_API_KEYS": KEY, **NODE}
    head = {"num_cpus": 2, "include_dashboard": False}
    cluster = RayCluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _application(cluster: Cluster, location: DatabaseLocation, home: Path) -> Iterator[str]:
    """Deploy the application as a Serve config does; the URL of the head's proxy."""
    port = free_port()
    replicas = {"num_replicas": 2, "max_replicas_per_node": 1}
    arguments = {
        "home": str(home),
        "corpora": location.url,
        "model": MODEL,
        "corpus": CORPUS,
        "max-model-len": 1024,
        "threads": 1,
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "mayfly",
                "route_prefix": "/",
                "import_path": "serving.app:application",
                "args": arguments,
                "deployments": [{"name": kind, **replicas} for kind in _KINDS],
            }
        ],
    }
    file, log = home / "serve.yaml", home / "serve.log"
    # JSON is YAML.
    file.write_text(json.dumps(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(file)]
    with log.open("wb") as output:
        serving = subprocess.Popen(
            [*command, "--address", cluster.address], stdout=output, stderr=output
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            serving.terminate()
            serving.wait(60)


def _wait_for_replicas(node: Any) -> None:
    """Wait until a node has a replica of each kind that has started.

    Raises:
        RuntimeError: it takes too long.
    """
    (raylet,) = node.all_processes["raylet"]
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        titles = [
            " ".join(each.cmdline())
            for each in psutil.Process(raylet.process.pid).children(recursive=True)
            if each.is_running()
        ]
        started = [title for title in titles if "initialize" not in title]
        if all(any(f"ServeReplica:mayfly:{kind}" in title for title in started) for kind in _KINDS):
            return
        time.sleep(1)
    raise RuntimeError("a new node got no replicas")
