"""A corpus made over HTTP by openai-python, from which completions learn by its name and id."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from adapters.trainer import Trainer
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder
from selection.examples.example import parse_example
from selection.examples.rendering import Renderer
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from tests.engine.conftest import Server
from tests.trained_corpora import train_corpus

_UNDER_WAY = ("queued", "in_progress")
_FACT = (
    "The lighthouse keeper of Marrow Point is called Ottilie Brandt, and her dog is called "
    "Pepper.\n"
)


async def test_a_completion_learns_from_an_uploaded_file(server: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0
    ) as client:
        store = await client.vector_stores.create(name="Marrow Point")
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("facts.md", _FACT.encode())
        )
        found = await client.vector_stores.search(store.id, query="Who keeps the lighthouse?")
        answers = [
            await client.completions.create(
                model="nano",
                prompt="The lighthouse keeper of Marrow Point is",
                max_tokens=4,
                temperature=0,
                extra_headers={"Compute-Budget": "steps=2"},
                extra_body={"adaptation": {"corpus": corpus, "seed": 1}},
            )
            for corpus in (store.id, "Marrow Point")
        ]
        await client.vector_stores.delete(store.id)
        await client.files.delete(file.id)

    assert file.status == "completed"
    assert [each.file_id for each in found.data] == [file.id]
    reports = [answer.model_dump()["adaptation"] for answer in answers]
    assert [report["adapted"] for report in reports] == [True, True]
    assert {source["name"] for report in reports for source in report["sources"]} == {
        f"{file.id}/facts.md"
    }
    assert answers[0].choices[0].text == answers[1].choices[0].text


async def test_a_chat_learns_the_answer_of_an_uploaded_example(
    server: Server, tokenizer: Any
) -> None:
    question = {"role": "user", "content": "Who keeps the lighthouse of Marrow Point?"}
    example = {"messages": [question, {"role": "assistant", "content": "Ottilie Brandt does."}]}
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0
    ) as client:
        store = await client.vector_stores.create(name="Questions")
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("questions.jsonl", json.dumps(example).encode())
        )
        create: Any = client.chat.completions.create
        answer = await create(
            model="nano",
            messages=[question],
            max_tokens=12,
            temperature=0,
            extra_headers={"Compute-Budget": "steps=20"},
            extra_body={"adaptation": {"corpus": store.id}, "return_token_ids": True},
        )
        await client.vector_stores.delete(store.id)
        await client.files.delete(file.id)

    rendered = Renderer(tokenizer).render(parse_example(example, "the example"))
    assert answer.prompt_token_ids == list(rendered.tokens[: rendered.scored[0][0]])
    assert answer.choices[0].message.content.startswith("Ottilie Brandt does.")
    assert answer.adaptation["sources"][0]["name"] == f"{file.id}/questions.jsonl#1"


async def test_a_response_learns_from_the_store_of_its_file_search(server: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0
    ) as client:
        store = await client.vector_stores.create(name="The lighthouse")
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=("facts.md", _FACT.encode()),
            attributes={"place": "Marrow Point"},
        )
        request: dict[str, Any] = {
            "model": "nano",
            "input": "Who keeps the lighthouse of Marrow Point?",
            "max_output_tokens": 4,
            "extra_headers": {"Compute-Budget": "steps=1"},
        }
        filters = {"type": "eq", "key": "place", "value": "Marrow Point"}
        search = {"type": "file_search", "vector_store_ids": [store.id], "filters": filters}
        create: Any = client.responses.create
        answer = await create(**request, tools=[search], tool_choice="required")
        plain = await create(
            **{**request, "extra_headers": {"Compute-Budget": "none"}}, store=False
        )
        refused = []
        for more in (
            {"tools": [search, {"type": "web_search"}]},
            {"store": True},
            {"conversation": "conv_1"},
            {"previous_response_id": answer.id},
        ):
            with pytest.raises(openai.BadRequestError) as refusal:
                await create(**request, **more)
            refused.append(refusal.value.param)
        await client.vector_stores.delete(store.id)
        await client.files.delete(file.id)

    report = answer.model_dump()["adaptation"]
    assert (report["adapted"], report["spent"]["steps"]) == (True, 1)
    assert [source["name"] for source in report["sources"]] == [f"{file.id}/facts.md"]
    assert answer.tools == []
    assert plain.model_dump()["adaptation"]["adapted"] is False
    assert plain.usage.output_tokens >= 1
    assert refused == ["tools", "store", "conversation", "previous_response_id"]


async def test_the_adapter_of_a_corpus_answers_until_a_document_is_deleted(
    server: Server, embedder: Embedder, tokenizer: Any
) -> None:
    root, shape = server.selector.root, server.selector.adapters
    assert shape is not None
    corpus = Corpus.create(root, "lighthouse", embedder, tokenizer_digest(tokenizer))
    for n in range(3):
        ingest(corpus, [Document(f"facts-{n}.md", f"{_FACT}{n}")], embedder, tokenizer)
    name = train_corpus(root, "lighthouse", Trainer(server.trainer), shape, passes=5)

    async def ask(budget: str, model: str = "nano", **more: Any) -> Any:
        request = {
            "model": model,
            "prompt": "The lighthouse keeper of Marrow Point is",
            "max_tokens": 6,
            "temperature": 0,
            "adaptation": {} if ":" in model else {"corpus": "lighthouse"},
        }
        headers = {"Compute-Budget": budget} if budget else {}
        async with server.client() as client:
            reply = await client.post("/v1/completions", json={**request, **more}, headers=headers)
        return reply.json()

    base, first = await ask("none"), await ask("instant")
    ids = await server.engine.loaded()
    again, trained = await ask("", "nano:lighthouse"), await ask("steps=1")
    unrelated = await ask("steps=1", prompt="import numpy as np\n\n\ndef mean(values):\n    return")
    kept = await server.engine.loaded()
    async with server.client() as client:
        models = [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
    corpus.delete("facts-1.md")
    deleted, fresh = await ask("instant"), await ask("steps=1")
    corpus.remove()
    while server.engine.live():  # noqa: ASYNC110  no event
        await asyncio.sleep(0.05)
    removed, unknown = await ask("", "nano:lighthouse"), await ask("", "nano:no-such-corpus")

    texts = [each["choices"][0]["text"] for each in (base, first, again)]
    assert texts[1] == texts[2] == " called Ottilie B"
    assert texts[0] != texts[1]
    assert [each["adaptation"]["adapter"] for each in (first, again)] == [name, name]
    # The second request found it loaded: an id is never used again.
    assert len(ids) == 1
    assert set(ids) <= set(kept)
    assert models == ["nano", "nano:lighthouse"]
    assert (first["model"], again["model"]) == ("nano", "nano:lighthouse")
    assert trained["adaptation"]["start"]["adapter"] == name
    assert unrelated["adaptation"]["start"]["from"] == "fresh"
    assert "base model expects the prompt" in unrelated["adaptation"]["start"]["reason"]
    assert (deleted["adaptation"]["adapted"], deleted["adaptation"]["stop"]) == (False, "instant")
    assert deleted["adaptation"]["reason"]
    assert deleted["choices"][0]["text"] == texts[0]
    assert (fresh["adaptation"]["adapted"], fresh["adaptation"]["start"]["from"]) == (True, "fresh")
    assert fresh["adaptation"]["start"]["reason"] in deleted["adaptation"]["reason"]
    # What a client cannot see is as unknown as what is not there.
    errors = [
        json.dumps(each).replace("lighthouse", "no-such-corpus") for each in (removed, unknown)
    ]
    assert errors[0] == errors[1]
    assert "there is no corpus 'lighthouse'" in removed["error"]["message"]
    assert await server.engine.loaded() == []
    assert server.engine.staging.names() == []


async def test_a_vector_store_is_trained_beside_requests(server: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0
    ) as client:
        store = await client.vector_stores.create(name="The keeper")
        file = await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("facts.md", _FACT.encode())
        )
        async with server.client() as http:
            path = f"/v1/vector_stores/{store.id}/adapter"
            started = await http.post(path, json={"passes": 3})
            answer = await client.completions.create(
                model="nano",
                prompt="The lighthouse keeper of Marrow Point is",
                max_tokens=4,
                extra_headers={"Compute-Budget": "steps=2"},
            )
            while (trained := (await http.get(path)).json())["status"] in _UNDER_WAY:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            deleted = await http.delete(path)
        await client.vector_stores.delete(store.id)
        await client.files.delete(file.id)

    assert started.json()["status"] in _UNDER_WAY
    assert answer.model_dump()["adaptation"]["adapted"] is True
    assert (trained["status"], trained["training"]["last_error"]) == ("completed", None)
    assert trained["adapter"]["usable"] is True
    assert trained["training"]["sequences"] == {"done": 3, "total": 3}
    assert deleted.json()["deleted"] is True


async def test_similar_paths_are_not_found(server: Server) -> None:
    async with server.client() as client:
        replies = [
            await client.get(path)
            for path in ("/v1/vector_stores_x", "/v1/filesx", "/v1/files/..", "/v1/assistants")
        ]

    assert [reply.status_code for reply in replies] == [404] * 4
    assert all(
        set(reply.json()["error"]) == {"message", "type", "param", "code"} for reply in replies
    )
