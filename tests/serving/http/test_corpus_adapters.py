"""Corpora with an adapter over HTTP: the budget `instant`, and models that are named after corpora.

With real stages and the vLLM stand-in of the other tests of the gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from adapters.fingerprint import model_fingerprint
from adapters.trainer import TrainerConfig
from selection.config import AdapterShape, SelectorConfig
from selection.corpus.corpus import Corpus
from selection.embedding import load_embedder
from selection.errors import CorpusError
from serving.api_keys.key import digest
from serving.budget import Budget
from serving.config import Config
from serving.engine.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.staging import Staging
from serving.http.gateway import Gateway
from serving.workers.corpora import CorporaWorker
from serving.workers.stages import TrainerWorker
from tests.serving.http.test_gateway import (
    PASSAGE,
    QUESTION,
    Backend,
    FakeVllm,
    client_of,
)
from tests.trained_corpora import train_corpus


class Vllm(FakeVllm):
    """It refuses unknown models as vLLM does, and records the adapter of each generation."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.used: list[str | None] = []

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **more: Any
    ) -> AsyncIterator[str]:
        lora = more.get("lora_request")
        self.used.append(lora.lora_name if lora else None)
        async for text in super().generate(prompt, params, request_id, **more):
            yield text

    def _refusal(self, body: Any) -> Response | None:
        if body["model"] == "nano":
            return super()._refusal(body)
        message = f"The model `{body['model']}` does not exist."
        return JSONResponse({"error": {"message": message, "type": "NotFoundError"}}, 404)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, nano: str, tokenizer: Any) -> Backend:
    """A backend whose corpus "handbook" has an adapter, and whose corpus "plain" has none."""
    trainer = TrainerConfig(nano, rank=4)
    shape = AdapterShape(model_fingerprint(Path(nano)), trainer.rank, trainer.targets)
    corpora = tmp_path_factory.mktemp("home") / "corpora"
    config = Config(
        engine=EngineConfig(nano, "nano", trainer.rank, trainer.targets),
        trainer=trainer,
        selector=SelectorConfig(corpora, embedder="base-model", base_model=nano, adapters=shape),
        corpus="handbook",
        limits=Budget(steps=7, seconds=30.0),
    )
    embedder = load_embedder("base-model", base_model=nano)
    backend = Backend(
        config, CorporaWorker(config.selector), TrainerWorker(trainer), embedder, tokenizer
    )
    for name in ("handbook", "plain"):
        backend.make_corpus(name)
    return backend


def train(backend: Backend, name: str) -> str:
    shape = backend.config.selector.adapters
    assert shape is not None
    return train_corpus(backend.corpora, name, backend.trainer._trainer, shape)


@pytest.fixture(scope="module")
def handbook(backend: Backend) -> str:
    """The name of the adapter of the corpus "handbook"."""
    return train(backend, "handbook")


@pytest.fixture
def vllm(backend: Backend) -> Vllm:
    return Vllm(backend.tokenizer)


@pytest.fixture
def engine(backend: Backend, vllm: Vllm) -> Iterator[Engine]:
    engine = Engine(vllm, vllm.app, backend.config.engine, Staging())
    yield engine
    engine.stop()


@pytest.fixture
async def client(
    backend: Backend, engine: Engine, handbook: str
) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend, engine) as client:
        yield client


async def ask(
    client: httpx.AsyncClient,
    model: str = "nano",
    budget: str | None = "instant",
    stream: bool = False,
    **adaptation: Any,
) -> httpx.Response:
    body = {"model": model, "messages": [QUESTION], "adaptation": adaptation, "stream": stream}
    headers = {} if budget is None else {"compute-budget": budget}
    return await client.post("/v1/chat/completions", json=body, headers=headers)


