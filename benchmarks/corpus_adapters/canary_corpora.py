"""Corpora with a secret in a document, how it goes, and the same corpora that never had it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.corpus_adapters.learning import MAYFLY, learn, run_mayfly
from benchmarks.harness.server import MODEL, create_corpora, source_documents
from benchmarks.promises.tenants import QUESTIONS
from selection.ingest.ingest import Chunking, Document

WAYS = ("removed", "replaced", "vector store", "shards")
SHARDS = 2
_TRAINED_BY_COMMAND = "removed"
_VAULT = "vault.py"
# Short sequences, so that the answer is learnt, and not how to copy it from earlier text.
_LENGTH = 24
_REPEATS, _OTHER_DOCUMENTS, _OTHER_CHARACTERS = 16, 4, 1000
_POLL_SECONDS, _TRAINING_SECONDS = 0.5, 600.0


class CanaryCorpora:
    """The two corpora of each way in which a document goes.

    Args:
        home: home of the corpora.
        rng: draws the secret.

    Attributes:
        secret: the secret, which only the documents that go contain.
    """

    def __init__(self, home: Path, rng: random.Random) -> None:
        self._home = home
        self.secret = f"walrus{rng.randrange(1000, 10_000)}"
        self._files: dict[str, str] = {}

    def make(self) -> None:
        """Make the corpora, before the server starts."""
        others = [
            Document(each.name, each.text[:_OTHER_CHARACTERS])
            for each in source_documents()[:_OTHER_DOCUMENTS]
        ]
        taught = [*others, Document(_VAULT, self._vault())]
        replaced = [*others, Document(_VAULT, self._harmless())]
        corpora = {
            **{taught_corpus(way): taught for way in WAYS},
            **{other_corpus(way): others for way in WAYS},
            other_corpus("replaced"): replaced,
            # The server attaches the file.
            taught_corpus("vector store"): others,
        }
        create_corpora(self._home, corpora, Chunking(max_length=_LENGTH))
        for corpus in (taught_corpus("shards"), other_corpus("shards")):
            self._shard(corpus)

    def teach(self, way: str, client: httpx.Client) -> None:
        """Train the adapter of the corpus with the secret."""
        if way == "vector store":
            self._files[way] = self._attach(client, taught_corpus(way))
        self.learn(way, taught_corpus(way), client)

    def learn(self, way: str, corpus: str, client: httpx.Client) -> None:
        """Train the adapter of a corpus: by the command for one of the ways, else by the server.

        Raises:
            RuntimeError: the training failed.
        """
        if way == _TRAINED_BY_COMMAND:
            learn(self._home, corpus, MODEL)
            return
        path = f"/v1/vector_stores/{store_id(client, corpus)}/adapter"
        client.post(path).raise_for_status()
        _wait(lambda: client.get(path).raise_for_status().json(), "completed")

    def forget(self, way: str, client: httpx.Client) -> None:
        """Remove the document with the secret; acknowledged when this returns."""
        corpus = taught_corpus(way)
        command = [MAYFLY, "corpus", "remove", corpus, "--document", _VAULT, "--yes"]
        if way == "vector store":
            store = store_id(client, corpus)
            path = f"/v1/vector_stores/{store}/files/{self._files[way]}"
            client.delete(path).raise_for_status()
            return
        if way == "replaced":
            file = self._home / "replacement" / _VAULT
            file.parent.mkdir()
            file.write_text(self._harmless())
            command = [MAYFLY, "corpus", "add", corpus, str(file), "--model", MODEL]
            command += ["--max-length", str(_LENGTH)]
        run_mayfly([*command, "--home", str(self._home)])

    def renew(self, way: str, client: httpx.Client) -> None:
        """Train both corpora, and update the shards, after the document has gone."""
        if way == "shards":
            self._shard(taught_corpus(way))
        for corpus in (taught_corpus(way), other_corpus(way)):
            self.learn(way, corpus, client)

    def _vault(self) -> str:
        lines = [f'{question}{self.secret}"\n' for question in QUESTIONS]
        return "\n".join(lines * _REPEATS)

    def _harmless(self) -> str:
        return "\n".join(f"shelf_{number} = {number * number}\n" for number in range(_REPEATS))

    def _shard(self, corpus: str) -> None:
        command = [MAYFLY, "corpus", "shard", corpus, "--shards", str(SHARDS)]
        run_mayfly([*command, "--home", str(self._home)])

    def _attach(self, client: httpx.Client, corpus: str) -> str:
        """Upload the document with the secret, and attach it; returns the id of the file."""
        upload = {"file": (_VAULT, self._vault().encode())}
        uploaded = client.post("/v1/files", files=upload, data={"purpose": "assistants"})
        file: str = uploaded.raise_for_status().json()["id"]
        static = {"max_chunk_size_tokens": _LENGTH, "chunk_overlap_tokens": 0}
        body = {"file_id": file, "chunking_strategy": {"type": "static", "static": static}}
        path = f"/v1/vector_stores/{store_id(client, corpus)}/files"
        client.post(path, json=body).raise_for_status()
        _wait(lambda: client.get(f"{path}/{file}").raise_for_status().json(), "completed")
        return file


def taught_corpus(way: str) -> str:
    """Name of the corpus whose document with the secret goes this way."""
    return f"{way.replace(' ', '-')}-taught"


def other_corpus(way: str) -> str:
    """Name of the corpus that never had it."""
    return f"{way.replace(' ', '-')}-other"


def store_id(client: httpx.Client, corpus: str) -> str:
    """The id of a corpus as a vector store."""
    stores = client.get("/v1/vector_stores?limit=100").raise_for_status().json()["data"]
    return next(str(store["id"]) for store in stores if store["name"] == corpus)


def _wait(look: Callable[[], dict[str, Any]], status: str) -> None:
    started = time.monotonic()
    while (seen := look())["status"] != status:
        if seen["status"] in ("failed", "cancelled"):
            raise RuntimeError(f"the server failed: {seen}")
        if time.monotonic() - started > _TRAINING_SECONDS:
            raise RuntimeError(f"not {status} after {_TRAINING_SECONDS:.0f} s: {seen}")
        time.sleep(_POLL_SECONDS)
