"""The vector-store API over HTTP, used by openai-python, with a real library behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.responses import Response

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import CorpusNotFoundError
from selection.embedding import Embedder, Embeddings, Prompt
from selection.errors import CorpusError, CorpusUnavailableError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from selection.request import SelectionRequest
from selection.selector import SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.calls import SerialExecutor
from serving.http.vector_stores.params import MAX_UPLOAD
from serving.http.vector_stores.routes import VectorStoreRoutes, handled
from serving.workers.corpora import CorporaWorker
from tests.serving.http.web_server import application, serve

_CATS = "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs all day long.\n"
_SHIPS = (
    "The ship leaves the harbour with full sails and sets course for the islands in the west.\n"
)
_NO_STORE, _NO_FILE, _NO_BATCH = "vs_" + 24 * "0", "file-" + 24 * "0", "vsfb_" + 24 * "0"


class PausableEmbedder:
    """A real embedder that waits while `running` is cleared."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.running = threading.Event()
        self.running.set()
        self._embedder = embedder

    def embed(self, texts: Sequence[str]) -> Embeddings:
        assert self.running.wait(30)
        return self._embedder.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        return self._embedder.windows(prompt)


@dataclass(frozen=True)
class Server:
    """A server, its embedder, and the folder of its corpora."""

    url: str
    embedder: PausableEmbedder
    corpora: Path


@pytest.fixture
def server(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Server]:
    embedder = PausableEmbedder(words)
    library = Library(
        corpora, ThreadedEmbedder(lambda: embedder), tokenizer, corpora.parent / "files"
    )
    with serve(application(VectorStoreRoutes(SerialExecutor(library), "notes").routes)) as url:
        yield Server(f"{url}/v1", embedder, corpora)
        embedder.running.set()
    library.close()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def send(server: Server) -> Iterator[Callable[..., httpx.Response]]:
    """Sends requests that openai-python would not send."""
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http.request


def document_names(root: Path, store: str) -> list[str]:
    """Names of the documents of a corpus, read as by `mayfly corpus show`."""
    corpus = Corpus.open(root, store)
    found = [entry.name for entry in corpus.documents()]
    corpus.close()
    return found


