"""Bodies: a request's JSON, bounded in size, time and numbers; and whole JSON responses of our own.

It checks the form of a body, and leaves its meaning to others. Responses are not written by
Starlette's `JSONResponse`, which fails on a lone surrogate that a message may quote from a request.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope, Send

from serving.engine.limits import MAX_ANSWERS, MAX_N, are_tokens
from serving.errors import RequestError, SlowError, TokensError, TooLargeError

Result = TypeVar("Result")

# Bytes.
MAX_BODY = 16 << 20
# Seconds for a whole body to arrive.
BODY_SECONDS = 60.0


async def read_body(receive: Receive) -> dict[str, Any]:
    """The whole body of a request, a JSON object.

    Raises:
        RequestError: the body is not a JSON object of Unicode text, or the client left.
        SlowError: the body is incomplete after BODY_SECONDS.
        TooLargeError: the body is larger than MAX_BODY.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _read(receive)
    except TimeoutError as problem:
        raise SlowError(
            f"the request body was incomplete after {BODY_SECONDS:.0f} seconds"
        ) from problem
    try:
        body = json.loads(
            content, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_int64
        )
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError as problem:
        raise RequestError(
            "the request body is not Unicode text: it contains invalid UTF-8 or a lone surrogate"
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise RequestError(f"the request body is not JSON: {problem}") from problem
    if not isinstance(body, dict):
        raise RequestError("the request body must be a JSON object")
    return body


async def _read(receive: Receive) -> bytes:
    content = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client left before its request was complete")
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > MAX_BODY:
            raise TooLargeError(f"the request body is larger than {MAX_BODY >> 20} MiB")
    return bytes(content)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _int64(text: str) -> int:
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"the number {text[:20]}... is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def check_size(body: dict[str, Any]) -> None:
    """Limit the completions of one request. vLLM allows 16,384 for each of any number of prompts.

    Raises:
        RequestError: `n`, or the number of prompts times `n`, is too large.
    """
    counts = [body[name] for name in ("n", "best_of") if isinstance(body.get(name), (int, float))]
    n = max([1, *counts])
    if n > MAX_N:
        raise RequestError(f"`n` is {n}; this server allows {MAX_N} completions of a prompt")
    prompt = body.get("prompt")
    prompts = 1
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    if prompts * n > MAX_ANSWERS:
        raise RequestError(
            f"{prompts} prompts with `n` {n} make more than {MAX_ANSWERS} completions: split the "
            "request"
        )


def check_objects(body: dict[str, Any]) -> None:
    """Refuse values that vLLM takes for objects without a check, and then fails on.

    Raises:
        RequestError: `structured_outputs` is not an object.
    """
    if not isinstance(body.get("structured_outputs"), dict | None):
        raise RequestError('`structured_outputs` must be an object such as {"regex": "[0-9]+"}')


def check_tokens(body: dict[str, Any], vocabulary: int) -> None:
    """Refuse token ids that vLLM would silently drop or take for others.

    Args:
        body: body of a request.
        vocabulary: vocabulary size of the model.

    Raises:
        TokensError: `tokens` contains an invalid token id.
    """
    tokens = body.get("tokens")
    if isinstance(tokens, list) and not are_tokens(tokens, vocabulary):
        raise TokensError(
            f"`tokens` must be token ids of this model: whole numbers from 0 to {vocabulary - 1}"
        )


async def send_json(
    send: Send, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole JSON response, with `more` headers."""
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def with_body(scope: Scope, receive: Receive, content: bytes) -> tuple[Scope, Receive]:
    """The request with another JSON body, and headers to match it."""
    replaced = (b"content-length", b"transfer-encoding", b"content-type")
    headers = [
        *(pair for pair in scope["headers"] if pair[0] not in replaced),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
    ]
    pending = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return {**scope, "headers": headers}, replay


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of work for a client whose body has arrived; None if the client leaves first, and
    the work is cancelled.
    """
    task, leaving = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.wait([task, leaving])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
