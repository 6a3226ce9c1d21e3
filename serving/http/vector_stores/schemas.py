"""OpenAI's JSON objects for the library's values: vector stores, files, batches, and pages of them.

It knows the shapes, not the routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from selection.library.records import AttachedFile, FileBatch, Page, VectorStoreInfo
from selection.library.search import SearchResult
from selection.library.uploads.base import UploadedFile

Object = dict[str, Any]
Item = TypeVar("Item")


def store_object(entry: VectorStoreInfo, default: str | None) -> Object:
    """A vector store; `default` is the id of the server's default corpus."""
    adaptation = {
        "default": entry.id == default,
        "usable": entry.mismatch is None,
        "reason": entry.mismatch,
    }
    return {
        "id": entry.id,
        "object": "vector_store",
        "created_at": int(entry.created),
        "name": entry.name,
        "description": entry.description,
        "metadata": entry.metadata,
        "file_counts": _counts(entry.counts),
        "status": "in_progress" if entry.counts["in_progress"] else "completed",
        "usage_bytes": entry.bytes,
        "expires_after": None,
        "expires_at": None,
        "last_active_at": None,
        "adaptation": adaptation,
    }


def upload_object(upload: UploadedFile) -> Object:
    """A file."""
    return {
        "id": upload.id,
        "object": "file",
        "created_at": int(upload.created),
        "filename": upload.name,
        "bytes": upload.bytes,
        "purpose": upload.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None,
    }


def file_object(attached: AttachedFile) -> Object:
    """A file of a vector store."""
    file = attached.file
    strategy: Object = {"type": "other"}
    if file.chunking is not None:
        length, overlap = file.chunking
        static = {"max_chunk_size_tokens": length, "chunk_overlap_tokens": overlap}
        strategy = {"type": "static", "static": static}
    return {
        "id": file.id,
        "object": "vector_store.file",
        "vector_store_id": attached.store,
        "created_at": file.created,
        "status": file.status,
        "last_error": file.problem and {"code": file.problem.code, "message": file.problem.message},
        "usage_bytes": file.bytes,
        "document_counts": file.documents,
        "attributes": file.attributes,
        "chunking_strategy": strategy,
    }


def batch_object(batch: FileBatch) -> Object:
    """A batch of files of a vector store."""
    counts = batch.counts
    if counts["in_progress"]:
        status = "in_progress"
    elif batch.cancelled or not (counts["completed"] or counts["failed"]):
        status = "cancelled"
    else:
        status = "completed" if counts["completed"] else "failed"
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "vector_store_id": batch.store,
        "created_at": batch.created,
        "status": status,
        "file_counts": _counts(counts),
    }


def search_page(queries: Sequence[str], results: Sequence[SearchResult]) -> Object:
    """The results of a search."""
    data = [
        {
            "file_id": result.file,
            "filename": result.name,
            "score": result.score,
            "attributes": result.attributes,
            "content": [{"type": "text", "text": result.text}],
        }
        for result in results
    ]
    shape = {"object": "vector_store.search_results.page", "search_query": list(queries)}
    return {**shape, "data": data, "has_more": False, "next_page": None}


def content_page(texts: Sequence[str]) -> Object:
    """The texts of a file of a vector store."""
    data = [{"type": "text", "text": text} for text in texts]
    return {
        "object": "vector_store.file_content.page",
        "data": data,
        "has_more": False,
        "next_page": None,
    }


def list_object(page: Page[Item], shape: Callable[[Item], Object]) -> Object:
    """A page of a list."""
    data = [shape(item) for item in page.items]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {
        "object": "list",
        "data": data,
        "first_id": first,
        "last_id": last,
        "has_more": page.more,
    }


def deleted_object(kind: str, identity: str) -> Object:
    """Confirmation of a deletion."""
    return {"id": identity, "object": kind, "deleted": True}


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {**counts, "total": sum(counts.values())}