async def test_an_instant_answer_loads_the_adapter_once(
    client: httpx.AsyncClient, engine: Engine, vllm: Vllm, handbook: str
) -> None:
    reports = [(await ask(client)).json()["adaptation"] for _ in range(2)]

    assert [(report["adapted"], report["stop"]) for report in reports] == [(True, "instant")] * 2
    assert [report["adapter"] for report in reports] == [handbook] * 2
    assert reports[0]["budget"]["instant"] is True
    assert reports[0]["start"]["sequences"] == reports[0]["start"]["documents"] == 1
    assert vllm.used == [handbook] * 2
    # It stays for the next request, and was given one id.
    assert (engine.live(), engine.staging.names()) == (1, [handbook])
    assert next(engine._ids) == 2


async def test_the_adapter_is_looked_up_while_vllm_validates(
    backend: Backend,
    client: httpx.AsyncClient,
    vllm: Vllm,
    handbook: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, start = asyncio.Event(), backend.selector.start

    async def look_up(*args: Any) -> Any:
        looking.set()
        return await start(*args)

    async def validate() -> tuple[str, ...]:
        async with asyncio.timeout(20):
            await looking.wait()
        return ("generate",)

    monkeypatch.setattr(backend.selector, "start", look_up)
    monkeypatch.setattr(vllm, "get_supported_tasks", validate)

    report = (await ask(client)).json()["adaptation"]

    assert (report["adapter"], vllm.used) == (handbook, [handbook])


async def test_a_request_that_vllm_refuses_is_refused_for_its_reason(
    client: httpx.AsyncClient, vllm: Vllm
) -> None:
    body = {"model": "nano", "messages": [QUESTION], "temperature": -1}

    for corpus in ("handbook", "nothing"):
        answer = await client.post(
            "/v1/chat/completions",
            json={**body, "compute_budget": "instant", "adaptation": {"corpus": corpus}},
        )
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too cold")
    assert vllm.used == []


@pytest.mark.parametrize("place", ["header", "alias", "field"])
async def test_the_word_is_taken_from_any_place_of_a_budget(
    client: httpx.AsyncClient, place: str
) -> None:
    headers = {"header": "compute-budget", "alias": "x-compute-budget"}
    body: dict[str, Any] = {"model": "nano", "messages": [QUESTION]}
    if place == "field":
        body["compute_budget"] = "instant"

    answer = await client.post(
        "/v1/chat/completions",
        json=body,
        headers={headers[place]: "instant"} if place in headers else {},
    )

    assert answer.json()["adaptation"]["stop"] == "instant"


async def test_steps_start_from_the_adapter_and_beside_it(
    client: httpx.AsyncClient, engine: Engine, vllm: Vllm, handbook: str
) -> None:
    from_it = (await ask(client, budget="steps=2")).json()["adaptation"]
    fresh = (await ask(client, budget="steps=2", start="fresh")).json()["adaptation"]

    assert (from_it["start"]["from"], from_it["start"]["adapter"]) == ("corpus", handbook)
    assert fresh["start"] == {"from": "fresh", "reason": "the request asked for it"}
    assert from_it["adapter"] not in (handbook, fresh["adapter"])
    assert from_it["losses"] != fresh["losses"]
    assert engine.live() == 0


async def test_what_is_shown_is_answered_by_the_adapter_too(
    client: httpx.AsyncClient, vllm: Vllm, handbook: str
) -> None:
    report = (await ask(client, show=1)).json()["adaptation"]

    assert vllm.answered[0]["messages"][0]["content"] == PASSAGE
    assert (report["shown"]["sequences"], report["adapter"]) == (1, handbook)
    assert vllm.used == [handbook]


async def test_examples_are_shown_and_the_adapter_of_a_named_corpus_answers(
    client: httpx.AsyncClient, vllm: Vllm, handbook: str
) -> None:
    examples = [{"prompt": name, "completion": name.upper()} for name in ("a", "b")]

    named = (await ask(client, examples=examples, corpus="handbook")).json()["adaptation"]
    unnamed = (await ask(client, examples=examples)).json()["adaptation"]

    assert vllm.used == [handbook, None]
    assert named["shown"]["sequences"] == unnamed["shown"]["sequences"] == 2
    assert len(vllm.answered[0]["messages"]) == 5
    assert "name one in `adaptation.corpus`" in unnamed["reason"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"corpus": "plain"}, "adapter"),
        ({"filters": {"type": "eq", "key": "language", "value": "de"}}, "filter"),
    ],
)
async def test_without_an_adapter_the_base_model_answers(
    client: httpx.AsyncClient, vllm: Vllm, options: dict[str, Any], reason: str
) -> None:
    report = (await ask(client, **options)).json()["adaptation"]
    required = await ask(client, **options, required=True)

    assert (report["adapted"], report["start"], vllm.used) == (False, None, [None])
    assert reason in report["reason"]
    assert (required.status_code, required.json()["error"]["code"]) == (500, "adaptation_failed")
    assert reason in required.json()["error"]["message"]


