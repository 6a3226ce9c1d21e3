"""Two keys at the vector-store API over HTTP: on no route does one see, change or learn of what
belongs to the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Scope

from selection.corpus.corpus import Corpus
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.threaded_embedder import ThreadedEmbedder
from serving.api_keys.key import digest
from serving.api_keys.keys import Keys
from serving.budget import Budget
from serving.calls import SerialExecutor
from serving.http.routing import Route
from serving.http.vector_stores.routes import VectorStoreRoutes
from tests.conftest import WordEmbedder
from tests.serving.http.web_server import application, serve

_CATS = "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs all day long.\n"
_SHIPS = (
    "The ship leaves the harbour with full sails and sets course for the islands in the west.\n"
)
_UNKNOWN = {"store": "vs_" + 24 * "0", "file": "file-" + 24 * "0", "batch": "vsfb_" + 24 * "0"}

_STORE = "/v1/vector_stores/{store}"
_FILES, _BATCHES = f"{_STORE}/files", f"{_STORE}/file_batches"
_ROUTES_WITH_IDS: list[tuple[str, str, dict[str, Any] | None]] = [
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
    # The file of another key in a store of one's own.
    ("POST", "/v1/vector_stores", {"name": "loot", "file_ids": ["FILE"]}),
    ("POST", "/v1/vector_stores/bobs/files", {"file_id": "FILE"}),
    ("POST", "/v1/vector_stores/bobs/file_batches", {"file_ids": ["FILE"]}),
    ("POST", "/v1/vector_stores/bobs/file_batches", {"files": [{"file_id": "FILE"}]}),
    ("GET", "/v1/vector_stores/bobs/files/{file}", None),
    ("GET", "/v1/vector_stores/bobs/file_batches/{batch}", None),
]
# Tested separately.
_ROUTES_WITHOUT_IDS = {("GET", "/v1/vector_stores"), ("POST", "/v1/files"), ("GET", "/v1/files")}


@dataclass(frozen=True)
class Clients:
    """A client for each key: two users, and an operator who sees everything."""

    url: str
    alice: openai.OpenAI
    bob: openai.OpenAI
    operator: openai.OpenAI


@contextmanager
def serving(corpora: Path, tokenizer: Any) -> Iterator[Clients]:
    """A server with the corpus "manual", made by the command line, which alice may read."""
    words = WordEmbedder()
    corpus = Corpus.create(corpora, "manual", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document("ships.md", _SHIPS)], words, tokenizer)
    corpus.close()
    file = corpora.parent / "keys.toml"
    file.write_text(
        f'[keys.alice]\nsha256 = "{digest("a")}"\ncorpora = ["manual"]\n'
        f'[keys.bob]\nsha256 = "{digest("b")}"\n'
    )
    library = Library(corpora, ThreadedEmbedder(lambda: words), tokenizer, corpora.parent / "files")
    keys = Keys([digest("o")], file, Budget(50), Budget(50))

    async def admit(route: Route, scope: Scope) -> dict[str, Any]:
        authorization = dict(scope["headers"])[b"authorization"].decode()
        return {"principal": keys.find(authorization).principal}

    with serve(application(VectorStoreRoutes(SerialExecutor(library)).routes, admit)) as url:
        openais = [
            openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) for secret in "abo"
        ]
        yield Clients(url, *openais)
        for client in openais:
            client.close()
    library.close()


@pytest.fixture
def clients(corpora: Path, tokenizer: Any) -> Iterator[Clients]:
    with serving(corpora, tokenizer) as clients:
        yield clients


@dataclass(frozen=True)
class Store:
    """A store with a file that was attached in a batch, by their ids."""

    store: str
    file: str
    batch: str


def make_store(client: openai.OpenAI, name: str) -> Store:
    store = client.vector_stores.create(name=name).id
    file = client.files.create(file=("cats.md", _CATS.encode()), purpose="assistants").id
    batch = client.vector_stores.file_batches.create_and_poll(store, file_ids=[file]).id
    return Store(store, file, batch)


@dataclass(frozen=True)
class Neighbours:
    """One server for all attempts, none of which may change anything. Alice has the store "pets",
    bob the empty store "bobs" and a file.
    """

    clients: Clients
    alices: Store
    bobs_file: str


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[Neighbours]:
    with serving(tmp_path_factory.mktemp("home") / "corpora", tokenizer) as clients:
        alices = make_store(clients.alice, "pets")
        clients.bob.vector_stores.create(name="bobs")
        bobs = clients.bob.files.create(file=("own.md", _SHIPS.encode()), purpose="assistants").id
        yield Neighbours(clients, alices, bobs)


def state(client: openai.OpenAI, store: str) -> Any:
    """A store without the size of its database, which changes by itself."""
    found = client.vector_stores.retrieve(store)
    return found.id, found.name, found.metadata, found.status, found.file_counts


def request_as_bob(
    clients: Clients,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    own: str,
    ids: dict[str, str],
) -> Any:
    """Status and text of the response to bob's request, its ids replaced by names."""
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
    text = answer.text
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
    return answer.status_code, text


