"""The HTTP door: an ASGI layer around vLLM's own OpenAI application.

In: routes by allow-list, who may come in and how many at once, the budget and the `adaptation`
extension of the body; which web pages may, `serving.http.browsers` says. Out:
`serving.http.response`. What happens between is `serving.adaptation.pipeline`; the OpenAI protocol
itself is vLLM's. Vector stores are `serving.http.vector_stores.routes`. The request id
(X-Request-Id, in and out) is Ray Serve's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response

from selection.access import OPERATOR
from serving import __version__ as mayfly_version
from serving.adaptation.admission import Admission, Place
from serving.adaptation.pipeline import Adaptation, Selects, Trains
from serving.adaptation.request import parse_adaptation_request
from serving.api_keys import Key, Keys
from serving.config import Config
from serving.conversations.adapter_cache import AdapterCache, CachedAdapter, CacheScope
from serving.conversations.completion_reader import CompletionReader
from serving.conversations.transcript import parse_transcript
from serving.engine.engine import REQUEST, Engine
from serving.errors import (
    AdaptationFailedError,
    BusyError,
    MethodError,
    ModelError,
    RouteError,
    is_the_clients,
)
from serving.http.body import (
    MAX_BODY,
    Message,
    Receive,
    Send,
    check_objects,
    check_size,
    check_tokens,
    read_body,
)
from serving.http.browsers import Browsers, check_media_type
from serving.http.openai_compat import in_chunks
from serving.http.page import PageFiles
from serving.http.response import ResponseWriter
from serving.http.unsupported import check_supported
from serving.http.vector_stores.routes import Asks, VectorStores
from serving.observability.logs import REQUEST_ID, log_ended
from serving.observability.metrics import Exposition, Metrics
from serving.observability.tracing import request_span

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Route:
    """Paths that are served, how they are asked, and what answers them."""

    paths: re.Pattern[str]
    method: str | None  # None: the answerer decides
    answerer: str


_ROUTES = (
    Route(re.compile(r"/v1/(chat/completions|completions|responses)"), "POST", "adapted"),
    Route(re.compile(r"/(tokenize|detokenize)"), "POST", "tokens"),
    Route(re.compile(r"/metrics"), "GET", "metrics"),
    Route(re.compile(r"/v1/models(/.+)?"), "GET", "models"),
    Route(re.compile(r"/health"), "GET", "health"),
    Route(re.compile(r"/|/page/[^/]+"), "GET", "page"),
    Route(re.compile(r"/ready"), "GET", "ready"),
    Route(re.compile(r"/version"), "GET", "version"),
    Route(re.compile(r"/v1/(vector_stores|files)(/.*)?", re.DOTALL), None, "corpora"),
)

_READY_SECONDS = 10.0
_LEFT = 499  # the client, before there was an answer
_OPEN = {"health", "page"}  # answered without a key; the page is a form, and asks for one
# Asked by address or by any name, by what watches over the server; it tells nothing but that the
# server lives.
_ANY_HOST = "/health"


class HasCorpora(Selects, Asks, Protocol):
    """Stage 1, and the library of the corpora that it selects from."""

    async def ready(self, corpus: str | None) -> None:
        """As `serving.adaptation.workers.CorporaWorker.ready`."""


class HasModel(Trains, Protocol):
    """Stage 2, and whether it is there."""

    async def ready(self) -> None:
        """As `serving.adaptation.workers.TrainerWorker.ready`."""


class Gateway:
    """vLLM's application with adaptation, and the vector stores beside it.

    Args:
        engine, selector, trainer: the three stages.
        config: the server's.
    """

    def __init__(
        self, engine: Engine, selector: HasCorpora, trainer: HasModel, config: Config
    ) -> None:
        self._engine, self._selector, self._trainer, self._config = (
            engine,
            selector,
            trainer,
            config,
        )
        self._vector_stores = VectorStores(selector)
        self._keys = (
            Keys(config.key_digests, config.key_file, config.auto, config.limits)
            if config.has_keys
            else None
        )
        self._admission = Admission(config.capacity)
        self._conversations = AdapterCache(config.conversations)
        self._page = PageFiles()
        self._browsers = Browsers(
            config.host, config.allowed_hosts, config.allowed_origins, config.has_keys
        )
        self._readable = self._browsers.readable(self._respond)
        self._adaptations: set[Adaptation] = set()
        self._discarding: set[asyncio.Task[None]] = set()
        self._exposition = Exposition()
        self._metrics = Metrics(
            live_adapters=engine.live,
            staging_bytes=engine.staging.bytes,
            in_stage=lambda: Counter(adaptation.stage for adaptation in self._adaptations.copy()),
            under_way=lambda: {
                "requests": self._admission.requests,
                "adaptations": self._admission.adaptations,
            },
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._engine.app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return
        await self._readable(scope, receive, send)

    async def _respond(self, scope: Message, receive: Receive, send: Send) -> None:
        begun, answer = time.monotonic(), ResponseWriter(send, self._engine.trouble)
        request_id = REQUEST_ID.set(_header(scope, b"x-request-id"))
        with request_span(
            _header(scope, b"traceparent"), {"http.request.method": scope["method"]}
        ) as tell:
            try:
                await self._answer(scope, receive, answer)
            except Exception as problem:
                if not is_the_clients(problem):
                    log.exception("a request failed")
                if isinstance(problem, BusyError):
                    self._metrics.rejected(problem)
                await answer.fail(problem)
            finally:
                status = answer.status or _LEFT
                tell({"http.response.status_code": status})
                self._metrics.answered(status)
                report = answer.adaptation.report if answer.adaptation else None
                log_ended(scope["method"], scope["path"], status, time.monotonic() - begun, report)
                REQUEST_ID.reset(request_id)

    async def _answer(self, scope: Message, receive: Receive, answer: ResponseWriter) -> None:
        method = scope["method"]
        if scope["path"] != _ANY_HOST:
            self._browsers.check(method, _header(scope, b"host"), _header(scope, b"origin"))
        answerer, allowed = self._route(scope["path"])
        if method == "OPTIONS":
            await Response(status_code=204, headers={"allow": ", ".join(allowed)})(
                scope, receive, answer
            )
            return
        if method not in allowed:
            raise MethodError(f"{scope['path']} takes {', '.join(allowed)}, not {method}", allowed)
        key = self._let_in(scope, answerer)
        check_media_type(
            dict(scope["headers"]), form=(method, scope["path"]) == ("POST", "/v1/files")
        )
        match answerer:
            case "adapted":
                await self._adapted(scope, receive, answer, key)
            case "page":
                await self._page(scope, receive, answer)
            case "version":
                await answer.json(200, {"version": mayfly_version, "vllm": self._engine.version})
            case "models":
                await self._models(
                    scope["path"].removeprefix("/v1/models").removeprefix("/"), answer, key
                )
            case "metrics":
                accept = _header(scope, b"accept") or ""
                told, media_type = await asyncio.to_thread(self._exposition.told, accept)
                await Response(told, media_type=media_type)(scope, receive, answer)
            case "ready":
                await self._ready(answer)
            case "corpora":
                reader = OPERATOR if key is None else key.reader
                state = {**scope.get("state", {}), "reader": reader}
                await self._vector_stores.app({**scope, "state": state}, receive, answer)
            case "tokens":
                body = await read_body(receive)
                check_tokens(body, len(self._engine.tokenizer))
                await self._engine.app(
                    *_with_body(scope, receive, json.dumps(body).encode()), answer
                )
            case _:
                await self._engine.app(*_with_body(scope, receive, b""), answer)

    def _route(self, path: str) -> tuple[str, tuple[str, ...]]:
        """What answers requests for a path, and to which methods.

        Raises:
            RouteError: nothing.
        """
        for route in _ROUTES:
            if route.paths.fullmatch(path):
                methods = (
                    self._vector_stores.methods(path) if route.method is None else (route.method,)
                )
                if methods:
                    return route.answerer, (
                        *(["HEAD"] if "GET" in methods else []),
                        *methods,
                        "OPTIONS",
                    )
        raise RouteError(f"there is no {path} here")

    def _let_in(self, scope: Message, answerer: str) -> Key | None:
        """Whose request it is; None where there are no keys, or none is needed.

        Raises:
            UnauthorizedError: a key is needed.
            RateLimitError: it has made too many requests.
        """
        if self._keys is None or answerer in _OPEN:
            return None
        key = self._keys.find(_header(scope, b"authorization"))
        self._keys.admit(key)
        return key

    async def _adapted(
        self, scope: Message, receive: Receive, answer: ResponseWriter, key: Key | None
    ) -> None:
        body = await read_body(receive)
        await self._engine.check()
        check_size(body)
        check_objects(body)
        check_supported(scope["path"], body, self._engine.config.tool_call_parser is not None)
        wish = parse_adaptation_request(
            body,
            _header(scope, b"compute-budget"),
            _header(scope, b"x-compute-budget"),
            self._config.terms,
            self._engine.tokenizer,
            default=None if key is None else key.default,
            limits=None if key is None else key.limits,
        )
        adapts = wish.budget.steps > 0 and wish.corpus is not None
        talk = parse_transcript(body) if wish.reuse and adapts else None
        heard = CompletionReader(MAX_BODY)

        def whose(corpus: str) -> CacheScope:
            return CacheScope(
                "" if key is None else key.name, corpus, self._engine.config.served_name, wish.only
            )

        def earlier(corpus: str) -> CachedAdapter | None:
            return None if talk is None else self._conversations.find(whose(corpus), talk)

        with self._admission.admit(adapts) as end_adaptation:
            learning = adapts + sum(each.learns for each in self._adaptations)
            place = Place(learning, self._config.capacity.undegraded)
            reader = OPERATOR if key is None else key.reader
            adaptation = Adaptation(
                wish.in_company(place), self._selector, self._trainer, self._engine, reader, earlier
            )
            answer.adaptation, answer.hear = adaptation, None if talk is None else heard.feed
            answer.conforms_chunks = in_chunks(body)
            self._adaptations.add(adaptation)
            try:
                adaptation.on_unadapted = end_adaptation
                await self._engine_answers(
                    scope, receive, answer, body, adaptation, wish.progress, end_adaptation
                )
                if talk is not None and adaptation.adapter is not None:
                    kept = CachedAdapter.after(adaptation.earlier, adaptation.adapter)
                    self._conversations.keep(whose(adaptation.corpus), talk, heard.answers(), kept)
            finally:
                self._adaptations.discard(adaptation)
                if adaptation.report is not None:
                    self._metrics.adapted(adaptation.report)
                elif isinstance(adaptation.problem, AdaptationFailedError):
                    self._metrics.failed()

    async def _engine_answers(
        self,
        scope: Message,
        receive: Receive,
        answer: ResponseWriter,
        body: Any,
        adaptation: Adaptation,
        comments: bool,
        on_answered: Callable[[], None],
    ) -> None:
        """vLLM's application answers; it asks for the adapter, which is gone when this returns."""
        token = REQUEST.set(adaptation)
        commenting = asyncio.create_task(answer.comment()) if comments else None
        try:
            await self._engine.app(*_with_body(scope, receive, json.dumps(body).encode()), answer)
        finally:
            REQUEST.reset(token)
            if commenting is not None:
                commenting.cancel()
            # The client may ask again at once, while the adapter is on its way out.
            on_answered()
            # A task of its own: a client that leaves cancels this one.
            task = asyncio.create_task(adaptation.discard())
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)
            await asyncio.shield(task)

    async def _models(self, name: str, answer: ResponseWriter, key: Key | None) -> None:
        """The models, or the one of this name, each with the terms of its adaptation for this key."""
        terms = self._config.terms.as_dict(None if key is None else key.limits)
        models = [{**model, "adaptation": terms} for model in await self._engine.models()]
        found = [model for model in models if name in ("", model["id"])]
        if not found:
            raise ModelError(f"there is no model {name!r} here")
        await answer.json(200, found[0] if name else {"object": "list", "data": found})

    async def _ready(self, answer: ResponseWriter) -> None:
        """Whether an adapted request could be answered now: the engine lives, the stages answer,
        the corpus opens.
        """
        checks = {
            "engine": self._engine.check(),
            "selector": self._selector.ready(self._config.corpus),
            "trainer": self._trainer.ready(),
        }
        timed = (asyncio.wait_for(check, _READY_SECONDS) for check in checks.values())
        outcomes = await asyncio.gather(*timed, return_exceptions=True)
        state = {
            name: "ready" if found is None else "not ready"
            for name, found in zip(checks, outcomes, strict=True)
        }
        await answer.json(200 if set(state.values()) == {"ready"} else 503, state)


def _header(scope: Message, name: bytes) -> str | None:
    lines = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(lines) if lines else None


def _with_body(scope: Message, receive: Receive, content: bytes) -> tuple[Message, Receive]:
    """The request with another body, its length, and the type that every body here is."""
    replaced = (b"content-length", b"transfer-encoding", b"content-type")
    kept = [pair for pair in scope["headers"] if pair[0] not in replaced]
    headers = [
        *kept,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
    ]
    pending = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return {**scope, "headers": headers}, replayed
