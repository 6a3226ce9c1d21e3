"""What an attack is: a malformed request, and the response that it must get.

A request that is merely odd, and may be answered or refused, expects `EITHER`: then only a 5xx, an
error in another shape or no response is wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.promises.attacks.field_values import CHAT, COMPLETIONS, RESPONSES
from benchmarks.promises.raw_http import Headers, build_request

ANSWERED, REFUSED, EITHER = "answered", "refused", "either"
ENDPOINTS = (COMPLETIONS, CHAT, RESPONSES)
NO_BUDGET = ((b"Compute-Budget", b"none"),)


@dataclass(frozen=True)
class Attack:
    """A request and the response it must get.

    Attributes:
        category: category in the counts.
        parts: bytes and pauses in seconds, as `benchmarks.promises.raw_http.send_raw` takes them.
        expected: expectation of each response.
        may_close: the server may close without a response, or the client disconnects first.
        allowed: text of the request that an error may repeat.
        head: responses have no body.
        disconnect: the client closes the connection after the last part.
    """

    category: str
    parts: tuple[bytes | float, ...]
    expected: tuple[str, ...] = (REFUSED,)
    may_close: bool = False
    allowed: tuple[str, ...] = ()
    head: bool = False
    disconnect: bool = False


def post(
    category: str,
    path: str,
    body: bytes,
    headers: Headers = NO_BUDGET,
    expected: str = REFUSED,
    **options: Any,
) -> Attack:
    """An attack that is one POST; `options` are further fields of `Attack`."""
    return Attack(
        category, (build_request("POST", path.encode(), body, headers),), (expected,), **options
    )


def repeated(value: Any) -> tuple[str, ...]:
    """The texts with which an error may repeat an invalid value."""
    return (value, json.dumps(value)) if isinstance(value, str) else ()
