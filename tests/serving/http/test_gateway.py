"""The door by HTTP, its stages behind it: what is ours of an answer. vLLM is played; tests/engine
has the real one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
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
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, load_embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.selector import SelectorConfig
from serving.adaptation.admission import Capacity
from serving.adaptation.workers import CorporaWorker, TrainerWorker
from serving.api_keys import digest
from serving.budget import Budget
from serving.config import Config
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.staging import Staging
from serving.http.gateway import Gateway

ANSWER = "In the yellow book."
QUESTION = {"role": "user", "content": "How do I ask for leave?"}
FURTHER = [
    QUESTION,
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "And how much?"},
]
_ENDLESS = [[(7 * i) % 101 for i in range(32)]] * 20_000  # some minutes


class Vllm:
    """vLLM's engine and its application: to whatever is asked it has one answer."""

    errored = False

    def __init__(self, tokenizer: Any) -> None:
        self.input_processor = SimpleNamespace(process_inputs=lambda *_: None)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
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
        try:
            (said,) = [text async for text in self.generate(body["messages"], params, "1")]
        except Exception as problem:
            return JSONResponse({"error": {"message": str(problem), "type": "Inside"}}, 500)
        if not body.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": said},
                "finish_reason": "stop",
            }
            return JSONResponse({"object": "chat.completion", "choices": [choice]})
        choice = {
            "index": 0,
            "delta": {"content": said},
            "logprobs": {"content": []} if body.get("logprobs") else None,
        }
        chunk = f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        return StreamingResponse(
            iter([chunk, chunk, "data: [DONE]\n\n"]), media_type="text/event-stream"
        )

    async def _detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": self._tokenizer.decode((await request.json())["tokens"])})


@dataclass(frozen=True)
class House:
    """What stands behind a door, and stays while doors come and go."""

    config: Config
    selector: CorporaWorker
    trainer: TrainerWorker
    embedder: Embedder
    tokenizer: Any

    @property
    def corpora(self) -> Path:
        return self.config.selector.root

    def fill(self, name: str) -> str:
        """Make a corpus; its id."""
        corpus = Corpus.create(self.corpora, name, self.embedder, tokenizer_digest(self.tokenizer))
        text = "Leave is asked for in the yellow book, a week ahead. There are thirty days of it."
        ingest(corpus, [Document("leave.md", text)], self.embedder, self.tokenizer)
        identity = corpus.meta()["id"]
        corpus.close()
        return identity

    def remove(self, name: str) -> None:
        Corpus.open(self.corpora, name).remove()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, nano: str, tokenizer: Any) -> House:
    """Its trainer has one slot, and the corpus of requests that name none is "handbook"."""
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
    house = House(
        config, CorporaWorker(config.selector), TrainerWorker(trainer), embedder, tokenizer
    )
    house.fill("handbook")
    return house


@pytest.fixture
def engine(house: House) -> Iterator[Engine]:
    vllm = Vllm(house.tokenizer)
    engine = Engine(vllm, vllm.app, house.config.engine, Staging())
    yield engine
    engine.stop()


def client_of(house: House, engine: Engine, **changes: Any) -> httpx.AsyncClient:
    """A client before a door of its own, of a server that is configured otherwise."""
    door: Any = Gateway(engine, house.selector, house.trainer, replace(house.config, **changes))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(door), base_url="http://localhost", timeout=60
    )


