"""OpenAI's vector-store API over the library of corpora: `/v1/vector_stores` and all under it, and
`/v1/files`.

A small Starlette application. It judges the form of a request; what it means is
`selection.library.library`'s to judge. What is not supported (expiry, rewriting a query) is
refused, not ignored. Chunks are counted in tokens of the served model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from selection.access import OPERATOR, Principal
from selection.corpus.sqlite_store import CorpusError
from selection.library.library import Library
from selection.library.records import AttachedFile, AttachmentRequest, Batch
from serving.errors import (
    MethodError,
    RequestError,
    RouteError,
    is_the_clients,
    more_headers,
    to_http,
)
from serving.http.vector_stores.params import (
    cut,
    part,
    read_fields,
    read_form,
    strings,
    threshold,
    wanted,
    whole_number,
)
from serving.http.vector_stores.schemas import (
    batch_object,
    deleted_object,
    file_object,
    found_page,
    list_object,
    store_object,
    texts_page,
    upload_object,
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")
Endpoint = Callable[[Request, Principal], Awaitable[Response]]

_UPLOADS_AT_ONCE = 4  # whole in memory, on their way to the library
_POLL_AFTER = {"openai-poll-after-ms": "250"}  # openai-python's pollers ask again then


class Asks(Protocol):
    """Where the library is: in this process, or behind a Ray deployment."""

    async def ask(
        self,
        method: Callable[Concatenate[Library, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """What a method of `Library` answers."""


class VectorStores:
    """The routes over one library."""

    def __init__(self, library: Asks) -> None:
        self._library = library
        self._uploading = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        stores, files = "/v1/vector_stores", "/v1/vector_stores/{store}/files"
        batches = "/v1/vector_stores/{store}/file_batches"
        table: list[tuple[str, str, Endpoint]] = [
            ("POST", stores, self._create_store),
            ("GET", stores, self._stores),
            ("GET", stores + "/{store}", self._store),
            ("POST", stores + "/{store}", self._modify_store),
            ("DELETE", stores + "/{store}", self._delete_store),
            ("POST", stores + "/{store}/search", self._search),
            ("POST", files, self._attach),
            ("GET", files, self._files),
            ("GET", files + "/{file}", self._file),
            ("POST", files + "/{file}", self._modify_file),
            ("DELETE", files + "/{file}", self._detach),
            ("GET", files + "/{file}/content", self._texts),
            ("POST", batches, self._attach_batch),
            ("GET", batches + "/{batch}", self._batch),
            ("POST", batches + "/{batch}/cancel", self._cancel_batch),
            ("GET", batches + "/{batch}/files", self._files),
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._uploads),
            ("GET", "/v1/files/{file}", self._uploaded),
            ("DELETE", "/v1/files/{file}", self._delete_upload),
            ("GET", "/v1/files/{file}/content", self._content),
        ]
        routes = [
            Route(path, _answered(endpoint), methods=[method]) for method, path, endpoint in table
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._unrouted})
        self.app.router.redirect_slashes = False
        self._routes = [(route, method) for route, (method, *_) in zip(routes, table, strict=True)]

    def methods(self, path: str) -> tuple[str, ...]:
        """What may be asked of a path; nothing, if there is no such route."""
        scope = {"type": "http", "path": path, "method": ""}
        return tuple(
            method for route, method in self._routes if route.matches(scope)[0] is not Match.NONE
        )

    async def _unrouted(self, request: Request, problem: Exception) -> Response:
        path, method = request.scope["path"], request.method
        if isinstance(problem, HTTPException) and problem.status_code == 405:
            return _failed(MethodError(f"{path} does not take {method}", self.methods(path)))
        return _failed(RouteError(f"there is no {path} here"))

    async def _create_store(self, request: Request, reader: Principal) -> Response:
        body = await read_fields(
            request, "name", "description", "metadata", "file_ids", "chunking_strategy"
        )
        chunks = cut(body.get("chunking_strategy"))
        entry = await self._library.ask(
            Library.create_store,
            body.get("name"),
            metadata=body.get("metadata"),
            description=body.get("description"),
            wanted=[
                AttachmentRequest(file, cut=chunks)
                for file in strings(body.get("file_ids", []), "file_ids")
            ],
            reader=reader,
        )
        return JSONResponse(store_object(entry))

    async def _stores(self, request: Request, reader: Principal) -> Response:
        page = await self._library.ask(Library.stores, part(request), reader=reader)
        return JSONResponse(list_object(page, store_object))

    async def _store(self, request: Request, reader: Principal) -> Response:
        entry = await self._library.ask(Library.store, request.path_params["store"], reader=reader)
        return JSONResponse(store_object(entry))

    async def _modify_store(self, request: Request, reader: Principal) -> Response:
        body = await read_fields(request, "name", "metadata")
        entry = await self._library.ask(
            Library.modify_store,
            request.path_params["store"],
            name=body.get("name"),
            metadata=body.get("metadata"),
            reader=reader,
        )
        return JSONResponse(store_object(entry))

    async def _delete_store(self, request: Request, reader: Principal) -> Response:
        identity = await self._library.ask(
            Library.delete_store, request.path_params["store"], reader=reader
        )
        return JSONResponse(deleted_object("vector_store.deleted", identity))

    async def _search(self, request: Request, reader: Principal) -> Response:
        body = await read_fields(
            request, "query", "filters", "max_num_results", "ranking_options", "rewrite_query"
        )
        query = body.get("query")
        queries = [query] if isinstance(query, str) else strings(query, "query")
        if body.get("rewrite_query", False) is not False:
            raise RequestError("`rewrite_query` is not supported: leave it out")
        found = await self._library.ask(
            Library.search,
            request.path_params["store"],
            queries,
            limit=whole_number(body.get("max_num_results", 10), "max_num_results", 1, 50),
            threshold=threshold(body.get("ranking_options", {})),
            only=body.get("filters"),
            reader=reader,
        )
        return JSONResponse(found_page(queries, found))

    async def _attach(self, request: Request, reader: Principal) -> Response:
        body = await read_fields(request, "file_id", "attributes", "chunking_strategy")
        return _file(
            await self._library.ask(
                Library.attach, request.path_params["store"], wanted(body), reader=reader
            )
        )

    async def _files(self, request: Request, reader: Principal) -> Response:
        page = await self._library.ask(
            Library.files,
            request.path_params["store"],
            part(request),
            status=request.query_params.get("filter"),
            batch=request.path_params.get("batch"),
            reader=reader,
        )
        return JSONResponse(list_object(page, file_object))

    async def _file(self, request: Request, reader: Principal) -> Response:
        return _file(
            await self._library.ask(Library.file, *_store_and_file(request), reader=reader)
        )

    async def _modify_file(self, request: Request, reader: Principal) -> Response:
        body = await read_fields(request, "attributes")
        store, file = _store_and_file(request)
        attributes = body.get("attributes", {})
        return _file(
            await self._library.ask(Library.modify_file, store, file, attributes, reader=reader)
        )

    async def _detach(self, request: Request, reader: Principal) -> Response:
        store, file = _store_and_file(request)
        await self._library.ask(Library.detach, store, file, reader=reader)
        return JSONResponse(deleted_object("vector_store.file.deleted", file))

    async def _texts(self, request: Request, reader: Principal) -> Response:
        texts = await self._library.ask(Library.texts, *_store_and_file(request), reader=reader)
        return JSONResponse(texts_page(texts))

    async def _attach_batch(self, request: Request, reader: Principal) -> Response:
        body = await read_fields(request, "file_ids", "files", "attributes", "chunking_strategy")
        if ("file_ids" in body) == ("files" in body):
            raise RequestError("a batch has either `file_ids` or `files`")
        if "files" in body:
            if not isinstance(body["files"], list):
                raise RequestError("`files` is a list of objects that have a `file_id`")
            files = [wanted(file) for file in body["files"]]
        else:
            shared = {key: body[key] for key in ("attributes", "chunking_strategy") if key in body}
            files = [
                wanted({"file_id": file, **shared})
                for file in strings(body["file_ids"], "file_ids")
            ]
        return _batch(
            await self._library.ask(
                Library.attach_batch, request.path_params["store"], files, reader=reader
            )
        )

    async def _batch(self, request: Request, reader: Principal) -> Response:
        store, batch = request.path_params["store"], request.path_params["batch"]
        return _batch(await self._library.ask(Library.batch, store, batch, reader=reader))

    async def _cancel_batch(self, request: Request, reader: Principal) -> Response:
        store, batch = request.path_params["store"], request.path_params["batch"]
        return _batch(await self._library.ask(Library.cancel_batch, store, batch, reader=reader))

    async def _upload(self, request: Request, reader: Principal) -> Response:
        form = await read_form(request)
        try:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile) or not isinstance(purpose, str):
                raise RequestError(
                    "an upload is a form with a `file`, which has a file name, and a `purpose`"
                )
            async with self._uploading:
                content = await file.read()
                upload = await self._library.ask(
                    Library.upload, file.filename or "", content, purpose, reader=reader
                )
        finally:
            await form.close()
        return JSONResponse(upload_object(upload))

    async def _uploads(self, request: Request, reader: Principal) -> Response:
        asked = part(request, default=10_000, most=10_000)
        page = await self._library.ask(
            Library.uploads, asked, request.query_params.get("purpose"), reader=reader
        )
        return JSONResponse(list_object(page, upload_object))

    async def _uploaded(self, request: Request, reader: Principal) -> Response:
        file = request.path_params["file"]
        return JSONResponse(
            upload_object(await self._library.ask(Library.uploaded, file, reader=reader))
        )

    async def _delete_upload(self, request: Request, reader: Principal) -> Response:
        file = request.path_params["file"]
        await self._library.ask(Library.delete_upload, file, reader=reader)
        return JSONResponse(deleted_object("file", file))

    async def _content(self, request: Request, reader: Principal) -> Response:
        content = await self._library.ask(
            Library.content, request.path_params["file"], reader=reader
        )
        # Somebody's HTML must not become a page of this server.
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return Response(content, media_type="application/octet-stream", headers=headers)


def _answered(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, on behalf of the reader whom the door found, its exceptions answered in
    OpenAI's shape.
    """

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request, request.scope.get("state", {}).get("reader", OPERATOR))
        except ClientDisconnect:
            return _failed(RequestError("the client left before its request was complete"))
        except Exception as problem:
            return _failed(problem)

    return answered


def _failed(problem: Exception) -> Response:
    # What is wrong with a corpus on disk is not the client's.
    if isinstance(problem, CorpusError) or not is_the_clients(problem):
        log.error("a request failed", exc_info=problem)
        problem = RuntimeError()
    status, body = to_http(problem)
    return JSONResponse(
        body, status, {name.decode(): value.decode() for name, value in more_headers(problem)}
    )


def _store_and_file(request: Request) -> tuple[str, str]:
    return request.path_params["store"], request.path_params["file"]


def _file(attached: AttachedFile) -> Response:
    return JSONResponse(
        file_object(attached),
        headers=_POLL_AFTER if attached.file.status == "in_progress" else None,
    )


def _batch(batch: Batch) -> Response:
    return JSONResponse(
        batch_object(batch), headers=_POLL_AFTER if batch.counts["in_progress"] else None
    )
