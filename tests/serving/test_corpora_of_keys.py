"""Two keys at the vector-store API, by HTTP: on no route does one see, change or learn of what is
the other's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from starlette.routing import Route

from selection.corpus.corpus import Corpus
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from serving.adaptation.workers import SerialExecutor
from serving.api_keys import Keys, digest
from serving.budget import Budget
from serving.http.body import Message, Receive, Send
from serving.http.vector_stores.routes import VectorStores
from tests.conftest import WordEmbedder

_CATS = "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs all day long.\n"
_SHIPS = (
    "The ship leaves the harbour with full sails and sets course for the islands in the west.\n"
)
_NOBODYS = {"store": "vs_" + 24 * "0", "file": "file-" + 24 * "0", "batch": "vsfb_" + 24 * "0"}

_STORE = "/v1/vector_stores/{store}"
_FILES, _BATCHES = f"{_STORE}/files", f"{_STORE}/file_batches"
_NAMING: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", _STORE, None),
    ("POST", _STORE, {"name": "bobs"}),
    ("POST", f"{_STORE}/search", {"query": "kitten"}),
    ("POST", _FILES, {"file_id": "OWN"}),
    ("GET", _FILES, None),
    ("GET", f"{_FILES}/{{file}}", None),
    ("POST", f"{_FILES}/{{file}}", {"attributes": {"a": 1}}),
    ("GET", f"{_FILES}/{{file}}/content", None),
    ("DELETE", f"{_FILES}/{{file}}", None),
    ("POST", _BATCHES, {"file_ids": ["OWN"]}),
    ("GET", f"{_BATCHES}/{{batch}}", None),
    ("GET", f"{_BATCHES}/{{batch}}/files", None),
    ("POST", f"{_BATCHES}/{{batch}}/cancel", {}),
    ("DELETE", _STORE, None),
    ("GET", "/v1/files/{file}", None),
    ("GET", "/v1/files/{file}/content", None),
    ("DELETE", "/v1/files/{file}", None),
    # Another's file in a store of one's own.
    ("POST", "/v1/vector_stores", {"name": "loot", "file_ids": ["FILE"]}),
    ("POST", "/v1/vector_stores/bobs/files", {"file_id": "FILE"}),
    ("POST", "/v1/vector_stores/bobs/file_batches", {"file_ids": ["FILE"]}),
    ("POST", "/v1/vector_stores/bobs/file_batches", {"files": [{"file_id": "FILE"}]}),
    ("GET", "/v1/vector_stores/bobs/files/{file}", None),
    ("GET", "/v1/vector_stores/bobs/file_batches/{batch}", None),
]
# Tried by themselves.
_OF_ALL = {("GET", "/v1/vector_stores"), ("POST", "/v1/files"), ("GET", "/v1/files")}


class Door:
    """What the gateway does with keys: the reader goes along with the request."""

    def __init__(self, stores: VectorStores, keys: Keys) -> None:
        self._stores, self._keys = stores, keys

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        reader = self._keys.find(dict(scope["headers"])[b"authorization"].decode()).reader
        await self._stores.app(
            {**scope, "state": {**scope.get("state", {}), "reader": reader}}, receive, send
        )


@dataclass(frozen=True)
class Clients:
    """A client for each key: two users, and an operator who sees everything."""

    url: str
    alice: openai.OpenAI
    bob: openai.OpenAI
    operator: openai.OpenAI


@contextmanager
def served(corpora: Path, tokenizer: Any) -> Iterator[Clients]:
    """A server with a corpus "manual" of the command line's that alice may read."""
    words = WordEmbedder()
    corpus = Corpus.create(corpora, "manual", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document("ships.md", _SHIPS)], words, tokenizer)
    corpus.close()
    file = corpora.parent / "keys.toml"
    file.write_text(
        f'[keys.alice]\nsha256 = "{digest("a")}"\ncorpora = ["manual"]\n[keys.bob]\nsha256 = "{digest("b")}"\n'
    )
    library = Library(corpora, words, tokenizer, corpora.parent / "files")
    door = Door(
        VectorStores(SerialExecutor(library)), Keys([digest("o")], file, Budget(50), Budget(50))
    )
    web = uvicorn.Server(
        uvicorn.Config(door, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    made = [openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) for secret in "abo"]
    yield Clients(url, *made)
    for client in made:
        client.close()
    web.should_exit = True
    thread.join()
    library.close()


@pytest.fixture
def clients(corpora: Path, tokenizer: Any) -> Iterator[Clients]:
    with served(corpora, tokenizer) as clients:
        yield clients


@dataclass(frozen=True)
class Filled:
    """A store with a file that was attached in a batch."""

    store: str
    file: str
    batch: str


def filled(client: openai.OpenAI, name: str) -> Filled:
    store = client.vector_stores.create(name=name).id
    file = client.files.create(file=("cats.md", _CATS.encode()), purpose="assistants").id
    batch = client.vector_stores.file_batches.create_and_poll(store, file_ids=[file]).id
    return Filled(store, file, batch)


@dataclass(frozen=True)
class Neighbours:
    """One server for all attempts: none may change anything. Alice has "pets", bob an empty "bobs"
    and a file.
    """

    clients: Clients
    alices: Filled
    bobs_file: str


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[Neighbours]:
    with served(tmp_path_factory.mktemp("home") / "corpora", tokenizer) as clients:
        alices = filled(clients.alice, "pets")
        clients.bob.vector_stores.create(name="bobs")
        bobs = clients.bob.files.create(file=("own.md", _SHIPS.encode()), purpose="assistants").id
        yield Neighbours(clients, alices, bobs)


def facts(client: openai.OpenAI, store: str) -> Any:
    """What is said of a store, but for the size of its database, which changes by itself."""
    told = client.vector_stores.retrieve(store)
    return told.id, told.name, told.metadata, told.status, told.file_counts


def asked(
    clients: Clients,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    own: str,
    ids: dict[str, str],
) -> Any:
    """Bob's request with these ids; status and answer, the ids put back."""
    content = (
        None if body is None else json.dumps(body).replace("OWN", own).replace("FILE", ids["file"])
    )
    answer = httpx.request(
        method,
        clients.url + path.format(**ids),
        content=content,
        headers={"authorization": "Bearer b"},
        timeout=30,
    )
    told = answer.text
    for name, value in ids.items():
        told = told.replace(value, f"<{name}>")
    return answer.status_code, told


def test_every_route_is_tried_below() -> None:
    absent: Any = None

    there: set[tuple[str, str]] = set()
    for route in VectorStores(absent).app.routes:
        assert isinstance(route, Route)
        there |= {(method, route.path) for method in route.methods or () if method != "HEAD"}

    tried = {(method, path.replace("bobs", "{store}")) for method, path, _ in _NAMING}
    assert there == tried | _OF_ALL


@pytest.mark.parametrize(("method", "path", "body"), _NAMING)
@pytest.mark.parametrize("by", ["id", "name"])
def test_what_is_anothers_is_answered_as_what_is_nobodys(
    neighbours: Neighbours, method: str, path: str, body: dict[str, Any] | None, by: str
) -> None:
    clients, alices, own = neighbours.clients, neighbours.alices, neighbours.bobs_file
    theirs = {
        "store": alices.store if by == "id" else "pets",
        "file": alices.file,
        "batch": alices.batch,
    }
    before = facts(clients.operator, alices.store)

    refused = asked(clients, method, path, body, own, theirs)

    assert refused == asked(clients, method, path, body, own, _NOBODYS)
    assert refused[0] == 404
    assert facts(clients.operator, alices.store) == before
    assert clients.alice.files.content(alices.file).content == _CATS.encode()
    assert [store.name for store in clients.bob.vector_stores.list()] == ["bobs"]
    assert clients.bob.vector_stores.retrieve("bobs").file_counts.total == 0


def test_lists_hold_what_one_sees(clients: Clients) -> None:
    alices, bobs = filled(clients.alice, "pets"), filled(clients.bob, "pets")

    def seen(client: openai.OpenAI) -> tuple[list[str | None], list[str]]:
        stores, files = client.vector_stores.list(order="asc"), client.files.list(order="asc")
        return [store.name if store.name == "manual" else store.id for store in stores], [
            file.id for file in files
        ]

    assert seen(clients.alice) == (["manual", alices.store], [alices.file])
    assert seen(clients.bob) == ([bobs.store], [bobs.file])
    assert seen(clients.operator) == (
        ["manual", alices.store, bobs.store],
        [alices.file, bobs.file],
    )
    # A cursor is a position and nothing else: it tells nothing of what it names, which may be
    # another's.
    stores = clients.bob.vector_stores.list(after=alices.store, order="asc")
    files = clients.bob.files.list(after=alices.file, order="asc")
    assert ([store.id for store in stores], [file.id for file in files]) == (
        [bobs.store],
        [bobs.file],
    )


def test_a_name_means_to_each_their_own(clients: Clients) -> None:
    alices, bobs = filled(clients.alice, "pets"), filled(clients.bob, "pets")

    for client, own in ((clients.alice, alices), (clients.bob, bobs)):
        assert client.vector_stores.retrieve("pets").id == own.store
        assert [found.file_id for found in client.vector_stores.search("pets", query="kitten")] == [
            own.file
        ]
    with pytest.raises(openai.BadRequestError, match="name one by its id"):
        clients.operator.vector_stores.retrieve("pets")


def test_what_may_be_read_is_not_changed(clients: Clients) -> None:
    stores = clients.alice.vector_stores
    file = clients.alice.files.create(file=("cats.md", _CATS.encode()), purpose="assistants").id
    before = facts(clients.operator, "manual")

    assert [found.filename for found in stores.search("manual", query="ship")] == ["ships.md"]
    assert [part.text for part in stores.files.content("doc-1", vector_store_id="manual")] == [
        _SHIPS
    ]
    for change in (
        lambda: stores.update("manual", name="mine"),
        lambda: stores.delete("manual"),
        lambda: stores.files.create("manual", file_id=file),
        lambda: stores.files.delete("doc-1", vector_store_id="manual"),
        lambda: stores.file_batches.create("manual", file_ids=[file]),
    ):
        with pytest.raises(openai.APIStatusError, match="yours to read, not to change") as refused:
            change()
        assert 400 <= refused.value.status_code < 500
    assert facts(clients.operator, "manual") == before
    with pytest.raises(openai.NotFoundError):
        clients.bob.vector_stores.retrieve("manual")


def test_an_operator_deletes_what_is_anyones(clients: Clients) -> None:
    alices = filled(clients.alice, "pets")

    clients.operator.files.delete(alices.file)
    assert clients.alice.vector_stores.retrieve("pets").file_counts.total == 0
    assert clients.operator.vector_stores.delete(alices.store).deleted

    with pytest.raises(openai.NotFoundError):
        clients.alice.vector_stores.retrieve("pets")
