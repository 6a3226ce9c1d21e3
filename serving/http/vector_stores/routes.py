"""OpenAI's vector-store API over the library of corpora: `/v1/vector_stores` and all below it, and
`/v1/files`.

The endpoints check the form of a request; `selection.library.library` decides what it means. What
is not supported (expiry, rewriting a query) is refused, not ignored. Chunks are counted in tokens
of the served model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from selection.access import Principal
from selection.errors import CorpusError, CorpusUnavailableError, LibraryError, MissingError
from selection.library.library import Library
from selection.library.records import AttachedFile, AttachmentRequest, FileBatch, VectorStoreInfo
from serving.adaptation.stages import LibraryExecutor
from serving.errors import RequestError
from serving.http.routing import FORM, Route
from serving.http.vector_stores.params import (
    attachment_request,
    chunking_strategy,
    page_request,
    read_fields,
    read_form,
    score_threshold,
    strings,
    whole_number,
)
from serving.http.vector_stores.schemas import (
    batch_object,
    content_page,
    deleted_object,
    file_object,
    list_object,
    search_page,
    store_object,
    upload_object,
)

log = logging.getLogger(__name__)

Endpoint = Callable[[Request, Principal], Awaitable[Response]]

# Uploads are whole in memory on their way to the library.
_CONCURRENT_UPLOADS = 4
# After this time openai-python's pollers ask again.
POLL_AFTER = {"openai-poll-after-ms": "250"}


class VectorStoreRoutes:
    """Routes to one library.

    Args:
        library: the library.
        default: name or id of the corpus of requests that name none.

    Attributes:
        routes: the routes. Each request's `state.principal` is on whose behalf it is made.
    """

    def __init__(self, library: LibraryExecutor, default: str | None = None) -> None:
        self._library, self._default = library, default
        self._uploading = asyncio.Semaphore(_CONCURRENT_UPLOADS)
        stores, files = "/v1/vector_stores", "/v1/vector_stores/{store}/files"
        batches = "/v1/vector_stores/{store}/file_batches"
        table: list[tuple[str, str, Endpoint]] = [
            ("POST", stores, self._create_store),
            ("GET", stores, self._list_stores),
            ("GET", stores + "/{store}", self._retrieve_store),
            ("POST", stores + "/{store}", self._modify_store),
            ("DELETE", stores + "/{store}", self._delete_store),
            ("POST", stores + "/{store}/search", self._search),
            ("POST", files, self._attach),
            ("GET", files, self._list_files),
            ("GET", files + "/{file}", self._retrieve_file),
            ("POST", files + "/{file}", self._modify_file),
            ("DELETE", files + "/{file}", self._detach),
            ("GET", files + "/{file}/content", self._file_texts),
            ("POST", batches, self._attach_batch),
            ("GET", batches + "/{batch}", self._retrieve_batch),
            ("POST", batches + "/{batch}/cancel", self._cancel_batch),
            ("GET", batches + "/{batch}/files", self._list_files),
            ("GET", "/v1/files", self._list_uploads),
            ("GET", "/v1/files/{file}", self._retrieve_upload),
            ("DELETE", "/v1/files/{file}", self._delete_upload),
            ("GET", "/v1/files/{file}/content", self._upload_content),
        ]
        self.routes = [
            Route("POST", "/v1/files", handled(self._upload), media_type=FORM),
            *(Route(method, path, handled(endpoint)) for method, path, endpoint in table),
        ]

    async def _create_store(self, request: Request, principal: Principal) -> Response:
        body = await read_fields(
            request, "name", "description", "metadata", "file_ids", "chunking_strategy"
        )
        chunking = chunking_strategy(body.get("chunking_strategy"))
        entry = await self._library.call(
            Library.create_store,
            body.get("name"),
            metadata=body.get("metadata"),
            description=body.get("description"),
            attachments=[
                AttachmentRequest(file, chunking=chunking)
                for file in strings(body.get("file_ids", []), "file_ids")
            ],
            principal=principal,
        )
        return await self._store(entry, principal)

    async def _list_stores(self, request: Request, principal: Principal) -> Response:
        page = await self._library.call(Library.stores, page_request(request), principal=principal)
        default = await self._default_id(principal)
        return JSONResponse(list_object(page, lambda entry: store_object(entry, default)))

    async def _retrieve_store(self, request: Request, principal: Principal) -> Response:
        entry = await self._library.call(
            Library.store, request.path_params["store"], principal=principal
        )
        return await self._store(entry, principal)

    async def _modify_store(self, request: Request, principal: Principal) -> Response:
        body = await read_fields(request, "name", "metadata")
        entry = await self._library.call(
            Library.modify_store,
            request.path_params["store"],
            name=body.get("name"),
            metadata=body.get("metadata"),
            principal=principal,
        )
        return await self._store(entry, principal)

    async def _store(self, entry: VectorStoreInfo, principal: Principal) -> Response:
        return JSONResponse(store_object(entry, await self._default_id(principal)))

    async def _default_id(self, principal: Principal) -> str | None:
        """Id of the default corpus; None if there is none that the principal sees."""
        if self._default is None:
            return None
        try:
            entry = await self._library.call(Library.store, self._default, principal=principal)
        except (MissingError, LibraryError, CorpusError) as problem:
            log.debug("the default corpus is not marked in a list: %s", problem)
            return None
        return entry.id

    async def _delete_store(self, request: Request, principal: Principal) -> Response:
        identity = await self._library.call(
            Library.delete_store, request.path_params["store"], principal=principal
        )
        return JSONResponse(deleted_object("vector_store.deleted", identity))

    async def _search(self, request: Request, principal: Principal) -> Response:
        body = await read_fields(
            request, "query", "filters", "max_num_results", "ranking_options", "rewrite_query"
        )
        query = body.get("query")
        queries = [query] if isinstance(query, str) else strings(query, "query")
        if body.get("rewrite_query", False) is not False:
            raise RequestError("`rewrite_query` is not supported: leave it out")
        results = await self._library.call(
            Library.search,
            request.path_params["store"],
            queries,
            max_results=whole_number(body.get("max_num_results", 10), "max_num_results", 1, 50),
            threshold=score_threshold(body.get("ranking_options", {})),
            filter=body.get("filters"),
            principal=principal,
        )
        return JSONResponse(search_page(queries, results))

    async def _attach(self, request: Request, principal: Principal) -> Response:
        body = await read_fields(request, "file_id", "attributes", "chunking_strategy")
        return _file(
            await self._library.call(
                Library.attach,
                request.path_params["store"],
                attachment_request(body),
                principal=principal,
            )
        )

    async def _list_files(self, request: Request, principal: Principal) -> Response:
        page = await self._library.call(
            Library.files,
            request.path_params["store"],
            page_request(request),
            status=request.query_params.get("filter"),
            batch=request.path_params.get("batch"),
            principal=principal,
        )
        return JSONResponse(list_object(page, file_object))

    async def _retrieve_file(self, request: Request, principal: Principal) -> Response:
        return _file(
            await self._library.call(Library.file, *_store_and_file(request), principal=principal)
        )

    async def _modify_file(self, request: Request, principal: Principal) -> Response:
        body = await read_fields(request, "attributes")
        store, file = _store_and_file(request)
        attributes = body.get("attributes", {})
        return _file(
            await self._library.call(
                Library.modify_file, store, file, attributes, principal=principal
            )
        )

    async def _detach(self, request: Request, principal: Principal) -> Response:
        store, file = _store_and_file(request)
        await self._library.call(Library.detach, store, file, principal=principal)
        return JSONResponse(deleted_object("vector_store.file.deleted", file))

    async def _file_texts(self, request: Request, principal: Principal) -> Response:
        texts = await self._library.call(
            Library.texts, *_store_and_file(request), principal=principal
        )
        return JSONResponse(content_page(texts))

    async def _attach_batch(self, request: Request, principal: Principal) -> Response:
        body = await read_fields(request, "file_ids", "files", "attributes", "chunking_strategy")
        if ("file_ids" in body) == ("files" in body):
            raise RequestError("a batch must have either `file_ids` or `files`")
        if "files" in body:
            if not isinstance(body["files"], list):
                raise RequestError("`files` must be a list of objects with a `file_id`")
            files = [attachment_request(file) for file in body["files"]]
        else:
            shared = {key: body[key] for key in ("attributes", "chunking_strategy") if key in body}
            files = [
                attachment_request({"file_id": file, **shared})
                for file in strings(body["file_ids"], "file_ids")
            ]
        return _batch(
            await self._library.call(
                Library.attach_batch, request.path_params["store"], files, principal=principal
            )
        )

    async def _retrieve_batch(self, request: Request, principal: Principal) -> Response:
        store, batch = request.path_params["store"], request.path_params["batch"]
        return _batch(await self._library.call(Library.batch, store, batch, principal=principal))

    async def _cancel_batch(self, request: Request, principal: Principal) -> Response:
        store, batch = request.path_params["store"], request.path_params["batch"]
        return _batch(
            await self._library.call(Library.cancel_batch, store, batch, principal=principal)
        )

    async def _upload(self, request: Request, principal: Principal) -> Response:
        form = await read_form(request)
        try:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile) or not isinstance(purpose, str):
                raise RequestError(
                    "an upload must have a `file`, which has a file name, and a `purpose`"
                )
            async with self._uploading:
                content = await file.read()
                upload = await self._library.call(
                    Library.upload, file.filename or "", content, purpose, principal=principal
                )
        finally:
            await form.close()
        return JSONResponse(upload_object(upload))

    async def _list_uploads(self, request: Request, principal: Principal) -> Response:
        page = await self._library.call(
            Library.uploads,
            page_request(request, default=10_000, maximum=10_000),
            request.query_params.get("purpose"),
            principal=principal,
        )
        return JSONResponse(list_object(page, upload_object))

    async def _retrieve_upload(self, request: Request, principal: Principal) -> Response:
        file = request.path_params["file"]
        return JSONResponse(
            upload_object(await self._library.call(Library.uploaded, file, principal=principal))
        )

    async def _delete_upload(self, request: Request, principal: Principal) -> Response:
        file = request.path_params["file"]
        await self._library.call(Library.delete_upload, file, principal=principal)
        return JSONResponse(deleted_object("file", file))

    async def _upload_content(self, request: Request, principal: Principal) -> Response:
        content = await self._library.call(
            Library.content, request.path_params["file"], principal=principal
        )
        # An uploaded HTML file must not become a page of this server.
        headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
        return Response(content, media_type="application/octet-stream", headers=headers)


def handled(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint with the request's principal, and with exceptions that the gateway knows."""

    async def handled(request: Request) -> Response:
        try:
            return await endpoint(request, request.state.principal)
        except ClientDisconnect as problem:
            raise RequestError("the client left before its request was complete") from problem
        except CorpusUnavailableError:
            raise
        except CorpusError as problem:
            # A client of this API cannot mend a corpus on disk.
            raise RuntimeError("a corpus cannot be used") from problem

    return handled


def _store_and_file(request: Request) -> tuple[str, str]:
    return request.path_params["store"], request.path_params["file"]


def _file(attached: AttachedFile) -> Response:
    return JSONResponse(
        file_object(attached),
        headers=POLL_AFTER if attached.file.status == "in_progress" else None,
    )


def _batch(batch: FileBatch) -> Response:
    return JSONResponse(
        batch_object(batch), headers=POLL_AFTER if batch.counts["in_progress"] else None
    )
