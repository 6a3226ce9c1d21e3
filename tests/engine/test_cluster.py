"""A cluster of two nodes on this machine: the application of a Serve config, a sharded corpus, the
loss of a node.
"""

from __future__ import annotations

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
BACK_SECONDS = 180


@dataclass(frozen=True)
class Nodes:
    """Two nodes, the address of the head's proxy, and how the application is deployed again with
    other settings.
    """

    url: str
    cluster: Any
    spare: Any
    deploy: Callable[..., None]

    def names_on(self, node: Any) -> set[str]:
        """Deployments with a replica there."""
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

    whole = Corpus.open(corpora / "corpora", "web")
    update_shards(whole, [shard_folder(corpora, shard, SHARDS) for shard in range(SHARDS)])
    whole.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = dict(os.environ)
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
        yield Nodes(f"http://127.0.0.1:{port}", cluster, spare, deploy)
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


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
        f"{nodes.url}/v1/completions", json=body, headers=headers, timeout=BACK_SECONDS
    )


def test_an_adapter_is_chosen_from_shards_trained_and_loaded_across_nodes(nodes: Nodes) -> None:
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


def test_errors_of_a_cluster_are_openais_too(nodes: Nodes) -> None:
    assert ask(nodes, max_tokens=-1).json()["error"]["type"]
    assert httpx.get(f"{nodes.url}/-/routes").json()["error"]["message"]
    assert httpx.get(f"{nodes.url}/-/healthz").status_code == 200
    nobody = httpx.post(f"{nodes.url}/v1/completions", json={"model": "nano", "prompt": "x"})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


def test_other_settings_are_deployed_without_a_request_that_fails(nodes: Nodes) -> None:
    answers: list[httpx.Response | Exception] = []
    deployed = threading.Event()

    def keep_asking() -> None:
        while not deployed.is_set():
            try:
                answers.append(ask(nodes))
            except httpx.HTTPError as problem:
                answers.append(problem)

    clients = [threading.Thread(target=keep_asking) for _ in range(3)]
    for client in clients:
        client.start()
    nodes.deploy(**{"max-steps": 1})
    deployed.set()
    for client in clients:
        client.join()

    failed = [
        told for told in answers if not isinstance(told, httpx.Response) or told.status_code != 200
    ]
    assert failed == [], [
        told.text if isinstance(told, httpx.Response) else told for told in failed
    ]
    adapted = [
        told.json()["adaptation"]["adapted"] for told in answers if isinstance(told, httpx.Response)
    ]
    assert len(adapted) > len(clients)
    assert ask(nodes).json()["adaptation"]["budget"]["steps"] == 1


def test_the_loss_of_a_node_is_mended(nodes: Nodes) -> None:
    nodes.cluster.remove_node(nodes.spare, allow_graceful=False)

    begun = time.monotonic()
    while time.monotonic() - begun < BACK_SECONDS:
        try:
            answer = ask(nodes, adaptation={"required": True})
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code == 200:
            break
        time.sleep(0.5)

    assert answer is not None
    assert answer.status_code == 200, answer.text
    assert answer.json()["adaptation"]["adapted"] is True
    assert len(nodes.names_on(nodes.cluster.head_node)) == 3 + SHARDS
