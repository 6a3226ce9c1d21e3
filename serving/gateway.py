"""The HTTP door: an ASGI layer around vLLM's own OpenAI application.

In: routes by allow-list, the Compute-Budget header, the `adaptation` extension of the body. The request id
(X-Request-Id, in and out) is Ray Serve's.
Out: Compute-Spent and Server-Timing, the report as `adaptation` in the body (of a stream: in its first chunk),
and every error of ours in OpenAI's shape. What happens between is `serving.adaptation`; the OpenAI protocol
itself is vLLM's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from selection.selector import STRATEGIES
from serving import __version__ as mayfly_version
from serving.adaptation import Adaptation, Selects, Trains, Wish
from serving.budget import parse_budget
from serving.config import Config
from serving.engine import REQUEST, Engine
from serving.errors import MethodError, RequestError, RouteError, TooLargeError, to_http

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 16 << 20  # bytes
_ADAPTED = {"/v1/chat/completions", "/v1/completions"}
_OPTIONS = {"corpus", "prompt", "required", "seed", "strategy"}
_PLAIN = re.compile(r"/health|/metrics|/v1/models(/.+)?")


class Gateway:
    """vLLM's application with adaptation."""

    def __init__(self, engine: Engine, selector: Selects, trainer: Trains, config: Config) -> None:
        self._engine, self._selector, self._trainer, self._config = engine, selector, trainer, config
        self._discarding: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._engine.app(scope, receive, send)
            return
        answer = Answer(send)
        try:
            if scope["path"] in _ADAPTED:
                _allow(scope, "POST")
                await self._adapted(scope, receive, answer)
            elif scope["path"] == "/version":
                _allow(scope, "GET")
                await answer.json(200, {"version": mayfly_version, "vllm": self._engine.version})
            elif _PLAIN.fullmatch(scope["path"]):
                _allow(scope, "GET")
                await self._engine.app(scope, receive, answer)
            else:
                raise RouteError(f"there is no {scope['path']} here")
        except Exception as problem:
            if not isinstance(problem, (ValueError, RouteError, MethodError, TooLargeError)):
                log.exception("a request failed")
            await answer.fail(problem)

    async def _adapted(self, scope: Message, receive: Receive, answer: Answer) -> None:
        body = await _read(receive)
        wish = read_wish(body, _header(scope, b"compute-budget"), self._config, self._engine.tokenizer)
        adaptation = Adaptation(wish, self._selector, self._trainer, self._engine)
        answer.adaptation = adaptation
        content = json.dumps(body).encode()
        scope = {**scope, "headers": _with_length(scope["headers"], len(content))}
        token = REQUEST.set(adaptation)
        try:
            await self._engine.app(scope, _replay(content, receive), answer)
        finally:
            REQUEST.reset(token)
            # A task of its own: a client that leaves cancels this one.
            task = asyncio.create_task(adaptation.discard())
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)
            await asyncio.shield(task)