def test_every_route_is_tried_below() -> None:
    no_library: Any = None

    routes = {(route.method, route.path) for route in VectorStoreRoutes(no_library).routes}

    tried = {(method, path.replace("bobs", "{store}")) for method, path, _ in _ROUTES_WITH_IDS}
    assert routes == tried | _ROUTES_WITHOUT_IDS


@pytest.mark.parametrize(("method", "path", "body"), _ROUTES_WITH_IDS)
@pytest.mark.parametrize("by", ["id", "name"])
def test_ids_of_another_key_are_answered_as_unknown_ids(
    neighbours: Neighbours, method: str, path: str, body: dict[str, Any] | None, by: str
) -> None:
    clients, alices, own = neighbours.clients, neighbours.alices, neighbours.bobs_file
    theirs = {
        "store": alices.store if by == "id" else "pets",
        "file": alices.file,
        "batch": alices.batch,
    }
    before = state(clients.operator, alices.store)

    refused = request_as_bob(clients, method, path, body, own, theirs)

    assert refused == request_as_bob(clients, method, path, body, own, _UNKNOWN)
    assert refused[0] == 404
    assert state(clients.operator, alices.store) == before
    assert clients.alice.files.content(alices.file).content == _CATS.encode()
    assert [store.name for store in clients.bob.vector_stores.list()] == ["bobs"]
    assert clients.bob.vector_stores.retrieve("bobs").file_counts.total == 0


def test_lists_contain_what_the_key_sees(clients: Clients) -> None:
    alices, bobs = make_store(clients.alice, "pets"), make_store(clients.bob, "pets")

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
    # A cursor is a position and reveals nothing of the object, which may be another key's.
    stores = clients.bob.vector_stores.list(after=alices.store, order="asc")
    files = clients.bob.files.list(after=alices.file, order="asc")
    assert ([store.id for store in stores], [file.id for file in files]) == (
        [bobs.store],
        [bobs.file],
    )


def test_a_name_means_the_keys_own_store(clients: Clients) -> None:
    alices, bobs = make_store(clients.alice, "pets"), make_store(clients.bob, "pets")

    for client, own in ((clients.alice, alices), (clients.bob, bobs)):
        assert client.vector_stores.retrieve("pets").id == own.store
        assert [found.file_id for found in client.vector_stores.search("pets", query="kitten")] == [
            own.file
        ]
    with pytest.raises(openai.BadRequestError, match="name one by its id"):
        clients.operator.vector_stores.retrieve("pets")


def test_a_readable_corpus_cannot_be_changed(clients: Clients) -> None:
    stores = clients.alice.vector_stores
    file = clients.alice.files.create(file=("cats.md", _CATS.encode()), purpose="assistants").id
    before = state(clients.operator, "manual")

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
    assert state(clients.operator, "manual") == before
    with pytest.raises(openai.NotFoundError):
        clients.bob.vector_stores.retrieve("manual")


def test_an_operator_may_delete_everything(clients: Clients) -> None:
    alices = make_store(clients.alice, "pets")

    clients.operator.files.delete(alices.file)
    assert clients.alice.vector_stores.retrieve("pets").file_counts.total == 0
    assert clients.operator.vector_stores.delete(alices.store).deleted

    with pytest.raises(openai.NotFoundError):
        clients.alice.vector_stores.retrieve("pets")