@pytest.fixture
async def client(house: House, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(house, engine) as client:
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


def told(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_waiting_for_the_trainer_is_a_stage_of_its_own(
    client: httpx.AsyncClient, house: House
) -> None:
    occupied = asyncio.create_task(house.trainer.train(TrainingRequest(_ENDLESS, seconds=1.0)))
    await asyncio.sleep(0.2)

    asked = asyncio.create_task(chat(client, QUESTION))
    while not told("mayfly_requests_in_stage", stage="train"):  # noqa: ASYNC110  a gauge has no event
        await asyncio.sleep(0.01)
    under_way = [told("mayfly_under_way", what=what) for what in ("requests", "adaptations")]
    answer = await asked

    report = answer.json()["adaptation"]
    stages = report["seconds"]
    assert list(stages) == ["embed", "search", "select", "queue", "train", "load"]
    assert stages["queue"] > 0.3
    assert stages["train"] > 0
    assert sum(stages.values()) < report["spent"]["seconds"] + 0.001
    assert f"queue;dur={1000 * stages['queue']:.1f}" in answer.headers["server-timing"]
    assert told("mayfly_stage_seconds_sum", stage="queue") == pytest.approx(
        stages["queue"], abs=1e-3
    )
    assert under_way == [1, 1]
    assert [told("mayfly_under_way", what=what) for what in ("requests", "adaptations")] == [0, 0]
    assert (await occupied).stop == "seconds"


async def test_staged_bytes_are_told_while_adapters_come_and_go(engine: Engine) -> None:
    ended = threading.Event()

    def stage_and_unstage() -> None:
        while not ended.is_set():
            folder = engine.staging.path / "adapter"
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_bytes(bytes(100))
            shutil.rmtree(folder)

    coming_and_going = threading.Thread(target=stage_and_unstage)
    coming_and_going.start()
    told = {engine.staging.bytes() for _ in range(5_000)}
    ended.set()
    coming_and_going.join()

    assert told <= {0, 100}


async def test_what_vllm_would_fail_at_is_refused_before(client: httpx.AsyncClient) -> None:
    body = {"model": "nano", "messages": [QUESTION], "structured_outputs": 5}

    answer = await client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert (
        answer.json()["error"]["message"]
        == '`structured_outputs` is an object such as {"regex": "[0-9]+"}'
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
async def test_what_would_have_no_effect_is_refused_before_anything_is_computed(
    client: httpx.AsyncClient, path: str, field: str, value: Any
) -> None:
    selected = told("mayfly_stage_seconds_count", stage="embed")
    asked = (
        {"messages": [QUESTION]}
        if "chat" in path
        else {"prompt": "x"}
        if "completions" in path
        else {"input": "x"}
    )

    answer = await client.post(
        path, json={"model": "nano", **asked, field: value, "compute_budget": {"steps": 2}}
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert told("mayfly_stage_seconds_count", stage="embed") == selected


async def test_an_engine_that_has_ended_is_told_with_when_to_come_back(house: House) -> None:
    vllm = Vllm(house.tokenizer)
    engine = Engine(vllm, vllm.app, house.config.engine, Staging())
    async with client_of(house, engine) as client:
        vllm.errored = True
        answers = [await chat(client, QUESTION), await chat(client, QUESTION, required=True)]
    engine.stop()

    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")
        assert answer.headers["retry-after"] == "5"


async def test_an_engine_that_ends_while_it_answers_is_told_so_too(house: House) -> None:
    vllm = Vllm(house.tokenizer)

    async def ends(*_: Any, **__: Any) -> AsyncIterator[str]:
        vllm.errored = True
        raise RuntimeError("the engine is dead")
        yield

    vllm.generate = ends  # type: ignore[method-assign]
    engine = Engine(vllm, vllm.app, house.config.engine, Staging())
    async with client_of(house, engine) as client:
        answer = await chat(client, QUESTION)
    engine.stop()

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")


@pytest.mark.parametrize("begun", [True, False])
async def test_what_vllm_does_for_a_client_that_has_left_ends_without_an_adapter(
    house: House, engine: Engine, begun: bool
) -> None:
    # Arrange: vLLM answers in a task of its own, which outlives the request; it asks for the
    # adapter before the client leaves, and waits for the trainer, or only afterwards.
    tasks: list[asyncio.Task[None]] = []
    asks = asyncio.Event()

    async def handle() -> None:
        await asks.wait()
        async for _ in engine._generate(
            QUESTION["content"], SimpleNamespace(clone=lambda: None), "1"
        ):
            pass

    async def app(*_: Any) -> None:
        tasks.append(asyncio.create_task(handle()))
        await asyncio.sleep(60)

    engine.app = app
    occupied = asyncio.create_task(house.trainer.train(TrainingRequest(_ENDLESS, seconds=30.0)))

    # Act.
    async with client_of(house, engine) as client:
        asked = asyncio.create_task(chat(client, QUESTION))
        if begun:
            asks.set()
        while not (tasks and (told("mayfly_requests_in_stage", stage="train") or not begun)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait([asked])
        asks.set()
        ended, _ = await asyncio.wait(tasks, timeout=10)
    occupied.cancel()
    await asyncio.wait([occupied])

    # Assert.
    assert ended == {*tasks}
    assert (engine.live(), engine.staging.names()) == (0, [])


async def test_where_a_damaged_corpus_lies_is_for_the_log_alone(
    client: httpx.AsyncClient, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    folder = house.corpora / "damaged"
    folder.mkdir()
    (folder / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    with caplog.at_level(logging.ERROR):
        answer = await chat(client, QUESTION, corpus="damaged")

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "adaptation.corpus")
    assert error["message"].startswith("corpus 'damaged' is damaged: ")
    assert "add its documents again" in error["message"]
    assert str(house.corpora.parent) not in answer.text
    (logged,) = [record.exc_info for record in caplog.records if record.exc_info]
    assert logged[1] is not None
    assert logged[1].__notes__ == [f"its folder is {folder}"]


@pytest.mark.parametrize("logprobs", [True, False])
async def test_a_streams_log_probabilities_are_told_as_openai_tells_them(
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


async def test_a_conversation_goes_on_whether_its_corpus_is_called_by_name_or_id(
    client: httpx.AsyncClient, house: House
) -> None:
    identity = house.fill("by-both")

    for first, second in (("by-both", identity), (identity, "by-both")):
        begun = (await chat(client, QUESTION, corpus=first, reuse="conversation")).json()[
            "adaptation"
        ]
        gone_on = (await chat(client, *FURTHER, corpus=second, reuse="conversation")).json()[
            "adaptation"
        ]

        assert begun["reused"] is None
        assert gone_on["reused"] == {"adapter": begun["adapter"], "turns": 1, "steps": 2}
        assert gone_on["corpus"] == second


async def test_a_corpus_of_the_same_name_does_not_go_on_from_a_removed_ones_adapter(
    client: httpx.AsyncClient, house: House
) -> None:
    house.fill("made-again")
    begun = (await chat(client, QUESTION, corpus="made-again", reuse="conversation")).json()[
        "adaptation"
    ]
    house.remove("made-again")
    house.fill("made-again")

    gone_on = (await chat(client, *FURTHER, corpus="made-again", reuse="conversation")).json()[
        "adaptation"
    ]

    assert begun["adapted"]
    assert gone_on["adapted"]
    assert gone_on["reused"] is None


async def test_a_model_says_what_adaptation_it_offers(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]

    assert listed == [
        {
            "id": "nano",
            "object": "model",
            "root": "nano",
            "adaptation": {
                "auto": {"steps": 7, "seconds": 30.0, "alpha": None, "gain": 0.25},
                "limits": {"steps": 7, "seconds": 30.0, "alpha": None, "gain": None},
                "corpus": True,
            },
        }
    ]
    assert (await client.get("/v1/models/nano")).json() == listed[0]


async def test_each_key_is_told_its_own_limits_and_nobody_without_one(
    house: House, engine: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[keys.ann]\nsha256 = "{digest("a")}"\nmax_steps = 5\n[keys.bob]\nsha256 = "{digest("b")}"\n'
    )

    async with client_of(house, engine, key_file=file, corpus=None) as client:
        answers = [
            await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            for key in "abc"
        ]

    ann, bob = (answer.json()["data"][0]["adaptation"] for answer in answers[:2])
    assert (ann["limits"]["steps"], ann["auto"]["steps"], ann["corpus"]) == (5, 5, False)
    assert (bob["limits"]["steps"], bob["auto"]["steps"], bob["corpus"]) == (7, 7, False)
    assert answers[2].status_code == 401


async def test_tokens_of_the_model_are_made_text(client: httpx.AsyncClient, house: House) -> None:
    last = len(house.tokenizer) - 1

    for tokens in (house.tokenizer.encode("leave"), [], [0, last]):
        answer = await client.post("/detokenize", json={"model": "nano", "tokens": tokens})
        assert answer.json() == {"prompt": house.tokenizer.decode(tokens)}


@pytest.mark.parametrize("token", [-1, 1 << 40, 0.0, 1.5, True, "1", None, [1]])
async def test_tokens_that_the_model_lacks_are_refused(
    client: httpx.AsyncClient, token: Any
) -> None:
    answer = await client.post("/detokenize", json={"model": "nano", "tokens": [1, token]})

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (
        400,
        "invalid_request_error",
        "tokens",
    )


async def test_the_first_token_beyond_the_vocabulary_is_refused(
    client: httpx.AsyncClient, house: House
) -> None:
    answer = await client.post("/detokenize", json={"tokens": [len(house.tokenizer)]})

    assert answer.status_code == 400
    assert f"from 0 to {len(house.tokenizer) - 1}" in answer.json()["error"]["message"]


async def test_a_request_that_gets_no_adapter_gives_its_place_to_another(house: House) -> None:
    # Arrange: one place for adaptations, and a request whose seconds are over at once and whose
    # answer takes long.
    vllm, answering, go_on = Vllm(house.tokenizer), asyncio.Event(), asyncio.Event()
    generate = vllm.generate

    async def held(prompt: Any, params: Any, request_id: str, **options: Any) -> AsyncIterator[str]:
        if prompt[0]["content"] == "held":
            answering.set()
            await go_on.wait()
        async for text in generate(prompt, params, request_id, **options):
            yield text

    vllm.generate = held  # type: ignore[method-assign]
    engine = Engine(vllm, vllm.app, house.config.engine, Staging())
    body = {
        "model": "nano",
        "messages": [{"role": "user", "content": "held"}],
        "compute_budget": {"seconds": 1e-6},
    }
    async with client_of(house, engine, capacity=Capacity(adaptations=1, requests=4)) as client:
        large = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await answering.wait()

        other = await chat(client, QUESTION)
        again = await chat(client, QUESTION)

        assert not large.done()
        go_on.set()
        reply = await large
    engine.stop()

    assert (other.status_code, other.json()["adaptation"]["adapted"]) == (200, True)
    assert (again.status_code, again.json()["adaptation"]["adapted"]) == (200, True)
    assert (
        reply.json()["adaptation"]["reason"] == "the seconds were spent before anything was chosen"
    )


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
async def test_an_open_server_does_not_answer_to_a_name_that_a_page_brought(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path, headers={"host": "evil.example:8000"})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "host_not_allowed")
    assert "'evil.example:8000'" in error["message"]
    assert "--allowed-host" in error["message"]


async def test_what_watches_over_it_may_ask_for_its_health_by_any_name(
    house: House, engine: Engine
) -> None:
    async def alive(scope: Any, receive: Any, send: Any) -> None:
        await Response("alive")(scope, receive, send)

    engine.app = alive
    async with client_of(house, engine) as client:
        assert (await client.get("/health", headers={"host": "10.0.0.1:8000"})).status_code == 200


async def test_a_name_that_it_is_told_is_its_own(house: House, engine: Engine) -> None:
    async with client_of(house, engine, allowed_hosts=("gpu.example",)) as client:
        assert (
            await client.get("/v1/models", headers={"host": "gpu.example:8000"})
        ).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/vector_stores", "/v1/files"])
async def test_a_page_of_another_origin_changes_nothing(
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
async def test_a_body_that_says_it_is_no_json_is_not_read_as_json(
    client: httpx.AsyncClient, kind: str, path: str
) -> None:
    answer = await client.post(path, content=b"{}", headers={"content-type": kind})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert error["message"].startswith("Unsupported Media Type: Only 'application/json' is allowed")


async def test_an_upload_is_a_form(client: httpx.AsyncClient) -> None:
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
async def test_every_path_says_how_it_may_be_asked(
    house: House, engine: Engine, client: httpx.AsyncClient, path: str, allowed: str
) -> None:
    asked = await client.options(path)
    refused = await client.request("PATCH", path)
    async with client_of(house, engine, key_digests=(digest("a"),)) as with_keys:
        unknown = await with_keys.options(path)

    assert (asked.status_code, asked.content, asked.headers["allow"]) == (204, b"", allowed)
    assert "access-control-allow-origin" not in asked.headers
    assert "content-length" not in asked.headers
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert refused.json()["error"]["code"] == "method_not_allowed"
    assert unknown.status_code == 204


async def test_what_is_nowhere_is_not_there_for_options_either(client: httpx.AsyncClient) -> None:
    assert (await client.options("/v1/nowhere")).status_code == 404
    assert (await client.options("/v1/vector_stores/a/nowhere")).status_code == 404


def asking(
    origin: str, headers: str = "authorization,content-type,compute-budget"
) -> dict[str, str]:
    """What a browser sends before a request of a page."""
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": headers,
        "access-control-request-private-network": "true",
    }


async def test_a_page_of_an_allowed_origin_may_use_it(house: House, engine: Engine) -> None:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": "none"}
    async with client_of(
        house, engine, allowed_origins=(PAGE,), key_digests=(digest("a"),)
    ) as client:
        before = await client.options("/v1/chat/completions", headers=asking(PAGE))
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
        others_before = await client.options(
            "/v1/chat/completions", headers=asking("https://evil.example")
        )

    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == PAGE
    assert {"authorization", "compute-budget"} <= set(
        before.headers["access-control-allow-headers"].split(",")
    )
    assert "POST" in before.headers["access-control-allow-methods"]
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
    for answer in (other, others_before):
        assert "access-control-allow-origin" not in answer.headers
    assert others_before.status_code == 204


async def test_without_keys_an_allowed_page_may_change_it(house: House, engine: Engine) -> None:
    async with client_of(house, engine, allowed_origins=(PAGE,)) as client:
        answer = await chat_from(client, PAGE)
        other = await chat_from(client, "https://evil.example")

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert other.status_code == 403


async def chat_from(client: httpx.AsyncClient, origin: str) -> httpx.Response:
    body = {"model": "nano", "messages": [QUESTION], "compute_budget": "none"}
    return await client.post("/v1/chat/completions", json=body, headers={"origin": origin})