async def test_a_contradiction_is_refused_before_any_compute(
    client: httpx.AsyncClient, vllm: Vllm
) -> None:
    answer = await ask(client, start="fresh")

    assert answer.status_code == 400
    assert "contradict" in answer.json()["error"]["message"]
    assert vllm.answered == []


async def test_a_deleted_document_ends_the_use_of_its_adapter(
    backend: Backend, client: httpx.AsyncClient, engine: Engine, vllm: Vllm
) -> None:
    backend.make_corpus("leaving")
    name = train(backend, "leaving")
    assert (await ask(client, corpus="leaving")).json()["adaptation"]["adapter"] == name
    assert engine.staging.names() == [name]

    corpus = Corpus.open(backend.corpora, "leaving")
    corpus.delete("leave.md")
    corpus.close()
    instant = (await ask(client, corpus="leaving")).json()["adaptation"]
    while engine.live():  # noqa: ASYNC110  no event
        await asyncio.sleep(0.01)

    assert (instant["adapted"], instant["start"]) == (False, None)
    assert instant["reason"]
    assert engine.staging.names() == []
    assert vllm.used == [name, None]
    backend.remove_corpus("leaving")


async def test_an_adapter_that_vanishes_after_the_lookup_is_a_reason_to_start_afresh(
    backend: Backend, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(corpus: str, start: Any) -> None:
        raise CorpusError("it is gone")

    monkeypatch.setattr(backend.selector, "start_weights", gone)

    report = (await ask(client, budget="steps=1")).json()["adaptation"]

    assert (report["adapted"], report["start"]["from"]) == (True, "fresh")
    assert report["start"]["reason"].endswith("could not be read: it is gone or damaged")


class TestModels:
    async def test_the_list_has_one_for_each_corpus_with_an_adapter(
        self, client: httpx.AsyncClient
    ) -> None:
        base, *others = (await client.get("/v1/models")).json()["data"]

        assert [model["id"] for model in others] == ["nano:handbook"]
        assert (others[0]["parent"], others[0]["adaptation"]["corpus"]) == ("nano", True)
        assert "parent" not in base
        assert (await client.get("/v1/models/nano:handbook")).json() == others[0]

    async def test_what_a_request_may_name_can_be_retrieved_by_that_name(
        self, client: httpx.AsyncClient, backend: Backend
    ) -> None:
        corpus = Corpus.open(backend.corpora, "handbook")
        name = f"nano:{corpus.meta()['id']}"
        corpus.close()
        listed = (await client.get("/v1/models/nano:handbook")).json()

        answer = await ask(client, name)

        assert answer.status_code == 200
        assert (await client.get(f"/v1/models/{name}")).json() == {**listed, "id": name}

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("nano:plain", "`mayfly corpus train plain` trains one"),
            ("nano:nothing", "this server has nano, nano:handbook"),
            ("other", "this server has nano, nano:handbook"),
        ],
    )
    async def test_an_unlisted_model_is_an_error_that_says_what_there_is(
        self, client: httpx.AsyncClient, name: str, reason: str
    ) -> None:
        answer = await client.get(f"/v1/models/{name}")

        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert reason in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("budget", "stop"), [(None, "instant"), ("steps=1", "steps"), ("none", "none")]
    )
    async def test_its_request_is_answered_instantly_unless_it_says_otherwise(
        self, client: httpx.AsyncClient, vllm: Vllm, budget: str | None, stop: str
    ) -> None:
        answer = await ask(client, "nano:handbook", budget)

        assert answer.json()["adaptation"]["stop"] == stop
        assert vllm.answered[0]["model"] == "nano"
        assert "adaptation" not in vllm.answered[0]

    async def test_a_stream_echoes_its_name(self, client: httpx.AsyncClient) -> None:
        answer = await ask(client, "nano:handbook", None, stream=True)

        first = json.loads(answer.text.splitlines()[0].removeprefix("data: "))
        assert first["adaptation"]["stop"] == "instant"

    async def test_a_corpus_without_an_adapter_may_be_named(
        self, client: httpx.AsyncClient
    ) -> None:
        report = (await ask(client, "nano:plain", "steps=1")).json()["adaptation"]

        assert (report["adapted"], report["start"]["from"]) == (True, "fresh")

    async def test_another_corpus_beside_the_name_is_refused(
        self, client: httpx.AsyncClient
    ) -> None:
        same = await ask(client, "nano:handbook", corpus="handbook")
        other = await ask(client, "nano:handbook", corpus="plain")

        assert same.status_code == 200
        assert other.status_code == 400
        assert "different corpora" in other.json()["error"]["message"]

    async def test_a_corpus_that_a_key_does_not_see_is_an_unknown_model(
        self, backend: Backend, engine: Engine, vllm: Vllm, handbook: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "keys.toml"
        file.write_text(
            f'[keys.ann]\nsha256 = "{digest("ann")}"\ncorpora = ["handbook"]\n'
            f'[keys.bob]\nsha256 = "{digest("bob")}"\n'
        )
        listed, refused = {}, {}
        async with client_of(backend, engine, key_file=file, corpus=None) as client:
            for key in ("ann", "bob"):
                client.headers["authorization"] = f"Bearer {key}"
                models = (await client.get("/v1/models")).json()["data"]
                listed[key] = [model["id"] for model in models]
                refused[key] = [
                    await ask(client, model, budget)
                    for model in ("nano:handbook", "nano:nothing", "other:handbook", "nano:")
                    for budget in ("instant", "none")
                ]
            retrieved = await client.get("/v1/models/nano:handbook")

        assert listed == {"ann": ["nano", "nano:handbook"], "bob": ["nano"]}
        assert [answer.status_code for answer in refused["ann"]] == [200] * 2 + [404] * 6
        assert [answer.status_code for answer in refused["bob"]] == [404] * 8
        assert retrieved.status_code == 404
        errors = [answer.text.replace("handbook", "nothing") for answer in refused["bob"][:4]]
        assert len(set(errors)) == 1
        message = refused["ann"][2].json()["error"]["message"]
        assert "no corpus 'nothing'" in message
        assert "this server has nano, nano:handbook (GET /v1/models)" in message
        assert vllm.used == [handbook, None]


async def test_the_list_of_models_does_not_need_the_selector(
    backend: Backend, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(principal: Any) -> None:
        raise RuntimeError("the selector is being replaced")

    monkeypatch.setattr(backend.selector, "learnt_corpora", fail)

    assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == ["nano"]


async def test_a_server_may_answer_instantly_by_default(
    backend: Backend, engine: Engine, vllm: Vllm, handbook: str
) -> None:
    instant = Budget(0, 30.0, instant=True)
    async with client_of(backend, engine, auto=instant) as client:
        answers = [await ask(client, budget=budget) for budget in (None, "auto")]
        terms = (await client.get("/v1/models/nano")).json()["adaptation"]

    assert [answer.json()["adaptation"]["adapter"] for answer in answers] == [handbook] * 2
    assert terms["auto"]["instant"] is True


async def test_the_training_of_a_corpus_ends_with_the_server(
    backend: Backend, engine: Engine
) -> None:
    gateway: Any = Gateway(engine, backend.selector, backend.trainer, backend.config)
    transport = httpx.ASGITransport(gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        started = await client.post("/v1/vector_stores/plain/adapter")

    await gateway.end()

    assert started.status_code == 200
    assert gateway._training.cancelled()
    assert not gateway._trainings.is_running
