"""Writing into a database from all nodes of a Ray cluster, for `mayfly corpus add --ray`.

This process reads the documents, and compares them with the corpus. Workers split, embed and store
them (`selection.ingest.parallel`), each over connections of its own. A worker whose process or node
is lost is started again, and writes its batch again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from selection.corpus.corpus import Corpus
from selection.embedding import load_embedder
from selection.errors import SelectionError
from selection.ingest.chunking import Chunking
from selection.ingest.examples import ExampleChunker
from selection.ingest.parallel import Batch, DocumentWriter, Written
from selection.location import DatabaseLocation
from serving.cli.corpus.ray_embedding import cluster_error, connected

_RESTARTS = 3  # of one worker
# Batches that a worker has: one that it writes, and the next.
_BATCHES = 2


@dataclass(frozen=True)
class ClusterWriter:
    """Writes documents on the workers of a Ray cluster.

    Attributes:
        location: the database; workers on all nodes connect to it.
        corpus: name of the corpus.
        embedder: name of the embedder, as in `selection.embedding.load_embedder`.
        base_model: hub id or folder of the base model, for the embedder "base-model".
        tokenizer: the base model's tokenizer, with the chat template of examples.
        max_tokens: the base model's context.
        chunking: how texts are split.
    """

    location: DatabaseLocation
    corpus: str
    embedder: str
    base_model: str
    tokenizer: Any
    max_tokens: int
    chunking: Chunking

    def write(self, batches: Iterable[Batch]) -> Generator[list[Written], None, None]:
        """Write batches of documents on a cluster as `ray_embedding.connected` gives it; yields
        what was written, in the order in which it was finished.

        Raises:
            RayClusterError: as `connected`; or a worker could not start, or was lost.
            CorpusError: as `DocumentWriter.write`.
        """
        remaining = iter(batches)
        batch = next(remaining, None)
        if batch is None:
            return
        with connected() as count:
            create = ray.remote(_Worker).options(
                num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
            )
            # In Ray's memory once, instead of once for each worker.
            arguments = ray.put(self)
            workers = [create.remote(arguments) for _ in range(count)]
            # A worker gets a batch when it has started: a busy cluster may lack room for some.
            starting = {worker.start.remote(): worker for worker in workers}
            writing: dict[Any, Any] = {}
            while batch is not None or writing:
                (done,), _ = ray.wait([*writing, *starting])
                worker = writing.pop(done, None) or starting.pop(done)
                yield _result(done)
                while batch is not None and [*writing.values()].count(worker) < _BATCHES:
                    writing[worker.write.remote(batch)] = worker
                    batch = next(remaining, None)


def _result(done: Any) -> list[Written]:
    """The result of a worker's call; its errors are those of this process."""
    try:
        written: list[Written] = ray.get(done)
    except RayTaskError as problem:
        if isinstance(problem.cause, SelectionError):
            raise problem.cause from None
        raise
    except RayError as problem:
        raise cluster_error(problem) from problem
    return written


class _Worker:
    def __init__(self, writer: ClusterWriter) -> None:
        import torch

        torch.set_num_threads(1)
        # The folder of the index on this machine, which is not used: what writes does not search.
        with tempfile.TemporaryDirectory() as folder:
            location = DatabaseLocation(writer.location.url, Path(folder))
            corpus = Corpus.open(location, writer.corpus)
        examples = ExampleChunker(writer.tokenizer, writer.max_tokens)
        embedder = load_embedder(writer.embedder, base_model=writer.base_model)
        self._writer = DocumentWriter(corpus, embedder, writer.tokenizer, writer.chunking, examples)

    def start(self) -> list[Written]:
        """Return when the worker has started."""
        return []

    def write(self, batch: Batch) -> list[Written]:
        """As `DocumentWriter.write`."""
        return self._writer.write(batch)
