"""The body of a request: JSON, bounded, and Unicode throughout. What it says is others' to judge."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.errors import RequestError, TooLargeError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 16 << 20  # bytes


async def read_body(receive: Receive) -> dict[str, Any]:
    """The whole body of a request, a JSON object.

    Raises:
        RequestError: not JSON, not Unicode, not an object, or the client left.
        TooLargeError: more than MAX_BODY.
    """
    content = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client left before its request was complete")
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > MAX_BODY:
            raise TooLargeError(f"the request body is larger than {MAX_BODY >> 20} MiB")
    try:
        body = json.loads(content, parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as problem:
        raise RequestError(
            "the request body is not Unicode text: it holds bytes or surrogates that stand alone"
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"the request body is not JSON: {problem}") from problem
    if not isinstance(body, dict):
        raise RequestError("the request body is not a JSON object")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
