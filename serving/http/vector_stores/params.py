"""The fields of requests to the vector-store API: bodies, forms, query strings, in the library's
words.

Only the form is judged here: types, unknown fields, what is not supported.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

from selection.library.records import AttachmentRequest, PageRequest, parse_chunking
from serving.errors import RequestError, TooLargeError
from serving.http.body import Message, Receive, read_body

MAX_UPLOAD = 64 << 20  # bytes, of a whole form
_RANKERS = ("none", "auto", "default-2024-11-15")


async def read_fields(request: Request, *known: str) -> dict[str, Any]:
    """The JSON body of a request, without the fields that are null.

    Raises:
        RequestError: not JSON, a field that is not known, or an expiry, which nothing here has.
        TooLargeError: more than `serving.http.body.MAX_BODY`.
    """
    body = await read_body(request.receive)
    unknown = sorted(set(body) - {*known, "expires_after"})
    if unknown:
        raise RequestError(f"unknown field `{unknown[0]}`: this takes {', '.join(known)}")
    _refuse_expiry(body)
    return {key: value for key, value in body.items() if value is not None}


async def read_form(request: Request) -> FormData:
    """The form of an upload; what is large of it lies on disk until the form is closed.

    Raises:
        RequestError: not a form of one file and a few fields.
        TooLargeError: more than MAX_UPLOAD.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError("an upload is multipart/form-data, with a `file` and a `purpose`")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_UPLOAD:
        raise _too_large()
    try:
        form = await Request(request.scope, _bounded(request.receive)).form(
            max_files=1, max_fields=8, max_part_size=1 << 16
        )
    except HTTPException as problem:
        raise RequestError(f"the form cannot be read: {problem.detail}") from problem
    _refuse_expiry(form)
    return form


def part(request: Request, default: int = 20, most: int = 100) -> PageRequest:
    """Which part of a list a query string asks for.

    Raises:
        RequestError: a limit or an order that is none.
    """
    asked = request.query_params
    limit, order = asked.get("limit", str(default)), asked.get("order", "desc")
    if not re.fullmatch("[0-9]{1,6}", limit) or not 1 <= int(limit) <= most:
        raise RequestError(f"`limit` is a whole number from 1 to {most}")
    if order not in ("asc", "desc"):
        raise RequestError("`order` is asc or desc")
    return PageRequest(int(limit), order, asked.get("after"), asked.get("before"))


def wanted(fields: Any) -> AttachmentRequest:
    """A file to attach.

    Raises:
        RequestError: no `file_id`, or a chunking strategy that is none.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("file_id"), str):
        raise RequestError(
            "a file to attach is an object with a `file_id`, the id of an uploaded file"
        )
    return AttachmentRequest(
        fields["file_id"], fields.get("attributes") or {}, cut(fields.get("chunking_strategy"))
    )


def cut(strategy: Any) -> tuple[int, int] | None:
    """Tokens of a sequence and of its overlap, after a chunking strategy; None for the default.

    Raises:
        RequestError: neither auto nor static.
        LibraryError: lengths that are none.
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
            '`chunking_strategy` is {"type": "auto"} or {"type": "static", "static": {"max_chunk_size_tokens": 256, '
            '"chunk_overlap_tokens": 0}}'
        )
    return parse_chunking(static[names[0]], static[names[1]])


def strings(value: Any, name: str) -> list[str]:
    """A list of strings.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise RequestError(f"`{name}` is a list of strings")
    return value


def whole_number(value: Any, name: str, least: int, most: int) -> int:
    """A whole number within limits.

    Raises:
        RequestError: it is none.
    """
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f"`{name}` is a whole number from {least} to {most}")
    return value


def threshold(options: Any) -> float:
    """The lowest score that ranking options ask for. There is one ranking, whatever the ranker.

    Raises:
        RequestError: an option that is not known.
    """
    if not isinstance(options, dict) or set(options) - {"ranker", "score_threshold"}:
        raise RequestError("`ranking_options` has a `ranker` and a `score_threshold`, nothing else")
    if options.get("ranker", "auto") not in _RANKERS:
        raise RequestError(f"`ranking_options.ranker` is one of {', '.join(_RANKERS)}")
    lowest = options.get("score_threshold", 0)
    if type(lowest) not in (int, float) or not 0 <= lowest <= 1:
        raise RequestError("`ranking_options.score_threshold` is a number from 0 to 1")
    return float(lowest)


def _refuse_expiry(fields: Any) -> None:
    if any(key.startswith("expires_after") and fields[key] is not None for key in fields):
        raise RequestError(
            "`expires_after` is not supported: what you make stays until you delete it"
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
    return TooLargeError(f"an upload has {MAX_UPLOAD >> 20} MiB at most: split the file")