def error_message(answer: httpx.Response, status: int) -> str:
    """Check an error response; return its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "/tmp" not in error["message"]
    assert "Traceback" not in answer.text
    return str(error["message"])


# -- valid requests


def test_the_example_of_openais_documentation_works(client: openai.OpenAI, server: Server) -> None:
    store = client.vector_stores.create(name="pets", description="ours", metadata={"owner": "me"})
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=("cats.md", _CATS.encode()),
        attributes={"language": "en", "year": 2024},
    )
    found = client.vector_stores.search(store.id, query="kitten", max_num_results=3)
    store = client.vector_stores.retrieve(store.id)

    assert (file.status, file.last_error, file.vector_store_id) == ("completed", None, store.id)
    counts = {"added": 1, "replaced": 0, "unchanged": 0, "empty": 0, "skipped": 0}
    assert (file.model_extra or {})["document_counts"] == counts
    assert file.attributes == {"language": "en", "year": 2024}
    assert file.chunking_strategy is not None
    assert file.chunking_strategy.to_dict() == {
        "type": "static",
        "static": {"max_chunk_size_tokens": 256, "chunk_overlap_tokens": 0},
    }
    assert found.object == "vector_store.search_results.page"
    assert found.model_extra == {"search_query": ["kitten"], "has_more": False, "next_page": None}
    (best,) = found.data
    assert (best.file_id, best.filename, best.attributes) == (
        file.id,
        "cats.md",
        {"language": "en", "year": 2024},
    )
    assert [(part.type, part.text) for part in best.content] == [("text", _CATS)]
    assert 0 < best.score < 1
    assert (store.name, store.metadata, store.status) == ("pets", {"owner": "me"}, "completed")
    assert store.file_counts.to_dict() == {
        "in_progress": 0,
        "completed": 1,
        "failed": 0,
        "cancelled": 0,
        "total": 1,
    }
    assert store.usage_bytes > len(_CATS)
    assert (
        document_names(server.corpora, "pets")
        == document_names(server.corpora, store.id)
        == [f"{file.id}/cats.md"]
    )


def test_stores_are_listed_renamed_and_deleted(client: openai.OpenAI) -> None:
    made = [client.vector_stores.create(name=f"store {i}").id for i in range(7)]

    # The list comes in three pages.
    in_order = [store.id for store in client.vector_stores.list(order="asc", limit=3)]
    page = client.vector_stores.list(order="desc", limit=2, before=made[0])
    renamed = client.vector_stores.update(made[0], name="Größe", metadata={"a": "b"})
    deletion = client.vector_stores.delete(made[1])

    assert in_order == made
    assert ([store.id for store in page.data], page.has_more) == (made[1:3][::-1], True)
    assert page.model_extra is not None
    assert (page.model_extra["first_id"], page.model_extra["last_id"]) == (made[2], made[1])
    assert (renamed.name, renamed.metadata) == ("Größe", {"a": "b"})
    assert (deletion.id, deletion.deleted, deletion.object) == (
        made[1],
        True,
        "vector_store.deleted",
    )
    assert made[1] not in [store.id for store in client.vector_stores.list()]
    with pytest.raises(openai.NotFoundError, match=made[1]):
        client.vector_stores.retrieve(made[1])


def test_a_corpus_of_the_command_line_is_a_store_with_its_documents(
    client: openai.OpenAI, server: Server, words: Embedder, tokenizer: Any
) -> None:
    corpus = Corpus.create(server.corpora, "notes", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document("cats.md", _CATS), Document("ships.md", _SHIPS)], words, tokenizer)
    corpus.close()

    (store,) = client.vector_stores.list().data
    files = client.vector_stores.files.list("notes", order="asc").data
    (best,) = client.vector_stores.search("notes", query="ship sails", max_num_results=1).data
    text = client.vector_stores.files.content(files[0].id, vector_store_id=store.id).data
    client.vector_stores.files.delete(files[0].id, vector_store_id=store.id)

    assert (store.name, store.file_counts.completed) == ("notes", 2)
    assert store.model_extra is not None
    assert store.model_extra["adaptation"] == {"default": True, "usable": True, "reason": None}
    assert [(file.id, file.status) for file in files] == [
        ("doc-1", "completed"),
        ("doc-2", "completed"),
    ]
    assert files[0].chunking_strategy is not None
    assert files[0].chunking_strategy.type == "other"
    assert (best.file_id, best.filename) == ("doc-2", "ships.md")
    assert [part.text for part in text] == [_CATS]
    assert document_names(server.corpora, "notes") == ["ships.md"]


def test_a_store_says_whether_this_server_can_use_it(
    client: openai.OpenAI, server: Server, words: Embedder
) -> None:
    Corpus.create(server.corpora, "of-another-model", words, "another tokenizer").close()
    client.vector_stores.create(name="mine")

    listed = [store.model_dump() for store in client.vector_stores.list()]
    stores = {store["name"]: store["adaptation"] for store in listed}

    other, mine = stores["of-another-model"], stores["mine"]
    assert mine == {"default": False, "usable": True, "reason": None}
    assert (other["default"], other["usable"]) == (False, False)
    assert "another model's tokenizer" in other["reason"]


def test_files_are_stored_listed_and_returned_unchanged(client: openai.OpenAI) -> None:
    # Large enough to be written to disk before it is stored.
    content = bytes(range(256)) * 20_000
    file = client.files.create(file=("ünï 日本.bin", content), purpose="user_data")
    other = client.files.create(file=("../../etc/passwd", b"root"), purpose="assistants")

    back = client.files.content(file.id)

    assert back.content == content
    assert back.response.headers["x-content-type-options"] == "nosniff"
    assert back.response.headers["content-disposition"] == "attachment"
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "ünï 日本.bin",
        len(content),
        "user_data",
        "processed",
    )
    assert other.filename == "../../etc/passwd"
    assert client.files.retrieve(file.id) == file
    assert [each.id for each in client.files.list(order="asc")] == [file.id, other.id]
    assert [each.id for each in client.files.list(purpose="user_data")] == [file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_a_batch_is_uploaded_and_polled(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    files = [(f"{i}.md", f"Number {i} has {i * i} friends.".encode()) for i in range(5)] + [
        ("no.md", b"\xff\xfe")
    ]

    batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=files)
    listed = client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="failed"
    )

    assert batch.status == "completed"
    assert (batch.file_counts.completed, batch.file_counts.failed, batch.file_counts.total) == (
        5,
        1,
        6,
    )
    (failed,) = listed.data
    assert failed.last_error is not None
    assert failed.last_error.code == "unsupported_file"
    assert "no.md is not UTF-8 text" in failed.last_error.message


def test_a_batch_may_have_options_for_each_file(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    files = [
        client.files.create(file=(f"{i}.md", _CATS.encode()), purpose="assistants").id
        for i in range(2)
    ]

    batch = client.vector_stores.file_batches.create_and_poll(
        store.id,
        files=[
            {"file_id": files[0], "attributes": {"n": 0}},
            {
                "file_id": files[1],
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50},
                },
            },
        ],
    )
    first, second = client.vector_stores.files.list(store.id, order="asc").data

    assert batch.file_counts.completed == 2
    assert (first.attributes, second.attributes) == ({"n": 0}, {})
    assert second.chunking_strategy is not None
    assert second.chunking_strategy.to_dict()["static"] == {
        "max_chunk_size_tokens": 100,
        "chunk_overlap_tokens": 50,
    }


def test_deleting_while_listing_reaches_everything(client: openai.OpenAI) -> None:
    stores = [client.vector_stores.create(name=f"store {i}").id for i in range(7)]
    files = [
        client.files.create(file=(f"{i}.md", _CATS.encode()), purpose="assistants").id
        for i in range(5)
    ]
    filled = stores.pop()
    client.vector_stores.file_batches.create_and_poll(filled, file_ids=files)

    deleted = []
    for file in client.vector_stores.files.list(filled, limit=2):
        client.vector_stores.files.delete(file.id, vector_store_id=filled)
        deleted.append(file.id)
    for upload in client.files.list(limit=2, order="asc"):
        client.files.delete(upload.id)
        deleted.append(upload.id)
    for store in client.vector_stores.list(limit=3):
        client.vector_stores.delete(store.id)
        deleted.append(store.id)

    assert deleted == [*files[::-1], *files, filled, *stores[::-1]]


def test_a_batch_ends_although_its_files_are_attached_again(
    client: openai.OpenAI, server: Server
) -> None:
    store = client.vector_stores.create()
    files = [
        client.files.create(file=(f"{i}.md", _CATS.encode()), purpose="assistants").id
        for i in range(3)
    ]

    server.embedder.running.clear()
    first = client.vector_stores.file_batches.create(store.id, file_ids=files)
    client.vector_stores.files.create(store.id, file_id=files[0], attributes={"again": True})
    second = client.vector_stores.file_batches.create(store.id, file_ids=files[1:])
    server.embedder.running.set()
    ended = [
        client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id)
        for batch in (first, second)
    ]
    client.files.delete(files[2])
    listed = client.vector_stores.file_batches.list_files(
        first.id, vector_store_id=store.id, order="asc", limit=2
    )

    assert [(batch.status, batch.file_counts.completed) for batch in ended] == [
        ("completed", 3),
        ("completed", 2),
    ]
    assert [(file.id, file.status) for file in listed] == [(file, "completed") for file in files]


def test_deleting_a_file_does_not_cancel_its_batch(client: openai.OpenAI, server: Server) -> None:
    store = client.vector_stores.create()
    files = [
        client.files.create(file=(f"{i}.md", _CATS.encode()), purpose="assistants").id
        for i in range(2)
    ]

    server.embedder.running.clear()
    first = client.vector_stores.file_batches.create(store.id, file_ids=files)
    client.vector_stores.files.delete(files[0], vector_store_id=store.id)
    server.embedder.running.set()
    ended = client.vector_stores.file_batches.poll(first.id, vector_store_id=store.id)

    assert (ended.status, ended.file_counts.completed, ended.file_counts.cancelled) == (
        "completed",
        1,
        1,
    )


def test_a_store_is_created_with_files(client: openai.OpenAI) -> None:
    files = [
        client.files.create(file=(f"{i}.md", _CATS.encode()), purpose="assistants").id
        for i in range(2)
    ]

    store = client.vector_stores.create(
        name="both", file_ids=files, chunking_strategy={"type": "auto"}
    )
    for file in files:
        client.vector_stores.files.poll(file, vector_store_id=store.id, max_wait_seconds=30)

    assert store.file_counts.total == 2
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 2


def test_searches_filter_by_changed_attributes(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    for name, text in (("cats.md", _CATS), ("ships.md", _SHIPS)):
        client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=(name, text.encode()),
            attributes={"kind": name, "draft": True},
        )
    cats = client.vector_stores.files.list(store.id, order="asc").data[0]
    client.vector_stores.files.update(
        cats.id, vector_store_id=store.id, attributes={"kind": "pet", "draft": False}
    )
    client.vector_stores.files.poll(cats.id, vector_store_id=store.id)

    def search(**options: Any) -> list[str]:
        return [
            each.filename
            for each in client.vector_stores.search(store.id, query=["cat", "ship"], **options)
        ]

    assert set(search()) == {"cats.md", "ships.md"}
    assert search(filters={"type": "eq", "key": "kind", "value": "pet"}) == ["cats.md"]
    assert search(filters={"type": "eq", "key": "kind", "value": "cats.md"}) == []
    assert search(
        filters={
            "type": "and",
            "filters": [
                {"type": "eq", "key": "draft", "value": True},
                {"type": "in", "key": "kind", "value": ["ships.md", "pet"]},
            ],
        }
    ) == ["ships.md"]
    assert search(ranking_options={"score_threshold": 1.0, "ranker": "auto"}) == []


def test_files_are_ingested_in_the_background_and_can_be_cancelled(
    client: openai.OpenAI, server: Server
) -> None:
    store = client.vector_stores.create()
    first, second, third = (
        client.files.create(file=(f"{i}.md", f"{_CATS} {i}".encode()), purpose="assistants").id
        for i in range(3)
    )

    server.embedder.running.clear()
    attached = client.vector_stores.files.create(store.id, file_id=first)
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[second, third])
    raw = client.vector_stores.files.with_raw_response.retrieve(first, vector_store_id=store.id)
    busy = client.vector_stores.retrieve(store.id)
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    client.vector_stores.files.delete(first, vector_store_id=store.id)
    server.embedder.running.set()
    again = client.vector_stores.files.create_and_poll(third, vector_store_id=store.id)

    assert (attached.status, batch.status, busy.status) == (
        "in_progress",
        "in_progress",
        "in_progress",
    )
    assert 0 < int(raw.headers["openai-poll-after-ms"]) < 1000
    assert busy.file_counts.in_progress == 3
    assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 2)
    assert again.status == "completed"
    assert document_names(server.corpora, store.id) == [f"{third}/2.md"]


def test_a_store_can_be_deleted_while_a_file_is_ingested(
    client: openai.OpenAI, server: Server
) -> None:
    store = client.vector_stores.create(name="notes")
    file = client.files.create(file=("cats.md", _CATS.encode()), purpose="assistants")

    server.embedder.running.clear()
    client.vector_stores.files.create(store.id, file_id=file.id)
    client.vector_stores.delete(store.id)
    server.embedder.running.set()
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.poll(file.id, vector_store_id=store.id)

    again = client.vector_stores.create(name="notes")
    assert (
        client.vector_stores.files.create_and_poll(file.id, vector_store_id=again.id).status
        == "completed"
    )
    assert document_names(server.corpora, "notes") == [f"{file.id}/cats.md"]


async def test_concurrent_clients_do_not_affect_one_another(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=server.url, api_key="x", max_retries=0) as client:

        async def one(i: int) -> tuple[int, list[str]]:
            store = await client.vector_stores.create(name="same name")
            text = f"The secret of number {i} is {i * 7919}."
            await client.vector_stores.files.upload_and_poll(
                vector_store_id=store.id, file=("secret.md", text.encode())
            )
            found = await client.vector_stores.search(store.id, query="the secret")
            return i, [part.text for each in found.data for part in each.content]

        answers = await asyncio.gather(*(one(i) for i in range(12)))

    assert answers == [(i, [f"The secret of number {i} is {i * 7919}."]) for i in range(12)]


async def test_a_store_is_selected_from_while_a_file_is_ingested(corpora: Path, nano: str) -> None:
    stage = CorporaWorker(
        SelectorConfig(corpora / "corpora", embedder="base-model", base_model=nano)
    )
    store = await stage.call(Library.create_store, "notes")
    short = await stage.call(Library.upload, "cats.md", _CATS.encode())
    long = await stage.call(Library.upload, "long.md", (_CATS + _SHIPS).encode() * 3000)

    await stage.call(Library.attach, store.id, AttachmentRequest(short.id))
    while (await stage.call(Library.file, "notes", short.id)).file.status == "in_progress":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await stage.call(Library.attach, store.id, AttachmentRequest(long.id))
    selections = [
        await stage.select(SelectionRequest([Prompt("The cat")], corpus, steps=2))
        for corpus in ("notes", store.id)
    ]
    found = await stage.call(Library.search, store.id, ["The cat"])
    meanwhile = await stage.call(Library.file, "notes", long.id)
    await stage.call(Library.delete_store, store.id)
    with pytest.raises(CorpusNotFoundError):
        await stage.select(SelectionRequest([Prompt("The cat")], "notes", steps=2))
    await stage.call(Library.close)

    assert meanwhile.file.status == "in_progress"
    assert [selection.sources[0][0].name for selection in selections] == [f"{short.id}/cats.md"] * 2
    assert [each.name for each in found] == ["cats.md"]


# -- invalid requests


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/vector_stores/{_NO_STORE}"),
        ("POST", f"/vector_stores/{_NO_STORE}"),
        ("DELETE", f"/vector_stores/{_NO_STORE}"),
        ("GET", f"/vector_stores/{_NO_STORE}/files"),
        ("GET", f"/vector_stores/{_NO_STORE}/files/{_NO_FILE}"),
        ("GET", f"/vector_stores/known/files/{_NO_FILE}"),
        ("GET", f"/vector_stores/known/files/{_NO_FILE}/content"),
        ("DELETE", f"/vector_stores/known/files/{_NO_FILE}"),
        ("GET", f"/vector_stores/known/file_batches/{_NO_BATCH}"),
        ("GET", f"/vector_stores/known/file_batches/{_NO_BATCH}/files"),
        ("POST", f"/vector_stores/known/file_batches/{_NO_BATCH}/cancel"),
        ("GET", f"/files/{_NO_FILE}"),
        ("GET", f"/files/{_NO_FILE}/content"),
        ("DELETE", f"/files/{_NO_FILE}"),
        ("GET", "/files/..%2f..%2fetc%2fpasswd"),
        ("GET", "/files/%2e%2e"),
        ("GET", "/vector_stores/..%2f..%2f"),
        ("DELETE", "/vector_stores/%2e%2e"),
        ("DELETE", "/vector_stores/%2e"),
        ("GET", "/vector_stores/%00"),
        ("GET", "/vector_stores/%ED%A0%80"),
        ("GET", "/vector_stores/known/files/doc-99999999999999999999999"),
        ("GET", "/vector_stores/known/nothing"),
        ("GET", "/vector_stores/known/"),
        ("GET", "/files/"),
        ("GET", "/assistants"),
    ],
)
def test_unknown_objects_and_paths_are_404(
    client: openai.OpenAI,
    server: Server,
    send: Callable[..., httpx.Response],
    method: str,
    path: str,
) -> None:
    client.vector_stores.create(name="known")

    error_message(send(method, path, **({"json": {}} if method == "POST" else {})), 404)

    assert [store.name for store in client.vector_stores.list()] == ["known"]


@pytest.mark.parametrize(
    "path", ["/vector_stores", "/vector_stores/known", "/files", "/vector_stores/known/files"]
)
def test_another_method_is_405(send: Callable[..., httpx.Response], path: str) -> None:
    answer = send("PATCH", path)

    assert "not PATCH" in error_message(answer, 405)
    assert {"GET", "POST"} <= set(answer.headers["allow"].split(", "))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/vector_stores", {"name": 7}, "`name`"),
        ("/vector_stores", {"name": ""}, "`name`"),
        ("/vector_stores", {"name": "x" * 257}, "`name`"),
        ("/vector_stores", {"name": "a\nb"}, "`name`"),
        ("/vector_stores", {"metadata": {"a": 1}}, "`metadata.a`"),
        ("/vector_stores", {"metadata": [1]}, "`metadata`"),
        ("/vector_stores", {"file_ids": "file-1"}, "`file_ids`"),
        ("/vector_stores", {"file_ids": [1]}, "`file_ids`"),
        (
            "/vector_stores",
            {"expires_after": {"anchor": "last_active_at", "days": 7}},
            "`expires_after`",
        ),
        ("/vector_stores", {"chunking_strategy": {"type": "semantic"}}, "`chunking_strategy`"),
        ("/vector_stores", {"chunking_strategy": {"type": "static"}}, "`chunking_strategy`"),
        ("/vector_stores", {"chunking_strategy": "auto"}, "`chunking_strategy`"),
        ("/vector_stores", {"colour": "red"}, "unknown field `colour`"),
        (
            "/vector_stores/known",
            {"expires_after": {"anchor": "last_active_at", "days": 7}},
            "`expires_after`",
        ),
        ("/vector_stores/known", {"name": ["x"]}, "`name`"),
        ("/vector_stores/known/files", {}, "`file_id`"),
        ("/vector_stores/known/files", {"file_id": 1}, "`file_id`"),
        (
            "/vector_stores/known/files",
            {"file_id": "FILE", "attributes": {"a": [1]}},
            "`attributes.a`",
        ),
        ("/vector_stores/known/files", {"file_id": "FILE", "attributes": "a"}, "`attributes`"),
        (
            "/vector_stores/known/files",
            {
                "file_id": "FILE",
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51},
                },
            },
            "half of them",
        ),
        (
            "/vector_stores/known/files",
            {
                "file_id": "FILE",
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 1e9, "chunk_overlap_tokens": 0},
                },
            },
            "`chunking_strategy`",
        ),
        (
            "/vector_stores",
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 1_000_000_000, "chunk_overlap_tokens": -1},
                }
            },
            "8 to 4096",
        ),
        ("/vector_stores/known/file_batches", {}, "either"),
        ("/vector_stores/known/file_batches", {"file_ids": ["FILE"], "files": []}, "either"),
        ("/vector_stores/known/file_batches", {"files": ["FILE"]}, "`file_id`"),
        ("/vector_stores/known/file_batches", {"files": {}}, "`files`"),
        ("/vector_stores/known/file_batches", {"file_ids": []}, "1 to 2000"),
        ("/vector_stores/known/file_batches", {"file_ids": ["FILE"] * 2001}, "1 to 2000"),
        ("/vector_stores/known/search", {}, "`query`"),
        ("/vector_stores/known/search", {"query": ""}, "`query`"),
        ("/vector_stores/known/search", {"query": []}, "`query`"),
        ("/vector_stores/known/search", {"query": [1]}, "`query`"),
        ("/vector_stores/known/search", {"query": "x" * 40_000}, "`query`"),
        ("/vector_stores/known/search", {"query": "x", "max_num_results": 0}, "`max_num_results`"),
        ("/vector_stores/known/search", {"query": "x", "max_num_results": 51}, "`max_num_results`"),
        (
            "/vector_stores/known/search",
            {"query": "x", "max_num_results": True},
            "`max_num_results`",
        ),
        ("/vector_stores/known/search", {"query": "x", "rewrite_query": True}, "`rewrite_query`"),
        ("/vector_stores/known/search", {"query": "x", "filters": {"type": "like"}}, "`filters`"),
        ("/vector_stores/known/search", {"query": "x", "filters": []}, "`filters`"),
        (
            "/vector_stores/known/search",
            {"query": "x", "ranking_options": {"score_threshold": 2}},
            "score_threshold",
        ),
        (
            "/vector_stores/known/search",
            {"query": "x", "ranking_options": {"ranker": "mine"}},
            "ranker",
        ),
        (
            "/vector_stores/known/search",
            {"query": "x", "ranking_options": {"ranker": []}},
            "ranker",
        ),
        (
            "/vector_stores/known/search",
            {"query": "x", "ranking_options": {"hybrid": 1}},
            "`ranking_options`",
        ),
    ],
)
def test_an_invalid_request_is_400_and_changes_nothing(
    client: openai.OpenAI,
    send: Callable[..., httpx.Response],
    path: str,
    body: dict[str, Any],
    message: str,
) -> None:
    client.vector_stores.create(name="known")
    file = client.files.create(file=("cats.md", _CATS.encode()), purpose="assistants").id

    content = json.dumps(body).replace('"FILE"', json.dumps(file))
    assert message in error_message(send("POST", path, content=content), 400)
    (store,) = client.vector_stores.list().data
    assert (store.name, store.file_counts.total) == ("known", 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"name": NaN}',
        b"\xff",
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
    ],
)
def test_an_invalid_json_body_is_400(send: Callable[..., httpx.Response], content: bytes) -> None:
    for path in (
        "/vector_stores",
        "/vector_stores/x/search",
        "/vector_stores/x/files",
        "/vector_stores/x/file_batches",
    ):
        error_message(send("POST", path, content=content), 400)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "`limit`"),
        ("limit=101", "`limit`"),
        ("limit=-1", "`limit`"),
        ("limit=ten", "`limit`"),
        ("limit=1e1", "`limit`"),
        ("limit=", "`limit`"),
        ("order=random", "`order`"),
        (f"after={_NO_STORE}", "cursor"),
        ("before=%ED%A0%80", "cursor"),
    ],
)
def test_an_invalid_page_request_is_400(
    client: openai.OpenAI, send: Callable[..., httpx.Response], query: str, message: str
) -> None:
    client.vector_stores.create(name="known")

    for path in ("/vector_stores", "/vector_stores/known/files"):
        assert message in error_message(send("GET", f"{path}?{query}"), 400)


def test_an_invalid_status_filter_is_400(
    client: openai.OpenAI, send: Callable[..., httpx.Response]
) -> None:
    client.vector_stores.create(name="known")

    assert "`filter`" in error_message(send("GET", "/vector_stores/known/files?filter=done"), 400)


def test_an_ambiguous_name_is_400(
    client: openai.OpenAI, send: Callable[..., httpx.Response]
) -> None:
    for _ in range(2):
        client.vector_stores.create(name="my notes")

    assert "by its id" in error_message(send("GET", "/vector_stores/my notes"), 400)


# -- invalid uploads


def form(*parts: tuple[str, str]) -> bytes:
    """A form of parts, each of which is its headers and its content."""
    return (
        "".join(f"--x\r\n{headers}\r\n\r\n{content}\r\n" for headers, content in parts).encode()
        + b"--x--\r\n"
    )


_FILE = ('Content-Disposition: form-data; name="file"; filename="a.md"', _CATS)
_PURPOSE = ('Content-Disposition: form-data; name="purpose"', "assistants")
_EXPIRY = ('Content-Disposition: form-data; name="expires_after[seconds]"', "3600")
_TEXT_FILE = ('Content-Disposition: form-data; name="file"', _CATS)
_EMPTY_FILE = ('Content-Disposition: form-data; name="file"; filename="a.md"', "")
_NAMELESS = ('Content-Disposition: form-data; name="file"; filename=""', _CATS)
_NULL_NAME = ('Content-Disposition: form-data; name="file"; filename="a\tb"', _CATS)
_HALF_NAME = ('Content-Disposition: form-data; name="file"; filename="\\ud800.md"', _CATS)
_UNNAMED = ("Content-Disposition: form-data", _CATS)
_EVIL = ('Content-Disposition: form-data; name="purpose"', "evil")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"not a form"),
        ("multipart/form-data; boundary=x", form(_FILE)),
        ("multipart/form-data; boundary=x", form(_PURPOSE)),
        ("multipart/form-data; boundary=x", form(_FILE, _FILE, _PURPOSE)),
        ("multipart/form-data; boundary=x", form(_FILE, _EVIL)),
        ("multipart/form-data; boundary=x", form(_FILE, _PURPOSE, _EXPIRY)),
        ("multipart/form-data; boundary=x", form(_TEXT_FILE, _PURPOSE)),
        ("multipart/form-data; boundary=x", form(_EMPTY_FILE, _PURPOSE)),
        ("multipart/form-data; boundary=x", form(_NAMELESS, _PURPOSE)),
        ("multipart/form-data; boundary=x", form(_NULL_NAME, _PURPOSE)),
        ("multipart/form-data; boundary=x", form(_UNNAMED, _PURPOSE)),
        ("multipart/form-data; boundary=x", form(_FILE, *[_PURPOSE] * 20)),
        ("multipart/form-data; boundary=x", form((_PURPOSE[0], "x" * (1 << 17)), _FILE)),
        ("multipart/form-data; boundary=x; charset=unicode_escape", form(_HALF_NAME, _PURPOSE)),
        ("multipart/form-data; boundary=y", form(_FILE, _PURPOSE)),
        ("multipart/form-data", form(_FILE, _PURPOSE)),
        ("application/json", b'{"file": "x", "purpose": "assistants"}'),
        ("text/plain", _CATS.encode()),
    ],
)
def test_an_invalid_form_is_400_and_leaves_no_file(
    client: openai.OpenAI,
    server: Server,
    send: Callable[..., httpx.Response],
    kind: str,
    content: bytes,
) -> None:
    error_message(send("POST", "/files", content=content, headers={"content-type": kind}), 400)

    assert client.files.list().data == []
    assert list((server.corpora.parent / "files").iterdir()) == []


def test_an_upload_beyond_the_limit_is_413(
    client: openai.OpenAI, send: Callable[..., httpx.Response]
) -> None:
    def endless() -> Iterator[bytes]:
        yield form(_FILE)[: -len("\r\n--x--\r\n")]
        for _ in range((MAX_UPLOAD >> 20) + 1):
            yield b"x" * (1 << 20)

    with pytest.raises(openai.APIStatusError, match="limited to 64 MiB") as refused:
        client.files.create(file=("big.txt", b"x" * MAX_UPLOAD), purpose="assistants")
    without_length = send(
        "POST",
        "/files",
        content=endless(),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )

    assert refused.value.status_code == 413
    assert "limited to 64 MiB" in error_message(without_length, 413)
    assert client.files.list().data == []


def test_a_json_body_beyond_the_limit_is_413(send: Callable[..., httpx.Response]) -> None:
    assert "16 MiB" in error_message(
        send("POST", "/vector_stores", content=b'{"name": "' + b"x" * (17 << 20)), 413
    )


def test_a_damaged_corpus_is_500_and_names_no_folder(
    server: Server, send: Callable[..., httpx.Response]
) -> None:
    (server.corpora / "damaged").mkdir()
    (server.corpora / "damaged" / "corpus.db").write_bytes(
        b"not a database at all, but long enough" * 100
    )

    answer = send("GET", "/vector_stores/damaged")

    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert str(server.corpora.parent) not in answer.text
    assert send("GET", "/vector_stores").json()["data"] == []


@pytest.mark.parametrize(
    ("problem", "raised"),
    [
        (CorpusUnavailableError("the database is away"), CorpusUnavailableError),
        (CorpusError("it is damaged"), RuntimeError),
    ],
)
async def test_a_client_learns_that_the_database_is_away_but_not_what_is_damaged(
    problem: CorpusError, raised: type[Exception]
) -> None:
    async def endpoint(request: Request, principal: Principal) -> Response:
        raise problem

    request = Request({"type": "http", "state": {"principal": OPERATOR}})

    with pytest.raises(raised):
        await handled(endpoint)(request)