class Answer:
    """The way out of one request: adds headers and the report, or puts an error in the place of vLLM's answer."""

    def __init__(self, send: Send) -> None:
        self.adaptation: Adaptation | None = None
        self._send = send
        self._start: Message | None = None
        self._held = b""
        self._state = "before"  # before, holding (a body that takes the report), passing, failed

    async def __call__(self, message: Message) -> None:
        """ASGI send. Nothing leaves before the first piece of the body: by then the report is known."""
        if self._state == "failed":
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body" or self._start is None:
            await self._send(message)
            return
        problem = self.adaptation.problem if self.adaptation else None
        if problem is not None and self._state in ("before", "holding"):
            await self.fail(problem)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._state == "passing":
            await self._send(message)
            return
        self._state = "holding"
        self._held += body
        report = self.adaptation.report if self.adaptation else None
        media = dict(self._start["headers"]).get(b"content-type", b"").split(b";")[0]
        if media == b"text/event-stream" and b"\n\n" not in self._held and more:
            return
        if media == b"application/json" and more:
            return
        content = self._held
        if report is not None and self._start["status"] == 200:
            if media == b"text/event-stream":
                content = _report_in_first_event(content, report.as_dict())
            elif media == b"application/json":
                content = json.dumps({**json.loads(content), "adaptation": report.as_dict()}).encode()
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        headers += report.headers() if report else []
        if not more:
            headers.append((b"content-length", str(len(content)).encode()))
        self._state = "passing"
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def fail(self, problem: BaseException) -> None:
        """Answer with an error instead, if nothing has left yet."""
        if self._state in ("passing", "failed"):
            return
        self._state = "failed"
        await self.json(*to_http(problem))

    async def json(self, status: int, content: dict[str, Any]) -> None:
        """A whole JSON answer of our own."""
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def read_wish(body: dict[str, Any], budget_header: str | None, config: Config, tokenizer: Any) -> Wish:
    """What a request asks of its adaptation; takes the `adaptation` extension out of the body.

    Raises:
        BudgetError: the header.
        RequestError: the extension.
    """
    budget = parse_budget(budget_header, default=config.auto, auto=config.auto, limits=config.limits)
    budget, cut = budget.cut_to(config.limits)
    wanted = body.pop("adaptation", None)
    wanted = {} if wanted is None else wanted
    if not isinstance(wanted, dict):
        raise RequestError('`adaptation` is an object such as {"corpus": "name", "seed": 0}')
    unknown = set(wanted) - _OPTIONS
    if unknown:
        raise RequestError(f"`adaptation` has no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(_OPTIONS))}")
    corpus = wanted.get("corpus", config.corpus)
    if corpus is not None and not isinstance(corpus, str):
        raise RequestError("`adaptation.corpus` is the name of a corpus")
    strategy = wanted.get("strategy", "sift")
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise RequestError(f"`adaptation.strategy` is one of {', '.join(STRATEGIES)}")
    if strategy == "nn":  # it has no stopping rule
        if budget_header is not None and "alpha" in budget_header:
            raise RequestError("`adaptation.strategy` nn cannot stop by alpha: give Compute-Budget steps or seconds")
        budget = replace(budget, alpha=None)
    seed = wanted.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise RequestError("`adaptation.seed` is a whole number, 0 or more")
    required = wanted.get("required", False)
    if type(required) is not bool:
        raise RequestError("`adaptation.required` is true or false")
    prompt = wanted.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise RequestError("`adaptation.prompt` is the text to adapt to, where it is not the request's own prompt")
    prompts = _prompts(body, tokenizer) if prompt is None else (prompt,)
    return Wish(prompts, budget, cut, corpus, strategy, seed, required)


def _prompts(body: dict[str, Any], tokenizer: Any) -> tuple[str, ...]:
    """The texts to adapt to: a chat's turns joined, or each prompt of a completion. vLLM judges their form."""
    if "messages" in body:
        turns = body["messages"] if isinstance(body["messages"], list) else []
        return ("\n".join(_text(turn.get("content")) for turn in turns if isinstance(turn, dict)),)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        return ("",)
    if all(type(token) is int for token in prompt):
        prompt = [prompt]
    return tuple(p if isinstance(p, str) else _decode(p, tokenizer) for p in prompt)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def _decode(tokens: Any, tokenizer: Any) -> str:
    sound = isinstance(tokens, list) and all(type(t) is int and 0 <= t < len(tokenizer) for t in tokens)
    return str(tokenizer.decode(tokens)) if sound else ""


async def _read(receive: Receive) -> dict[str, Any]:
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


def _replay(content: bytes, receive: Receive) -> Receive:
    pending = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _report_in_first_event(events: bytes, report: dict[str, Any]) -> bytes:
    first, separator, rest = events.partition(b"\n\n")
    if not first.startswith(b"data: {"):
        return events
    chunk = {**json.loads(first[len(b"data: ") :]), "adaptation": report}
    return b"data: " + json.dumps(chunk).encode() + separator + rest


def _header(scope: Message, name: bytes) -> str | None:
    lines = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(lines) if lines else None


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(k, v) for k, v in headers if k not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


def _allow(scope: Message, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise MethodError(f"{scope['path']} takes {method}, not {scope['method']}")
