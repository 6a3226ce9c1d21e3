"""A cluster of two nodes on this machine: a Serve config's application, a sharded corpus, a lost
node.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.shards import shard_folder, update_shards

SHARDS = 2
KEY = "the-operator"
RECOVERY_SECONDS = 180


@dataclass(frozen=True)
class Nodes:
    """A cluster of two nodes with the application.

    Attributes:
        url: address of the head node's proxy.
        cluster: Ray's test cluster.
        spare: the second node, which has replicas until it is lost.
        deploy: deploys the application again with changed settings.
    """

    url: str
    cluster: Any
    spare: Any
    deploy: Callable[..., None]

    def names_on(self, node: Any) -> set[str]:
        """Names of the deployments that have a replica on a node."""
        (raylet,) = node.all_processes["raylet"]
        titles = [
            " ".join(each.cmdline())
            for each in psutil.Process(raylet.process.pid).children(recursive=True)
        ]
        return {
            title.split("mayfly:")[1].split(".")[0].strip()
            for title in titles
            if "ServeReplica:mayfly:" in title
        }


@pytest.fixture(scope="module")
def nodes(corpora: Path) -> Iterator[Nodes]:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.config import HTTPOptions

    from serving.app import NODE, application

    corpus = Corpus.open(corpora / "corpora", "web")
    update_shards(corpus, [shard_folder(corpora, shard, SHARDS) for shard in range(SHARDS)])
    corpus.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **NODE}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    try:
        spare = cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        os.environ["MAYFLY_API_KEYS"] = KEY
        settings = {
            "home": str(corpora),
            "corpus": "web",
            "shards": SHARDS,
            "max-model-len": 1024,
            "threads": 1,
            "max-adaptations": 4,
        }

        def deploy(**changes: Any) -> None:
            serve.run(application({**settings, **changes}), name="mayfly", route_prefix="/")

        deploy()
        nodes = Nodes(f"http://127.0.0.1:{port}", cluster, spare, deploy)
        # Ray places replicas at random, and may have chosen the first node for all.
        for _ in range(5):
            if nodes.names_on(spare):
                break
            serve.delete("mayfly")
            deploy()
        yield nodes
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(environment)


def ask(nodes: Nodes, **fields: Any) -> httpx.Response:
    body = {
        "model": "nano",
        "prompt": "class Router:\n",
        "max_tokens": 4,
        "temperature": 0,
        **fields,
    }
    headers = {"Compute-Budget": "steps=2", "Authorization": f"Bearer {KEY}"}
    return httpx.post(
        f"{nodes.url}/v1/completions", json=body, headers=headers, timeout=RECOVERY_SECONDS
    )


def test_selection_training_and_generation_work_across_nodes(nodes: Nodes) -> None:
    answer = ask(nodes)

    assert answer.status_code == 200, answer.text
    report = answer.json()["adaptation"]
    assert report["adapted"] is True
    assert report["spent"]["steps"] == 2
    assert report["sources"]
    assert nodes.names_on(nodes.cluster.head_node) | nodes.names_on(nodes.spare) == {
        "engine",
        "selector",
        "trainer",
        *(f"shard-{shard}" for shard in range(SHARDS)),
    }
    assert nodes.names_on(nodes.spare)


def test_errors_of_a_cluster_have_openais_shape(nodes: Nodes) -> None:
    assert ask(nodes, max_tokens=-1).json()["error"]["type"]
    assert httpx.get(f"{nodes.url}/-/routes").json()["error"]["message"]
    assert httpx.get(f"{nodes.url}/-/healthz").status_code == 200
    without_key = httpx.post(f"{nodes.url}/v1/completions", json={"model": "nano", "prompt": "x"})
    assert (without_key.status_code, without_key.json()["error"]["code"]) == (
        401,
        "invalid_api_key",
    )


def test_all_trainers_of_a_cluster_are_counted_and_give_way(nodes: Nodes, tmp_path: Path) -> None:
    from ray import serve

    from serving.ray_stages import RemoteTrainer

    class Trainer:
        """Leaves a file with its process id where it is told to give way."""

        async def give_way(self, seconds: float) -> None:
            (tmp_path / f"{os.getpid()}").write_text(f"{seconds}")

        async def count(self) -> int:
            return 1

    trainers = serve.deployment(Trainer).options(num_replicas=2, ray_actor_options={"num_cpus": 0})
    handle: Any = serve.run(trainers.bind(), name="trainers", route_prefix=None)
    try:
        asyncio.run(RemoteTrainer(handle).give_way(2.0))
        number = asyncio.run(RemoteTrainer(handle).count())
    finally:
        serve.delete("trainers")

    assert number == 2
    assert [file.read_text() for file in tmp_path.iterdir()] == ["2.0", "2.0"]


def test_the_application_recovers_from_the_loss_of_a_node(nodes: Nodes) -> None:
    assert nodes.names_on(nodes.spare)

    nodes.cluster.remove_node(nodes.spare, allow_graceful=False)

    lost = time.monotonic()
    while time.monotonic() - lost < RECOVERY_SECONDS:
        # Replicas on the lost node may answer until they notice that it is gone.
        recovered = len(nodes.names_on(nodes.cluster.head_node)) == 3 + SHARDS
        try:
            answer = ask(nodes, adaptation={"required": True})
        except httpx.HTTPError:
            answer = None
        if recovered and answer is not None and answer.status_code == 200:
            break
        time.sleep(0.5)

    assert answer is not None
    assert answer.status_code == 200, answer.text
    assert answer.json()["adaptation"]["adapted"] is True
    assert len(nodes.names_on(nodes.cluster.head_node)) == 3 + SHARDS


def test_no_request_fails_while_other_settings_are_deployed(nodes: Nodes) -> None:
    # In place of the one that was lost.
    nodes.cluster.add_node(num_cpus=2)
    answers: list[httpx.Response | Exception] = []
    deployed = threading.Event()

    def send_requests() -> None:
        while not deployed.is_set():
            try:
                answers.append(ask(nodes))
            except httpx.HTTPError as problem:
                answers.append(problem)

    clients = [threading.Thread(target=send_requests) for _ in range(3)]
    for client in clients:
        client.start()
    nodes.deploy(**{"max-steps": 1})
    deployed.set()
    for client in clients:
        client.join()

    failed = [
        each for each in answers if not isinstance(each, httpx.Response) or each.status_code != 200
    ]
    assert failed == [], [
        each.text if isinstance(each, httpx.Response) else each for each in failed
    ]
    adapted = [
        each.json()["adaptation"]["adapted"] for each in answers if isinstance(each, httpx.Response)
    ]
    assert len(adapted) > len(clients)
    assert ask(nodes).json()["adaptation"]["budget"]["steps"] == 1
