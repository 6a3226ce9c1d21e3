"""The gateway over HTTP, with real stages and a vLLM stand-in; tests/engine has the real one."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, ContextVar
from dataclasses import dataclass, replace
from heapq import heapify
from pathlib import Path
from types import CellType, FrameType, SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from adapters.trainer import TrainerConfig
from adapters.training import TrainingRequest
from selection.corpus.calibration import Calibration, calibration_meta, model_digest
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, load_embedder
from selection.examples.example import Example
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.location import DatabaseLocation
from selection.request import Candidate, SelectionRequest
from selection.selector import Selection, SelectorConfig
from serving.adaptation.admission import Capacity
from serving.adaptation.candidates import CandidateRenderer
from serving.adaptation.request import AdaptationRequest
from serving.api_keys import database
from serving.api_keys.changes import add_key, remove_key
from serving.api_keys.key import digest
from serving.budget import Budget
from serving.config import Config
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.staging import Staging
from serving.http.gateway import HEALTH, Gateway
from serving.workers.corpora import CorporaWorker
from serving.workers.stages import TrainerWorker

ANSWER = "In the yellow book."
_SERVING = Path(__file__).resolve().parents[3] / "serving"
QUESTION = {"role": "user", "content": "How do I ask for leave?"}
SECOND_TURN = [
    QUESTION,
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "And how much?"},
]
# Takes minutes to train on.
_LONG_TRAINING = [[(7 * i) % 101 for i in range(32)]] * 20_000


class FakeVllm:
    """vLLM's engine and application, which has one answer to every prompt."""

    errored = False

    def __init__(self, tokenizer: Any) -> None:
        self.input_processor = SimpleNamespace(process_inputs=lambda *_: None)
        self.model_config = SimpleNamespace(max_model_len=2048)
        self.answered: list[Any] = []
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/chat/completions/render", self._render, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
            ]
        )
        card = SimpleNamespace(id="nano", model_dump=lambda: {"id": "nano", "object": "model"})
        self.app.state.openai_serving_models = SimpleNamespace(
            show_available_models=self._models(card)
        )
        self._tokenizer = tokenizer

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **_: Any
    ) -> AsyncIterator[str]:
        yield ANSWER

    async def add_lora(self, request: Any) -> None: ...

    async def remove_lora(self, adapter: int) -> None: ...

    def shutdown(self) -> None: ...

    def _models(self, *cards: Any) -> Any:
        async def listed() -> Any:
            return SimpleNamespace(data=cards)

        return listed

    async def _chat(self, request: Request) -> Response:
        body, params = await request.json(), SimpleNamespace(clone=lambda: None)
        self.answered.append(body)
        if refusal := self._refusal(body):
            return refusal
        try:
            (text,) = [part async for part in self.generate(body["messages"], params, "1")]
        except Exception as problem:
            return JSONResponse({"error": {"message": str(problem), "type": "Inside"}}, 500)
        if not body.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
            return JSONResponse({"object": "chat.completion", "choices": [choice]})
        choice = {
            "index": 0,
            "delta": {"content": text},
            "logprobs": {"content": []} if body.get("logprobs") else None,
        }
        chunk = f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        return StreamingResponse(
            iter([chunk, chunk, "data: [DONE]\n\n"]), media_type="text/event-stream"
        )

    async def _render(self, request: Request) -> Response:
        body = await request.json()
        words = " ".join(message["content"] for message in body["messages"]).split()
        return self._refusal(body) or JSONResponse({"token_ids": [1] * len(words)})

    def _refusal(self, body: Any) -> Response | None:
        if body.get("temperature", 0) >= 0:
            return None
        return JSONResponse({"error": {"message": "too cold", "type": "BadRequestError"}}, 400)

    async def _detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": self._tokenizer.decode((await request.json())["tokens"])})


@dataclass(frozen=True)
class Backend:
    """The stages behind a gateway, which all gateways of these tests share."""

    config: Config
    selector: CorporaWorker
    trainer: TrainerWorker
    embedder: Embedder
    tokenizer: Any

    @property
    def corpora(self) -> Path:
        root = self.config.selector.root
        assert isinstance(root, Path)
        return root

    def make_corpus(self, name: str) -> str:
        """Make a corpus of one document; return its id."""
        corpus = Corpus.create(self.corpora, name, self.embedder, tokenizer_digest(self.tokenizer))
        text = "Leave is asked for in the yellow book, a week ahead. There are thirty days of it."
        ingest(corpus, [Document("leave.md", text)], self.embedder, self.tokenizer)
        identity = corpus.meta()["id"]
        corpus.close()
        return identity

    def remove_corpus(self, name: str) -> None:
        Corpus.open(self.corpora, name).remove()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, nano: str, tokenizer: Any) -> Backend:
    """A backend whose trainer has one slot and whose default corpus is "handbook"."""
    trainer = TrainerConfig(nano, rank=4, slots=1)
    corpora = tmp_path_factory.mktemp("home") / "corpora"
    config = Config(
        engine=EngineConfig(nano, "nano", trainer.rank, trainer.targets),
        trainer=trainer,
        selector=SelectorConfig(corpora, embedder="base-model", base_model=nano),
        corpus="handbook",
        limits=Budget(steps=7, seconds=30.0),
    )
    embedder = load_embedder("base-model", base_model=nano)
    backend = Backend(
        config, CorporaWorker(config.selector), TrainerWorker(trainer), embedder, tokenizer
    )
    backend.make_corpus("handbook")
    return backend


