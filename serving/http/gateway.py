"""The HTTP gateway: one ASGI application around vLLM's own OpenAI application.

It routes by allow-list, admits requests (API keys, capacity), adapts the model to a completion
request, and reports the outcome. Web pages are `serving.http.browsers`, responses
`serving.http.response`, vector stores `serving.http.vector_stores`, and the adaptation itself is
`serving.adaptation.pipeline`. Ray Serve handles the request id (X-Request-Id, in and out).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from selection.access import OPERATOR, Principal
from serving import __version__ as mayfly_version
from serving.adaptation.admission import Admission, TrainerLoad
from serving.adaptation.candidates import CandidateRenderer
from serving.adaptation.pipeline import Adaptation
from serving.adaptation.request import parse_adaptation_request
from serving.adaptation.shown import PromptBuilder
from serving.adaptation.starts import Starts
from serving.api_keys.authentication import authentication_of
from serving.api_keys.key import Key
from serving.api_keys.keys import Keys
from serving.budget import INSTANT
from serving.config import Config
from serving.conversations.adapter_cache import AdapterCache
from serving.conversations.cached_adapter import CacheScope
from serving.conversations.examples_reuse import ExamplesReuse
from serving.corpus_training.trainings import CorpusTrainings
from serving.engine.current_request import REQUEST
from serving.engine.engine import Engine
from serving.errors import AdaptationFailedError, BusyError, is_the_clients
from serving.http.body import (
    MAX_BODY,
    check_objects,
    check_size,
    check_tokens,
    read_body,
    while_connected,
    with_body,
)
from serving.http.browsers import BrowserPolicy, check_media_type
from serving.http.gateway_stages import CorporaStage, Readiness, TrainerStage
from serving.http.models import Models, name_corpus
from serving.http.openai_compat import stream_needs_conforming
from serving.http.page import page_routes
from serving.http.response import ResponseWriter
from serving.http.routing import Route, RouteTable, header
from serving.http.unsupported import COMPLETIONS, check_supported
from serving.http.vector_stores.adapter_routes import AdapterRoutes
from serving.http.vector_stores.routes import VectorStoreRoutes
from serving.observability.logs import REQUEST_ID, log_failure, log_request
from serving.observability.metrics import Exposition, Metrics
from serving.observability.tracing import request_span

log = logging.getLogger(__name__)

# The adaptation of the request that is being answered, for its line in the log.
_ADAPTATION: ContextVar[Adaptation | None] = ContextVar("adaptation", default=None)

HEALTH = "/health"
# Status in logs and metrics of a request whose client left before it was answered.
_CLIENT_LEFT = 499


class Gateway:
    """vLLM's application with adaptation, and the vector stores beside it.

    Args:
        engine, selector, trainer: stages of an adapted request.
        config: server configuration.
    """

    def __init__(
        self, engine: Engine, selector: CorporaStage, trainer: TrainerStage, config: Config
    ) -> None:
        self._engine, self._selector, self._trainer = engine, selector, trainer
        self._config, self._terms = config, config.terms
        keys = Keys(config.key_digests, config.key_file, config.auto, config.limits)
        self._authentication = authentication_of(keys, config.selector.root, config.has_keys)
        self._admission = Admission(config.capacity)
        self._candidates = CandidateRenderer(
            engine.tokenizer, engine.context, config.example_limits
        )
        self._adapters = AdapterCache(config.conversations)
        self._starts = Starts(selector, config.engine.model, engine.retire)
        self._browsers = BrowserPolicy(
            config.host, config.allowed_hosts, config.allowed_origins, config.has_keys
        )
        self._models = Models(engine, selector, self._terms)
        routes = [
            Route("POST", "/v1/chat/completions", asgi=self._complete),
            Route("POST", "/v1/completions", asgi=self._complete),
            Route("POST", "/v1/responses", asgi=self._complete),
            Route("POST", "/tokenize", asgi=self._convert_tokens),
            Route("POST", "/detokenize", asgi=self._convert_tokens),
            *self._models.routes,
            Route("GET", "/version", self._version),
            Route("GET", "/metrics", self._exposed_metrics),
            Route("GET", "/ready", Readiness(engine, selector, trainer, config.corpus).answer),
            Route("GET", HEALTH, asgi=self._health, needs_key=False),
            *page_routes(),
            *VectorStoreRoutes(selector, config.corpus).routes,
        ]
        self._trainings: CorpusTrainings | None = None
        if (shape := config.selector.adapters) is not None:
            self._trainings = CorpusTrainings(
                trainer,
                selector,
                shape,
                lambda: self._admission.requests > 0,
                keeps_fresh=config.train_corpora,
            )
            self._training = asyncio.create_task(self._trainings.run())
            routes += AdapterRoutes(self._trainings).routes
        self._routes = RouteTable(routes, self._admit)
        self._answer = self._browsers.with_cors(self._answer_routed)
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

    async def end(self) -> None:
        """End the trainings of corpora within seconds, since a stage may be gone."""
        if self._authentication is not None:
            self._authentication.end()
        if self._trainings is not None:
            self._training.cancel()
            await asyncio.wait([self._training], timeout=5.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                await self._engine.app(scope, receive, send)
            case _:
                await send({"type": "websocket.close"})

    async def _answer_routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or its failure, and log, count and trace the outcome."""
        begun, status = time.monotonic(), _CLIENT_LEFT

        async def recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        answer = ResponseWriter(recorded, self._engine.failure)
        request_id = REQUEST_ID.set(header(scope, b"x-request-id"))
        no_adaptation = _ADAPTATION.set(None)
        with request_span(
            header(scope, b"traceparent"), {"http.request.method": scope["method"]}
        ) as set_attributes:
            try:
                # Health checks may use any name or address; the answer reveals nothing else.
                if scope["path"] != HEALTH:
                    self._browsers.check(
                        scope["method"], header(scope, b"host"), header(scope, b"origin")
                    )
                await self._routes(scope, receive, answer)
            except Exception as problem:
                if not is_the_clients(problem):
                    log_failure(log, "a request failed", problem)
                if isinstance(problem, BusyError):
                    self._metrics.observe_rejection(problem)
                if status == _CLIENT_LEFT:
                    await answer.fail(problem)
            finally:
                set_attributes({"http.response.status_code": status})
                self._metrics.observe_response(status)
                adaptation = _ADAPTATION.get()
                report = adaptation.report if adaptation else None
                seconds = time.monotonic() - begun
                log_request(scope["method"], scope["path"], status, seconds, report)
                REQUEST_ID.reset(request_id)
                _ADAPTATION.reset(no_adaptation)

    async def _admit(self, route: Route, scope: Scope) -> dict[str, Any]:
        """State of a request: its API key, None where it needs none, and its principal.

        Raises:
            UnauthorizedError: the request needs a key and has no valid one.
            KeysUnavailableError, RateLimitError: as `Authentication.key_of`.
            MediaTypeError: the body is not of the media type of the route.
        """
        key = None
        if self._authentication is not None and route.needs_key:
            key = await self._authentication.key_of(header(scope, b"authorization"))
        check_media_type(Headers(scope=scope), route.media_type)
        return {"key": key, "principal": OPERATOR if key is None else key.principal}

    async def _complete(self, scope: Scope, receive: Receive, answer: ResponseWriter) -> None:
        """Answer a completion, chat or response, adapted to its prompt."""
        key: Key | None = scope["state"]["key"]
        principal: Principal = scope["state"]["principal"]
        body = await read_body(receive)
        await self._engine.check()
        check_size(body)
        check_objects(body)
        check_supported(scope["path"], body, self._engine.config.tool_call_parser is not None)
        default = key.default if key else None
        if model := await self._models.take_corpus(body, principal):
            name_corpus(body, model)
            default = INSTANT
        request = parse_adaptation_request(
            body,
            header(scope, b"compute-budget"),
            header(scope, b"x-compute-budget"),
            self._terms,
            self._engine.tokenizer,
            default=default,
            key_limits=key.limits if key else None,
        )
        is_chat = scope["path"] != COMPLETIONS
        turn = examples = None
        if request.adapts and request.reuse is not None:
            name = key.name if key else ""
            owner = CacheScope(name, None, self._engine.config.served_name, request.filter)
            if request.reuse == "conversation":
                turn = self._adapters.turn(body, owner, max_response_bytes=MAX_BODY)
            else:
                examples = ExamplesReuse(self._adapters, request.examples_digest(is_chat), owner)
        is_trained = examples is not None and request.corpus is None and examples.is_cached()
        if request.needs_candidates(is_trained):
            request = await self._candidates.render(request, is_chat=is_chat)
        with self._admission.admit(request.adapts and not is_trained) as end_adaptation:
            if self._trainings is not None:
                self._trainings.priority.notice()
            pending = request.adapts + sum(each.is_pending for each in self._adaptations)
            load = TrainerLoad(pending, self._config.capacity.undegraded)
            adaptation = Adaptation(
                request if is_trained else request.shed_load(load),
                self._selector,
                self._trainer,
                self._engine,
                self._starts,
                principal,
                turn,
                examples,
                on_fallback=end_adaptation,
            )
            writer = answer.with_adaptation(
                adaptation,
                on_body=turn.feed if turn else lambda body: None,
                is_stream=body.get("stream") is True,
                conforms_chunks=stream_needs_conforming(body),
                model=model.name if model else None,
            )
            _ADAPTATION.set(adaptation)
            self._adaptations.add(adaptation)

            def end() -> None:
                end_adaptation()
                self._adaptations.discard(adaptation)

            try:
                await self._generate(
                    scope, receive, writer, body, adaptation, request.progress, end
                )
                adaptation.store()
            except Exception as problem:
                await writer.fail(problem)
                raise
            finally:
                if adaptation.report is not None:
                    self._metrics.observe_adaptation(adaptation.report)
                elif isinstance(adaptation.problem, AdaptationFailedError):
                    self._metrics.observe_required_failure()

    async def _generate(
        self,
        scope: Scope,
        receive: Receive,
        writer: ResponseWriter,
        body: dict[str, Any],
        adaptation: Adaptation,
        comments: bool,
        on_end: Callable[[], None],
    ) -> None:
        """Let vLLM's application answer; it asks for the adapter, which is unloaded afterwards."""

        async def send(message: Message) -> None:
            # With the last of the answer the client may send its next request.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                on_end()
            await writer(message)

        token = REQUEST.set(adaptation)
        commenting = asyncio.create_task(writer.comment()) if comments else None
        try:
            adaptation.look_ahead()
            longer: dict[str, Any] | None = body
            if adaptation.reads_prompt:
                render = partial(self._engine.prompt_tokens, scope["path"])
                prompts = PromptBuilder(self._engine.context, self._engine.tokenizer, render)
                longer = await while_connected(receive, adaptation.show(body, prompts))
            if longer is not None:
                content = json.dumps(longer).encode()
                await self._engine.app(*with_body(scope, receive, content), send)
        finally:
            REQUEST.reset(token)
            if commenting is not None:
                commenting.cancel()
            on_end()
            # In a task of its own, since a client that leaves cancels this one.
            task = asyncio.create_task(adaptation.discard())
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)
            await asyncio.shield(task)

    async def _convert_tokens(self, scope: Scope, receive: Receive, answer: ResponseWriter) -> None:
        body = await read_body(receive)
        check_tokens(body, len(self._engine.tokenizer))
        await self._models.take_corpus(body, scope["state"]["principal"])
        await self._engine.app(*with_body(scope, receive, json.dumps(body).encode()), answer)

    async def _health(self, scope: Scope, receive: Receive, answer: ResponseWriter) -> None:
        await self._engine.app(*with_body(scope, receive, b""), answer)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": mayfly_version, "vllm": self._engine.version})

    async def _exposed_metrics(self, request: Request) -> Response:
        accept = ", ".join(request.headers.getlist("accept"))
        content, media_type = await asyncio.to_thread(self._exposition.render, accept)
        return Response(content, media_type=media_type)
