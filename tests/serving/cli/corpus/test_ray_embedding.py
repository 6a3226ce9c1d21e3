"""`mayfly corpus add --ray` on clusters that cannot be reached, or whose workers cannot start."""

from __future__ import annotations

import socket

import pytest

from serving.cli.corpus.ray_embedding import cluster
from serving.errors import RayClusterError


def test_an_address_where_nothing_listens_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)

        with pytest.raises(RayClusterError, match=f"no Ray cluster answers at .*{address}.* unset"):
            cluster("minilm", "nano").__enter__()


@pytest.mark.parametrize("address", ["head-node", "127.0.0.1:port", "127.0.0.1:99999"])
def test_an_address_without_a_port_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(RayClusterError, match=f"RAY_ADDRESS={address} has no host and port"):
        cluster("minilm", "nano").__enter__()


def test_workers_that_cannot_load_the_embedder_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with (
        cluster("no-such-embedder", "nano") as embedder,
        pytest.raises(RayClusterError, match=r"could not start: .*'no-such-embedder'.*every node"),
    ):
        list(embedder.embed(iter([["a text"]])))