@pytest.fixture
def engine(backend: Backend) -> Iterator[Engine]:
    vllm = FakeVllm(backend.tokenizer)
    engine = Engine(vllm, vllm.app, backend.config.engine, Staging())
    yield engine
    engine.stop()


def client_of(backend: Backend, engine: Engine, **changes: Any) -> httpx.AsyncClient:
    """A client of a gateway of its own, whose configuration differs by `changes`."""
    gateway: Any = Gateway(
        engine, backend.selector, backend.trainer, replace(backend.config, **changes)
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(gateway), base_url="http://localhost", timeout=60
    )


@pytest.fixture
async def client(backend: Backend, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend, engine) as client:
        yield client


async def chat(
    client: httpx.AsyncClient, *messages: dict[str, str], **adaptation: Any
) -> httpx.Response:
    body = {
        "model": "nano",
        "messages": [*messages],
        "compute_budget": {"steps": 2},
        "adaptation": adaptation,
    }
    return await client.post("/v1/chat/completions", json=body)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_waiting_for_the_trainer_is_a_stage_of_its_own(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    # Arrange: the trainer's only slot is taken, by a training with an earlier deadline than the
    # request's, until the request has waited for it.
    occupied = asyncio.Event()
    occupant = asyncio.create_task(
        backend.trainer.train(
            TrainingRequest(_LONG_TRAINING, seconds=20.0), lambda _: occupied.set()
        )
    )
    await occupied.wait()

    request = asyncio.create_task(chat(client, QUESTION))
    while not metric("mayfly_requests_in_stage", stage="train"):  # noqa: ASYNC110  no event
        await asyncio.sleep(0.01)
    started = time.monotonic()
    under_way = [metric("mayfly_under_way", what=what) for what in ("requests", "adaptations")]
    await asyncio.sleep(0.1)
    waited = time.monotonic() - started
    occupant.cancel()
    answer = await request

    report = answer.json()["adaptation"]
    stages = report["seconds"]
    assert list(stages) == ["embed", "search", "select", "queue", "train", "load"]
    assert stages["queue"] > waited
    assert stages["train"] > 0
    assert sum(stages.values()) < report["spent"]["seconds"] + 0.001
    assert f"queue;dur={1000 * stages['queue']:.1f}" in answer.headers["server-timing"]
    assert metric("mayfly_stage_seconds_sum", stage="queue") == pytest.approx(
        stages["queue"], abs=1e-3
    )
    assert under_way == [1, 1]
    assert [metric("mayfly_under_way", what=what) for what in ("requests", "adaptations")] == [0, 0]
    await asyncio.wait([occupant])


async def test_staged_bytes_are_measured_while_adapters_come_and_go(engine: Engine) -> None:
    stop = threading.Event()

    def stage_and_unstage() -> None:
        while not stop.is_set():
            folder = engine.staging.path / "adapter"
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_bytes(bytes(100))
            shutil.rmtree(folder)

    staging = threading.Thread(target=stage_and_unstage)
    staging.start()
    measured = {engine.staging.bytes() for _ in range(5_000)}
    stop.set()
    staging.join()

    assert measured <= {0, 100}


async def test_a_value_that_vllm_would_fail_on_is_refused(client: httpx.AsyncClient) -> None:
    body = {"model": "nano", "messages": [QUESTION], "structured_outputs": 5}

    answer = await client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert (
        answer.json()["error"]["message"]
        == '`structured_outputs` must be an object such as {"regex": "[0-9]+"}'
    )


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "web_search_options", {}),
        ("/v1/chat/completions", "tools", [{"type": "function", "function": {"name": "f"}}]),
        ("/v1/completions", "guided_regex", "[0-9]"),
        ("/v1/responses", "conversation", "conv_1"),
        ("/v1/responses", "tools", [{"type": "file_search", "vector_store_ids": ["a", "b"]}]),
    ],
)
async def test_a_field_without_effect_is_refused_before_any_compute(
    client: httpx.AsyncClient, path: str, field: str, value: Any
) -> None:
    selected = metric("mayfly_stage_seconds_count", stage="embed")
    prompt = (
        {"messages": [QUESTION]}
        if "chat" in path
        else {"prompt": "x"}
        if "completions" in path
        else {"input": "x"}
    )

    answer = await client.post(
        path, json={"model": "nano", **prompt, field: value, "compute_budget": {"steps": 2}}
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert metric("mayfly_stage_seconds_count", stage="embed") == selected


async def test_a_dead_engine_is_reported_with_when_to_retry(backend: Backend) -> None:
    vllm = FakeVllm(backend.tokenizer)
    engine = Engine(vllm, vllm.app, backend.config.engine, Staging())
    async with client_of(backend, engine) as client:
        vllm.errored = True
        answers = [await chat(client, QUESTION), await chat(client, QUESTION, required=True)]
    engine.stop()

    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")
        assert answer.headers["retry-after"] == "5"


async def test_an_engine_that_dies_while_it_answers_is_reported(backend: Backend) -> None:
    vllm = FakeVllm(backend.tokenizer)

    async def die(*_: Any, **__: Any) -> AsyncIterator[str]:
        vllm.errored = True
        raise RuntimeError("the engine is dead")
        yield

    vllm.generate = die  # type: ignore[method-assign]
    engine = Engine(vllm, vllm.app, backend.config.engine, Staging())
    async with client_of(backend, engine) as client:
        answer = await chat(client, QUESTION)
    engine.stop()

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")


@pytest.mark.parametrize("begun", [True, False])
async def test_a_generation_whose_client_has_left_ends_without_an_adapter(
    backend: Backend, engine: Engine, begun: bool
) -> None:
    # Arrange: vLLM answers in a task of its own, which outlives the request. The task asks for the
    # adapter, and waits for the trainer, before the client leaves, or only afterwards.
    tasks: list[asyncio.Task[None]] = []
    ask = asyncio.Event()

    async def handle() -> None:
        await ask.wait()
        async for _ in engine._llm.generate(
            QUESTION["content"], SimpleNamespace(clone=lambda: None), "1"
        ):
            pass

    async def app(*_: Any) -> None:
        tasks.append(asyncio.create_task(handle()))
        await asyncio.sleep(60)

    engine.app = app
    occupied = asyncio.create_task(
        backend.trainer.train(TrainingRequest(_LONG_TRAINING, seconds=30.0))
    )

    # Act.
    async with client_of(backend, engine) as client:
        request = asyncio.create_task(chat(client, QUESTION))
        if begun:
            ask.set()
        while not (tasks and (metric("mayfly_requests_in_stage", stage="train") or not begun)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.wait([request])
        ask.set()
        ended, _ = await asyncio.wait(tasks, timeout=10)
    occupied.cancel()
    await asyncio.wait([occupied])

    # Assert.
    assert ended == {*tasks}
    assert (engine.live(), engine.staging.names()) == (0, [])


async def test_the_folder_of_a_damaged_corpus_is_in_the_log_only(
    client: httpx.AsyncClient, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    folder = backend.corpora / "damaged"
    folder.mkdir()
    (folder / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    with caplog.at_level(logging.ERROR):
        answer = await chat(client, QUESTION, corpus="damaged")

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "adaptation.corpus")
    assert error["message"].startswith("corpus 'damaged' is damaged: ")
    assert "add its documents again" in error["message"]
    assert str(backend.corpora.parent) not in answer.text
    (logged,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert logged.getMessage().endswith(f"; its folder is {folder}")
    assert logged.exc_info is None


@pytest.mark.parametrize("logprobs", [True, False])
async def test_log_probabilities_of_a_stream_have_openais_shape(
    client: httpx.AsyncClient, logprobs: bool
) -> None:
    body = {
        "model": "nano",
        "messages": [QUESTION],
        "stream": True,
        "logprobs": logprobs,
        "compute_budget": "none",
    }

    answer = await client.post("/v1/chat/completions", json=body)

    chunks = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    expected: dict[str, Any] | None = {"content": [], "refusal": None} if logprobs else None
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [expected, expected]


async def test_a_conversation_goes_on_whether_its_corpus_is_named_or_given_by_id(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    identity = backend.make_corpus("by-both")

    for first, second in (("by-both", identity), (identity, "by-both")):
        first_turn = (await chat(client, QUESTION, corpus=first, reuse="conversation")).json()[
            "adaptation"
        ]
        second_turn = (
            await chat(client, *SECOND_TURN, corpus=second, reuse="conversation")
        ).json()["adaptation"]

        assert first_turn["reused"] is None
        assert second_turn["reused"] == {"adapter": first_turn["adapter"], "turns": 1, "steps": 2}
        assert second_turn["corpus"] == second


async def test_a_new_corpus_does_not_reuse_the_adapter_of_a_removed_one(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    backend.make_corpus("made-again")
    first_turn = (await chat(client, QUESTION, corpus="made-again", reuse="conversation")).json()[
        "adaptation"
    ]
    backend.remove_corpus("made-again")
    backend.make_corpus("made-again")

    second_turn = (
        await chat(client, *SECOND_TURN, corpus="made-again", reuse="conversation")
    ).json()["adaptation"]

    assert first_turn["adapted"]
    assert second_turn["adapted"]
    assert second_turn["reused"] is None


_EXAMPLES = [
    {"prompt": "How do I ask for leave?", "completion": "In the green book."},
    {"prompt": "How do I ask for a desk?", "completion": "In the blue book."},
]


async def test_examples_need_no_corpus_and_the_same_ones_are_learnt_once(
    backend: Backend, engine: Engine
) -> None:
    async with client_of(backend, engine, corpus=None) as client:
        reports = [
            (await chat(client, QUESTION, examples=_EXAMPLES, reuse=reuse)).json()["adaptation"]
            for reuse in (None, "examples", "examples")
        ]
        other = (await chat(client, QUESTION, examples=_EXAMPLES[::-1], reuse="examples")).json()[
            "adaptation"
        ]

    assert [report["adapted"] for report in reports] == [True] * 3
    assert [report["spent"]["steps"] for report in reports] == [2, 2, 0]
    assert [report["stop"] for report in reports] == ["steps", "steps", "reused"]
    assert reports[2]["reused"] == {"adapter": reports[1]["adapter"], "steps": 2}
    assert other["reused"] is None
    assert (engine.live(), engine.staging.names()) == (0, [])


async def test_the_examples_of_a_key_are_not_reused_by_another(
    backend: Backend, engine: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("".join(f'[keys.{name}]\nsha256 = "{digest(name)}"\n' for name in ("a", "b")))
    reports = []
    async with client_of(backend, engine, corpus=None, key_file=file) as client:
        for key in ("a", "b", "a"):
            client.headers["authorization"] = f"Bearer {key}"
            answer = await chat(client, QUESTION, examples=_EXAMPLES, reuse="examples")
            reports.append(answer.json()["adaptation"])

    assert [report["reused"] for report in reports] == [
        None,
        None,
        {"adapter": reports[0]["adapter"], "steps": 2},
    ]


# What a request is made of on its way.
_VALUES = (AdaptationRequest, Candidate, Example, Selection, SelectionRequest, TrainingRequest)


def _held(halves: tuple[str, str]) -> dict[int, str]:
    """What lives in this process that is a request's or contains a secret, given in two halves so
    that the caller does not; by the id of the object that refers to it.
    """
    # Asyncio keeps a cancelled timer, with the context of its task, until it is due: for the
    # seconds of the request's budget at most.
    loop: Any = asyncio.get_running_loop()
    loop._scheduled = [timer for timer in loop._scheduled if not timer.cancelled()]
    heapify(loop._scheduled)
    gc.collect()
    secret = "".join(halves)
    return {
        id(each): f"{type(each).__name__} {type(value).__name__}"
        for each in gc.get_objects()
        # The cell is that of `secret` itself.
        if type(each) is not CellType
        for value in gc.get_referents(each)
        if type(value) in _VALUES or (type(value) is str and secret in value)
    }


@pytest.mark.parametrize("reuse", [None, "examples"])
async def test_nothing_of_an_example_outlives_its_request(
    backend: Backend, engine: Engine, caplog: pytest.LogCaptureFixture, reuse: str | None
) -> None:
    halves = ("marlin-", secrets.token_hex(8))

    def brought() -> dict[str, Any]:
        secret = "".join(halves)
        return {
            "examples": [{"prompt": f"Where is {secret}?", "completion": f"In {secret}."}],
            "texts": [f"It is called {secret}."],
        }

    async with client_of(backend, engine, corpus=None) as client:
        before = _held(halves)
        with caplog.at_level(logging.INFO):
            answer = await chat(client, QUESTION, **brought(), reuse=reuse)
        scraped = (await client.get("/metrics")).text

        assert answer.json()["adaptation"]["adapted"]
        assert not any(halves[1] in text for text in (answer.text, scraped, caplog.text))
        held = _held(halves)
        # Other tests' objects may be collected meanwhile.
        assert not {each: what for each, what in held.items() if each not in before}


async def test_a_model_states_its_adaptation_terms(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]

    assert listed == [
        {
            "id": "nano",
            "object": "model",
            "root": "nano",
            "chat_template": True,
            "adaptation": {
                "auto": {"steps": 7, "seconds": 20.0, "alpha": None, "gain": 0.25},
                "limits": {"steps": 7, "seconds": 30.0, "alpha": None, "gain": None},
                "corpus": True,
                "examples": {"count": 128, "tokens": 32768},
                "show": None,
            },
        }
    ]
    assert (await client.get("/v1/models/nano")).json() == listed[0]


async def test_each_key_sees_its_own_limits(
    backend: Backend, engine: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[keys.ann]\nsha256 = "{digest("a")}"\nmax_steps = 5\n'
        f'[keys.bob]\nsha256 = "{digest("b")}"\n'
    )

    async with client_of(backend, engine, key_file=file, corpus=None) as client:
        answers = [
            await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            for key in "abc"
        ]

    ann, bob = (answer.json()["data"][0]["adaptation"] for answer in answers[:2])
    assert (ann["limits"]["steps"], ann["auto"]["steps"], ann["corpus"]) == (5, 5, False)
    assert (bob["limits"]["steps"], bob["auto"]["steps"], bob["corpus"]) == (7, 7, False)
    assert answers[2].status_code == 401


async def test_keys_of_the_database_are_accepted_until_they_are_removed(
    backend: Backend,
    engine: Engine,
    postgres: DatabaseLocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "_CHECK_SECONDS", 0.02)
    add_key(postgres, "ann", {})
    selector = replace(backend.config.selector, root=postgres)
    config = replace(backend.config, selector=selector, corpus=None, keys_required=True)
    gateway: Any = Gateway(engine, backend.selector, backend.trainer, config)
    transport = httpx.ASGITransport(gateway)

    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def status(secret: str) -> int:
            answer = await client.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
            return answer.status_code

        async def until(secret: str, expected: int) -> None:
            async with asyncio.timeout(30):
                while await status(secret) != expected:  # noqa: ASYNC110  no event
                    await asyncio.sleep(0.01)

        bob = add_key(postgres, "bob", {})
        await until(bob, 200)
        without = await client.get("/v1/models")
        remove_key(postgres, "bob")
        await until(bob, 401)
        remove_key(postgres, "ann")
        carol = add_key(postgres, "carol", {})
        await until(carol, 200)
    await gateway.end()

    assert without.json()["error"]["code"] == "invalid_api_key"


async def test_tokens_are_converted_to_text(client: httpx.AsyncClient, backend: Backend) -> None:
    last = len(backend.tokenizer) - 1

    for tokens in (backend.tokenizer.encode("leave"), [], [0, last]):
        answer = await client.post("/detokenize", json={"model": "nano", "tokens": tokens})
        assert answer.json() == {"prompt": backend.tokenizer.decode(tokens)}


@pytest.mark.parametrize("token", [-1, 1 << 40, 0.0, 1.5, True, "1", None, [1]])
async def test_invalid_tokens_are_refused(client: httpx.AsyncClient, token: Any) -> None:
    answer = await client.post("/detokenize", json={"model": "nano", "tokens": [1, token]})

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (
        400,
        "invalid_request_error",
        "tokens",
    )


async def test_the_first_token_beyond_the_vocabulary_is_refused(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    answer = await client.post("/detokenize", json={"tokens": [len(backend.tokenizer)]})

    assert answer.status_code == 400
    assert f"from 0 to {len(backend.tokenizer) - 1}" in answer.json()["error"]["message"]


async def test_a_request_without_an_adapter_frees_its_place(backend: Backend) -> None:
    # Arrange: one place for adaptations, and a request whose time is spent at once and whose answer
    # takes long.
    vllm, answering, go_on = FakeVllm(backend.tokenizer), asyncio.Event(), asyncio.Event()
    generate = vllm.generate

    async def hold(prompt: Any, params: Any, request_id: str, **options: Any) -> AsyncIterator[str]:
        if prompt[0]["content"] == "hold":
            answering.set()
            await go_on.wait()
        async for text in generate(prompt, params, request_id, **options):
            yield text

    vllm.generate = hold  # type: ignore[method-assign]
    engine = Engine(vllm, vllm.app, backend.config.engine, Staging())
    body = {
        "model": "nano",
        "messages": [{"role": "user", "content": "hold"}],
        "compute_budget": {"seconds": 1e-6},
    }
    async with client_of(backend, engine, capacity=Capacity(adaptations=1, requests=4)) as client:
        slow = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await answering.wait()

        other = await chat(client, QUESTION)
        again = await chat(client, QUESTION)

        assert not slow.done()
        go_on.set()
        reply = await slow
    engine.stop()

    assert (other.status_code, other.json()["adaptation"]["adapted"]) == (200, True)
    assert (again.status_code, again.json()["adaptation"]["adapted"]) == (200, True)
    assert (
        reply.json()["adaptation"]["reason"] == "the seconds were spent before anything was chosen"
    )


async def test_the_same_examples_are_rendered_once(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"corpus": None, "examples": _EXAMPLES, "reuse": "examples"}
    first = await chat(client, QUESTION, **options)

    async def render(*_: Any, **__: Any) -> None:
        raise AssertionError("the adapter is there")

    monkeypatch.setattr(CandidateRenderer, "render", render)
    again = await chat(client, QUESTION, **options)

    report = again.json()["adaptation"]
    assert (report["stop"], report["adapted"]) == ("reused", True)
    assert report["shown"] == first.json()["adaptation"]["shown"]
    assert engine._llm.answered[0]["messages"] == engine._llm.answered[1]["messages"]


async def test_a_request_that_follows_an_answer_at_once_has_the_server_to_itself(
    backend: Backend, engine: Engine
) -> None:
    capacity = Capacity(adaptations=1, undegraded=1)
    gateway = Gateway(
        engine, backend.selector, backend.trainer, replace(backend.config, capacity=capacity)
    )
    followers: list[asyncio.Task[httpx.Response]] = []
    clients: list[httpx.AsyncClient] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_ask(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body" and len(followers) < 2:
                # Before the gateway regains control, as another process may.
                asking = chat(clients[0], QUESTION)
                followers.append(asyncio.create_task(asking, context=Context()))
                await asyncio.wait([followers[-1]])

        await gateway(scope, receive, send_and_ask)

    body = {"model": "nano", "messages": [QUESTION], "temperature": -1}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        clients.append(client)
        refused = await client.post("/v1/chat/completions", json=body)

    assert refused.status_code == 400
    for follower in followers:
        report = follower.result().json()["adaptation"]
        assert (report["degraded"], report["budget"]["steps"]) == (None, 2)


async def test_the_same_examples_take_no_place_of_an_adaptation(backend: Backend) -> None:
    # Arrange: one place for adaptations, and an adapted request whose answer takes long.
    vllm, answering, go_on = FakeVllm(backend.tokenizer), asyncio.Event(), asyncio.Event()
    generate = vllm.generate

    async def hold(prompt: Any, params: Any, request_id: str, **options: Any) -> AsyncIterator[str]:
        if prompt[-1]["content"] == "hold":
            answering.set()
            await go_on.wait()
        async for text in generate(prompt, params, request_id, **options):
            yield text

    vllm.generate = hold  # type: ignore[method-assign]
    engine = Engine(vllm, vllm.app, backend.config.engine, Staging())
    options: dict[str, Any] = {"examples": _EXAMPLES, "reuse": "examples"}
    one = Capacity(adaptations=1, requests=4)
    async with client_of(backend, engine, corpus=None, capacity=one) as client:
        await chat(client, QUESTION, **options)
        slow = asyncio.create_task(chat(client, {"role": "user", "content": "hold"}, **options))
        await answering.wait()
        again = await chat(client, QUESTION, **options)
        new = await chat(client, QUESTION, examples=_EXAMPLES)
        go_on.set()
        await slow
    engine.stop()

    assert (again.status_code, again.json()["adaptation"]["stop"]) == (200, "reused")
    assert (new.status_code, new.json()["adaptation"]["stop"]) == (200, "steps")


PASSAGE = (
    "Passages that may help, the most relevant last:\n\n"
    '<passage source="leave.md">\n'
    "Leave is asked for in the yellow book, a week ahead. There are thirty days of it.\n"
    "</passage>"
)


async def test_what_is_shown_is_chosen_once_for_the_prompt_and_for_the_training(
    client: httpx.AsyncClient, engine: Engine, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    select, asked = backend.selector.select, []

    async def record(request: SelectionRequest, seconds: float | None = None) -> Selection:
        asked.append(request.steps)
        return await select(request, seconds)

    monkeypatch.setattr(backend.selector, "select", record)

    answer = await chat(client, QUESTION, show=3)

    report = answer.json()["adaptation"]
    (body,) = engine._llm.answered
    assert body["messages"] == [{"role": "system", "content": PASSAGE}, QUESTION]
    assert report["shown"] == {
        "sequences": 1,
        "of": 3,
        "tokens": len(PASSAGE.split()),
        "documents": ["leave.md"],
        "reason": "fewer different sequences were chosen: 1",
    }
    assert (report["adapted"], report["spent"]["steps"], report["stop"]) == (True, 2, "steps")
    assert len(report["uncertainty"]) == 3
    assert asked == [3]


async def test_without_a_budget_what_is_shown_is_all_there_is(
    client: httpx.AsyncClient, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    body = {
        "model": "nano",
        "messages": [QUESTION],
        "stream": True,
        "compute_budget": "none",
        "adaptation": {"show": 1},
    }

    with caplog.at_level(logging.INFO):
        answer = await client.post("/v1/chat/completions", json=body)

    first, *others = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    report = first["adaptation"]
    assert engine._llm.answered[0]["messages"][0]["content"] == PASSAGE
    assert (report["shown"]["sequences"], report["shown"]["reason"]) == (1, None)
    assert (report["adapted"], report["stop"]) == (False, "none")
    assert report["reason"] == "no adaptation was asked for"
    assert report["sources"] == []
    assert set(report["seconds"]) == {"embed", "search", "select"}
    assert all("adaptation" not in chunk for chunk in others)
    facts = [
        vars(each)["request_facts"] for each in caplog.records if "request_facts" in vars(each)
    ]
    assert [each["shown"] for each in facts] == [1]


async def test_leave_one_out_shows_all_examples_in_their_order(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    options = {"corpus": None, "examples": _EXAMPLES, "examples_as": "leave-one-out"}

    adapted = await chat(client, QUESTION, **options)
    chosen = await chat(client, QUESTION, **options, show=1)

    everything, nearest = (body["messages"] for body in engine._llm.answered)
    turns = [
        {"role": role, "content": example[field]}
        for example in _EXAMPLES
        for role, field in (("user", "prompt"), ("assistant", "completion"))
    ]
    assert everything == [*turns, QUESTION]
    assert adapted.json()["adaptation"]["shown"]["documents"] == [
        "example 1 of the request",
        "example 2 of the request",
    ]
    assert adapted.json()["adaptation"]["spent"]["steps"] == 2
    # The first example asks what the request asks.
    assert nearest == [*turns[:2], QUESTION]
    assert chosen.json()["adaptation"]["shown"]["sequences"] == 1


async def test_the_servers_default_shows_and_a_request_can_decline_it(
    backend: Backend, engine: Engine
) -> None:
    async with client_of(backend, engine, show=2) as client:
        default = await chat(client, QUESTION)
        declined = await chat(client, QUESTION, show=0)

    assert default.json()["adaptation"]["shown"]["sequences"] == 1
    assert declined.json()["adaptation"]["shown"] is None
    assert [len(body["messages"]) for body in engine._llm.answered] == [2, 1]


@pytest.fixture
def calibrated(backend: Backend, nano: str) -> Iterator[None]:
    """The default corpus is calibrated to show two sequences, and to three steps."""
    calibration = Calibration(0.1, 0.001, 1e-3, 4, 24, 90.0, 91.0, show=2, steps=3)
    model = model_digest(nano)
    corpus = Corpus.open(backend.corpora, "handbook")
    corpus.update_meta(calibration_meta(calibration, corpus.meta(), model))
    yield
    corpus.update_meta(calibration_meta(None, corpus.meta(), model))
    corpus.close()


@pytest.mark.usefixtures("calibrated")
async def test_a_calibrated_corpus_shows_where_neither_the_request_nor_the_server_says(
    backend: Backend, engine: Engine
) -> None:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": "none"}
    async with client_of(backend, engine) as client:
        adapted = await chat(client, QUESTION)
        declined = await chat(client, QUESTION, show=0)
        base = await client.post("/v1/chat/completions", json=body)
    async with client_of(backend, engine, show=0) as client:
        servers = await chat(client, QUESTION)

    answers = (adapted, declined, base, servers)
    reports = [answer.json()["adaptation"] for answer in answers]
    assert [report["shown"] and report["shown"]["of"] for report in reports] == [
        2,
        None,
        None,
        None,
    ]
    assert [len(each["messages"]) for each in engine._llm.answered] == [2, 1, 1, 1]
    assert [report["calibrated"] for report in reports] == [True, True, False, True]


@pytest.mark.usefixtures("calibrated")
async def test_a_calibrated_corpus_bounds_the_steps_of_auto(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    body = {"model": "nano", "messages": [QUESTION]}

    auto, explicit = [
        await client.post("/v1/chat/completions", json={**body, "compute_budget": budget})
        for budget in ("auto", "steps=5")
    ]

    report = auto.json()["adaptation"]
    assert (report["budget"]["steps"], report["spent"]["steps"], report["stop"]) == (3, 3, "steps")
    assert explicit.json()["adaptation"]["spent"]["steps"] == 5


async def test_a_request_that_vllm_refuses_chooses_nothing(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    selected = metric("mayfly_stage_seconds_count", stage="embed")
    body = {
        "model": "nano",
        "messages": [QUESTION],
        "temperature": -1,
        "compute_budget": {"steps": 2},
    }

    answers = [
        await client.post("/v1/chat/completions", json={**body, "adaptation": adaptation})
        for adaptation in ({}, {"show": 3})
    ]

    plain, showing = answers
    assert (showing.status_code, showing.text) == (400, plain.text)
    assert engine._llm.answered[0] == engine._llm.answered[1]
    assert metric("mayfly_stage_seconds_count", stage="embed") == selected


@pytest.mark.parametrize("budget", ["none", "steps=2"])
async def test_an_unknown_corpus_is_an_error_also_for_what_is_shown(
    client: httpx.AsyncClient, budget: str
) -> None:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": budget}

    answer = await client.post(
        "/v1/chat/completions", json={**body, "adaptation": {"corpus": "nowhere", "show": 3}}
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "adaptation.corpus")


_NOTHING_PASSES = {"filters": {"type": "eq", "key": "year", "value": 1}}


@pytest.mark.parametrize(
    ("budget", "adaptation", "reason"),
    [
        ("none", _NOTHING_PASSES, "corpus 'handbook' has no document that passes the filter"),
        ("steps=2", _NOTHING_PASSES, "corpus 'handbook' has no document that passes the filter"),
        ({"seconds": 1e-6}, {}, "the seconds were spent before anything was chosen"),
    ],
)
async def test_what_cannot_be_chosen_is_reported_as_without_showing(
    client: httpx.AsyncClient,
    engine: Engine,
    budget: Any,
    adaptation: dict[str, Any],
    reason: str,
) -> None:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": budget}

    answers = [
        await client.post("/v1/chat/completions", json={**body, "adaptation": each})
        for each in ({**adaptation, "show": 3}, adaptation)
    ]

    report, without = (answer.json()["adaptation"] for answer in answers)
    assert (report["shown"]["sequences"], report["shown"]["reason"]) == (0, reason)
    assert (report["reason"], report["stop"]) == (without["reason"], without["stop"])
    assert [each["messages"] for each in engine._llm.answered] == [[QUESTION], [QUESTION]]


async def test_a_conversation_whose_turns_show_something_goes_on(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    first = await chat(client, QUESTION, reuse="conversation", show=1)
    second = await chat(client, *SECOND_TURN, reuse="conversation", show=1)

    assert second.json()["adaptation"]["reused"] == {
        "adapter": first.json()["adaptation"]["adapter"],
        "turns": 1,
        "steps": 2,
    }
    assert [body["messages"][0]["content"] for body in engine._llm.answered] == [PASSAGE, PASSAGE]


async def test_a_client_that_leaves_while_something_is_chosen_ends_the_choice(
    backend: Backend, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    selecting, cancelled = asyncio.Event(), asyncio.Event()

    async def select(*_: Any) -> None:
        selecting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(backend.selector, "select", select)
    gateway: Any = Gateway(engine, backend.selector, backend.trainer, backend.config)
    body = {"model": "nano", "messages": [QUESTION], "adaptation": {"show": 1}}
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await selecting.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "query_string": b"",
    }
    await asyncio.wait_for(gateway(scope, receive, send), 10)

    assert cancelled.is_set()
    assert (sent, engine._llm.answered, engine.live()) == ([], [], 0)
    assert metric("mayfly_under_way", what="requests") == 0


PAGE = "https://app.example"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/vector_stores"),
        ("GET", "/"),
        ("GET", "/metrics"),
        ("POST", "/v1/chat/completions"),
        ("OPTIONS", "/"),
    ],
)
async def test_an_open_server_refuses_an_unknown_host(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path, headers={"host": "evil.example:8000"})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "host_not_allowed")
    assert "'evil.example:8000'" in error["message"]
    assert "--allowed-host" in error["message"]


async def test_health_is_answered_to_any_host_without_a_key(
    backend: Backend, engine: Engine
) -> None:
    async def alive(scope: Any, receive: Any, send: Any) -> None:
        await Response("alive")(scope, receive, send)

    engine.app = alive
    for changes in ({}, {"key_digests": (digest("a"),)}):
        async with client_of(backend, engine, **changes) as client:
            answer = await client.get(HEALTH, headers={"host": "10.0.0.1:8000"})
        assert (answer.status_code, answer.text) == (200, "alive")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions%0a",
        "/health%0a",
        "/v1/chat/completions/",
        "//v1/completions",
        "/v1/load_lora_adapter",
        "/docs",
        "/v1/vector_stores_x",
    ],
)
async def test_vllm_is_not_reached_by_another_path(
    backend: Backend, engine: Engine, path: str
) -> None:
    async def reached(*_: Any) -> None:
        raise AssertionError("vLLM's application was called")

    engine.app = reached
    async with client_of(backend, engine) as client:
        answers = [await client.request(method, path, json={}) for method in ("GET", "POST")]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert {answer.json()["error"]["code"] for answer in answers} == {"unknown_url"}


async def test_an_encoded_path_is_the_path(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/%6dodels/n%61no")).json()["id"] == "nano"
    unknown = await client.get("/v1/models/org%2Fmodel")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "'org/model'" in unknown.json()["error"]["message"]


async def test_an_allowed_host_is_accepted(backend: Backend, engine: Engine) -> None:
    async with client_of(backend, engine, allowed_hosts=("gpu.example",)) as client:
        assert (
            await client.get("/v1/models", headers={"host": "gpu.example:8000"})
        ).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/vector_stores", "/v1/files"])
async def test_a_page_of_another_origin_cannot_change_anything(
    client: httpx.AsyncClient, path: str
) -> None:
    before = (await client.get("/v1/vector_stores")).json()["data"]

    answer = await client.post(
        path, content=b'{"name": "x"}', headers={**JSON, "origin": "http://evil.example"}
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert (await client.get("/v1/vector_stores")).json()["data"] == before


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/detokenize", "/v1/vector_stores", "/v1/vector_stores/a/search"],
)
async def test_a_body_of_another_media_type_is_not_read_as_json(
    client: httpx.AsyncClient, kind: str, path: str
) -> None:
    answer = await client.post(path, content=b"{}", headers={"content-type": kind})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert error["message"].startswith("Unsupported Media Type: Only 'application/json' is allowed")


async def test_an_upload_must_be_a_form(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/files", content=b"{}", headers=JSON)

    assert answer.status_code == 415
    assert "multipart/form-data" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/chat/completions", "POST, OPTIONS"),
        ("/v1/models", "HEAD, GET, OPTIONS"),
        ("/", "HEAD, GET, OPTIONS"),
        ("/v1/vector_stores", "HEAD, POST, GET, OPTIONS"),
        ("/v1/vector_stores/a", "HEAD, GET, POST, DELETE, OPTIONS"),
        ("/v1/vector_stores/a/search", "POST, OPTIONS"),
        ("/v1/files/a/content", "HEAD, GET, OPTIONS"),
    ],
)
async def test_every_path_states_its_methods(
    backend: Backend, engine: Engine, client: httpx.AsyncClient, path: str, allowed: str
) -> None:
    options = await client.options(path)
    refused = await client.request("PATCH", path)
    async with client_of(backend, engine, key_digests=(digest("a"),)) as with_keys:
        without_key = await with_keys.options(path)

    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allowed)
    assert "access-control-allow-origin" not in options.headers
    assert "content-length" not in options.headers
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert refused.json()["error"]["code"] == "method_not_allowed"
    assert without_key.status_code == 204


async def test_options_of_an_unknown_path_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.options("/v1/nowhere")).status_code == 404
    assert (await client.options("/v1/vector_stores/a/nowhere")).status_code == 404


def preflight(
    origin: str, headers: str = "authorization,content-type,compute-budget"
) -> dict[str, str]:
    """Headers that a browser sends before a request of a page."""
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": headers,
        "access-control-request-private-network": "true",
    }


async def test_a_page_of_an_allowed_origin_may_use_the_server(
    backend: Backend, engine: Engine
) -> None:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": "none"}
    async with client_of(
        backend, engine, allowed_origins=(PAGE,), key_digests=(digest("a"),)
    ) as client:
        allowed = await client.options("/v1/chat/completions", headers=preflight(PAGE))
        sent = {"origin": PAGE, "authorization": "Bearer a"}
        whole = await client.post("/v1/chat/completions", json=body, headers=sent)
        streamed = await client.post(
            "/v1/chat/completions", json={**body, "stream": True}, headers=sent
        )
        unknown = await client.post("/v1/chat/completions", json=body, headers={"origin": PAGE})
        missing = await client.get("/v1/nowhere", headers=sent)
        other = await client.post(
            "/v1/chat/completions", json=body, headers={**sent, "origin": "https://evil.example"}
        )
        others_preflight = await client.options(
            "/v1/chat/completions", headers=preflight("https://evil.example")
        )

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert {"authorization", "compute-budget"} <= set(
        allowed.headers["access-control-allow-headers"].split(",")
    )
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert [each.status_code for each in (whole, streamed, unknown, missing)] == [
        200,
        200,
        401,
        404,
    ]
    for answer in (whole, streamed, unknown, missing):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"]
        assert all(
            name in exposed
            for name in ("Compute-Spent", "Server-Timing", "X-Request-Id", "Retry-After")
        )
    assert other.status_code == 200
    for answer in (other, others_preflight):
        assert "access-control-allow-origin" not in answer.headers
    assert others_preflight.status_code == 204


async def test_an_allowed_page_may_use_a_server_without_keys(
    backend: Backend, engine: Engine
) -> None:
    async with client_of(backend, engine, allowed_origins=(PAGE,)) as client:
        answer = await chat_from(client, PAGE)
        other = await chat_from(client, "https://evil.example")

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert other.status_code == 403


async def chat_from(client: httpx.AsyncClient, origin: str) -> httpx.Response:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": "none"}
    return await client.post("/v1/chat/completions", json=body, headers={"origin": origin})


async def test_a_plain_adapted_request_runs_through_few_modules_of_serving(
    client: httpx.AsyncClient,
) -> None:
    await chat(client, QUESTION)
    modules: set[str] = set()
    # What runs in the background has a context of its own.
    is_request = ContextVar("is_request", default=False)

    def record(frame: FrameType, event: str, argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and is_request.get() and file.is_relative_to(_SERVING):
            modules.add(file.relative_to(_SERVING).as_posix())

    is_request.set(True)
    sys.setprofile(record)
    try:
        answer = await chat(client, QUESTION)
    finally:
        sys.setprofile(None)

    assert answer.json()["adaptation"]["adapted"]
    assert "adaptation/pipeline.py" in modules
    assert len(modules) <= 29, "\n".join(sorted(modules))
