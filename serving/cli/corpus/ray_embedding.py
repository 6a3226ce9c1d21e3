"""Embedding on a Ray cluster with Ray Data, for `mayfly corpus add --ray`.

Batches of texts go in, their embeddings come out in the same order. Only the embedding runs on the
cluster. Documents are read, split and stored by this process, so the corpus equals the one that a
single process makes, up to float rounding.

Shapes: N texts, D embedding dimensions.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from selection.embedding import Embeddings, load_embedder
from serving.errors import RayClusterError

_BATCH = 64  # texts that a worker embeds at once
# Batches that are given to Ray together. It limits the memory of waiting batches, and the work that
# is lost when a run is interrupted.
_BATCHES_AT_ONCE = 256
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class ClusterEmbedder:
    """Embeds texts on the workers of the Ray cluster that this process is connected to.

    Attributes:
        embedder: name of the embedder, as in `selection.embedding.load_embedder`.
        base_model: hub id or folder of the base model, for the embedder "base-model".
        workers: maximum number of worker processes.
    """

    embedder: str
    base_model: str
    workers: int

    def embed(self, batches: Iterable[list[str]]) -> Iterator[Embeddings]:
        """The embeddings [N, D] of each batch of texts, in order.

        Raises:
            RayClusterError: the cluster has lost workers or has ended.
        """
        source = iter(batches)
        while group := list(islice(source, _BATCHES_AT_ONCE)):
            texts = [
                {"row": row, "text": text}
                for row, text in enumerate(t for batch in group for t in batch)
            ]
            blocks = -(-len(texts) // _BATCH)
            embedded = ray.data.from_items(texts, override_num_blocks=blocks).map_batches(
                _Worker,
                fn_constructor_args=(self.embedder, self.base_model),
                batch_size=_BATCH,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self.workers),
                num_cpus=1,
            )
            vectors: dict[int, Any] = {}
            try:
                for block in embedded.iter_batches(batch_size=None):
                    vectors.update(zip(block["row"].tolist(), block["vector"], strict=True))
            # An exception of the embedder.
            except RayTaskError:
                raise
            except RayError as problem:
                raise cluster_error(problem) from problem
            row = 0
            for batch in group:
                yield np.array([vectors[i] for i in range(row, row + len(batch))], np.float32)
                row += len(batch)


@contextmanager
def cluster(embedder: str, base_model: str) -> Iterator[ClusterEmbedder]:
    """A cluster as `connected` gives it, to embed with.

    Raises:
        RayClusterError: as `connected`.
    """
    with connected() as workers:
        yield ClusterEmbedder(embedder, base_model, workers)


@contextmanager
def connected() -> Iterator[int]:
    """Connect to the cluster at RAY_ADDRESS, or else to one on this machine, which is started for
    the `with` block if none is running. Yields the maximum number of worker processes.

    Raises:
        RayClusterError: no cluster answers at RAY_ADDRESS, or Ray did not start.
    """
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it, Ray prints warnings that do not concern this short-lived use.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    # Ray raises a plain Exception where a busy machine was too slow.
    except Exception as problem:
        raise RayClusterError(f"Ray did not start or connect: {problem}; try again") from problem
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray prints that it has lost a worker to standard output, where a command's result belongs.
    with redirect_stdout(sys.stderr):
        try:
            yield max(int(ray.cluster_resources().get("CPU", 1)), 1)
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Fail at once where Ray would try to connect for minutes."""
    if address in ("", "auto", "local"):
        return
    remedy = "set it to host:port of a cluster (`ray start --head` prints it), or unset it"
    try:
        where = urlsplit(address if "//" in address else f"//{address}")
        port = where.port
    except ValueError:
        port = None
    if port is None:
        raise RayClusterError(f"RAY_ADDRESS={address} has no host and port: {remedy}")
    try:
        socket.create_connection((where.hostname or "", port), _CONNECT_SECONDS).close()
    except OSError as problem:
        raise RayClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({problem}): {remedy}"
        ) from problem


def cluster_error(problem: RayError) -> RayClusterError:
    """The error for a worker that could not start or was lost."""
    lines = str(problem).strip().splitlines()
    if "creation task" in lines[0]:
        return RayClusterError(
            f"a worker of the Ray cluster could not start: {lines[-1]}; every node needs this "
            "installation, the embedder, the base model and, for corpora in a database, its URL"
        )
    return RayClusterError(
        f"the Ray cluster has lost a worker: {lines[0]} Check the cluster (`ray status`), and run "
        "the command again: it goes on where it stopped"
    )


class _Worker:
    def __init__(self, embedder: str, base_model: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._embedder = load_embedder(embedder, base_model=base_model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"row": batch["row"], "vector": self._embedder.embed(batch["text"].tolist())}
