"""Parameters of the vector-store API: bodies, forms and query strings, parsed into the library's
values.

Only the form is checked here: types, unknown fields, and what is not supported.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive

from selection.library.records import AttachmentRequest, PageRequest
from selection.library.validation import parse_chunking
from serving.errors import RequestError, TooLargeError
from serving.http.body import read_body
from serving.http.routing import FORM

# Bytes of a whole form.
MAX_UPLOAD = 64 << 20
_RANKERS = ("none", "auto", "default-2024-11-15")


async def read_fields(request: Request, *known: str) -> dict[str, Any]:
    """The JSON body of a request, without the fields that are null.

    Raises:
        RequestError: the body is not JSON, has an unknown field, or asks for an expiry.
        TooLargeError: the body is larger than `serving.http.body.MAX_BODY`.
    """
    body = await read_body(request.receive)
    unknown = sorted(set(body) - {*known, "expires_after"})
    if unknown:
        raise RequestError(f"unknown field `{unknown[0]}`: known fields are {', '.join(known)}")
    _refuse_expiry(body)
    return {key: value for key, value in body.items() if value is not None}


async def read_form(request: Request) -> FormData:
    """The form of an upload. A large file is on disk until the form is closed.

    Raises:
        RequestError: the body is not a form of one file and a few fields.
        TooLargeError: the form is larger than MAX_UPLOAD.
    """
    if not request.headers.get("content-type", "").lower().startswith(FORM):
        raise RequestError(f"an upload must be {FORM}, with a `file` and a `purpose`")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_UPLOAD:
        raise _too_large()
    try:
        form = await Request(request.scope, _bounded(request.receive)).form(
            max_files=1, max_fields=8, max_part_size=1 << 16
        )
    except MultiPartException as problem:
        raise RequestError(f"the form cannot be read: {problem.message}") from problem
    _refuse_expiry(form)
    return form


def page_request(request: Request, default: int = 20, maximum: int = 100) -> PageRequest:
    """The page of a list that a query string asks for.

    Args:
        request: the request.
        default, maximum: default and largest limit.

    Raises:
        RequestError: an invalid limit or order.
    """
    query = request.query_params
    limit, order = query.get("limit", str(default)), query.get("order", "desc")
    if not re.fullmatch("[0-9]{1,6}", limit) or not 1 <= int(limit) <= maximum:
        raise RequestError(f"`limit` must be a whole number from 1 to {maximum}")
    if order not in ("asc", "desc"):
        raise RequestError("`order` must be asc or desc")
    return PageRequest(int(limit), order, query.get("after"), query.get("before"))


def attachment_request(fields: Any) -> AttachmentRequest:
    """A file to attach.

    Raises:
        RequestError: no `file_id`, or an invalid chunking strategy.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("file_id"), str):
        raise RequestError(
            "a file to attach must be an object with a `file_id`, the id of an uploaded file"
        )
    return AttachmentRequest(
        fields["file_id"],
        fields.get("attributes") or {},
        chunking_strategy(fields.get("chunking_strategy")),
    )


def chunking_strategy(strategy: Any) -> tuple[int, int] | None:
    """Length and overlap of chunks in tokens; None for the default.

    Raises:
        RequestError: the strategy is neither auto nor static.
        LibraryError: an invalid length or overlap.
    """
    if strategy is None or strategy == {"type": "auto"}:
        return None
    static = (
        strategy.get("static")
        if isinstance(strategy, dict) and strategy.get("type") == "static"
        else None
    )
    names = ("max_chunk_size_tokens", "chunk_overlap_tokens")
    if (
        not isinstance(static, dict)
        or set(static) != set(names)
        or not all(type(static[n]) is int for n in names)
    ):
        raise RequestError(
            '`chunking_strategy` must be {"type": "auto"} or {"type": "static", "static": '
            '{"max_chunk_size_tokens": 256, "chunk_overlap_tokens": 0}}'
        )
    return parse_chunking(static[names[0]], static[names[1]])


def strings(value: Any, name: str) -> list[str]:
    """A list of strings.

    Raises:
        RequestError: the value is not a list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise RequestError(f"`{name}` must be a list of strings")
    return value


def whole_number(value: Any, name: str, minimum: int, maximum: int) -> int:
    """A whole number within limits.

    Raises:
        RequestError: the value is not a whole number from `minimum` to `maximum`.
    """
    if type(value) is not int or not minimum <= value <= maximum:
        raise RequestError(f"`{name}` must be a whole number from {minimum} to {maximum}")
    return value


def score_threshold(options: Any) -> float:
    """The lowest score that ranking options ask for. All rankers rank alike.

    Raises:
        RequestError: an unknown or invalid option.
    """
    if not isinstance(options, dict) or set(options) - {"ranker", "score_threshold"}:
        raise RequestError(
            "`ranking_options` may have a `ranker` and a `score_threshold`, nothing else"
        )
    if options.get("ranker", "auto") not in _RANKERS:
        raise RequestError(f"`ranking_options.ranker` must be one of {', '.join(_RANKERS)}")
    lowest = options.get("score_threshold", 0)
    if type(lowest) not in (int, float) or not 0 <= lowest <= 1:
        raise RequestError("`ranking_options.score_threshold` must be a number from 0 to 1")
    return float(lowest)


def _refuse_expiry(fields: Any) -> None:
    if any(key.startswith("expires_after") and fields[key] is not None for key in fields):
        raise RequestError(
            "`expires_after` is not supported: stores and files stay until they are deleted"
        )


def _bounded(receive: Receive) -> Receive:
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_UPLOAD:
            raise _too_large()
        return message

    return bounded


def _too_large() -> TooLargeError:
    return TooLargeError(f"an upload is limited to {MAX_UPLOAD >> 20} MiB: split the file")
