"""Bodies: a request's, JSON, bounded in size and time and Unicode throughout; and whole JSON
answers of our own.

What they say is others' to judge.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from serving.engine.limits import MAX_ANSWERS, MAX_N, are_tokens
from serving.errors import RequestError, SlowError, TokensError, TooLargeError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 16 << 20  # bytes
BODY_SECONDS = 60.0  # for all of it to come


async def read_body(receive: Receive) -> dict[str, Any]:
    """The whole body of a request, a JSON object.

    Raises:
        RequestError: not JSON, not Unicode, not an object, or the client left.
        SlowError: not whole after BODY_SECONDS.
        TooLargeError: more than MAX_BODY.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _read(receive)
    except TimeoutError as problem:
        raise SlowError(
            f"the request body was not whole after {BODY_SECONDS:.0f} seconds"
        ) from problem
    try:
        body = json.loads(
            content, parse_constant=_no_constant, parse_float=_finite, parse_int=_of_64_bits
        )
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
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _of_64_bits(text: str) -> int:
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{text[:20]}... is too large a number")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def check_size(body: dict[str, Any]) -> None:
    """Refuse what would make one request many: vLLM takes 16,384 answers to each of any number of
    prompts.

    Raises:
        RequestError: `n` or the number of prompts.
    """
    answers = [body[name] for name in ("n", "best_of") if isinstance(body.get(name), (int, float))]
    most = max([1, *answers])
    if most > MAX_N:
        raise RequestError(f"`n` is {most}; this server gives up to {MAX_N} answers to a prompt")
    prompts = body.get("prompt")
    count = (
        len(prompts)
        if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
        else 1
    )
    if count * most > MAX_ANSWERS:
        raise RequestError(
            f"{count} prompts with `n` {most} ask for more than {MAX_ANSWERS} answers: send fewer at once"
        )


def check_objects(body: dict[str, Any]) -> None:
    """Refuse what vLLM takes for an object without looking, and fails at.

    Raises:
        RequestError: `structured_outputs`.
    """
    if not isinstance(body.get("structured_outputs"), dict | None):
        raise RequestError('`structured_outputs` is an object such as {"regex": "[0-9]+"}')


def check_tokens(body: dict[str, Any], vocabulary: int) -> None:
    """Refuse tokens that vLLM would leave out of the text that they stand for, or take for others.

    Raises:
        TokensError: `tokens` holds what is no token of a vocabulary of that size.
    """
    tokens = body.get("tokens")
    if isinstance(tokens, list) and not are_tokens(tokens, vocabulary):
        raise TokensError(
            f"`tokens` are whole numbers from 0 to {vocabulary - 1}, the tokens of this model"
        )


async def send_json(
    send: Send, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """A whole JSON answer, with more headers than it needs where there are some."""
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
