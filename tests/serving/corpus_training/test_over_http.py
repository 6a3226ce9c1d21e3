"""The adapter of a vector store over HTTP: its training is started, reported and cancelled, and its
result deleted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx
import pytest

from selection.corpus.corpus import Corpus
from serving.corpus_training.trainings import CorpusTrainings
from serving.http.vector_stores.adapter_routes import AdapterRoutes
from serving.workers.stages import TrainerWorker
from tests.serving.corpus_training.conftest import (
    DOCUMENTS,
    SEQUENCES,
    PausableTrainer,
    Serve,
    until,
)
from tests.serving.http.web_server import application

_ADAPTER = "/v1/vector_stores/ships/adapter"


def client_of(trainings: CorpusTrainings) -> httpx.AsyncClient:
    app: Any = application(AdapterRoutes(trainings).routes)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def is_completed(client: httpx.AsyncClient) -> bool:
    status: str = (await client.get(_ADAPTER)).json()["status"]
    return status == "completed"


async def test_a_training_from_its_start_to_the_deletion_of_its_adapter(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus
) -> None:
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings, client_of(trainings) as client:
        before = await client.get(_ADAPTER)
        started = await client.post(_ADAPTER, json={"passes": 1})
        await paused.waiting.wait()
        cancelled = await client.post(f"{_ADAPTER}/cancel")
        paused.running.set()
        await client.post(_ADAPTER)
        await until(partial(is_completed, client))
        reported = await client.get(_ADAPTER)
        not_running = await client.post(f"{_ADAPTER}/cancel")
        deleted = await client.delete(_ADAPTER)
        after = await client.get(_ADAPTER)

    identity = corpus.meta()["id"]
    assert (before.status_code, after.status_code, not_running.status_code) == (404, 404, 404)
    assert "POST to this path to train one" in before.json()["error"]["message"]
    assert started.status_code == 200
    assert started.json()["status"] == "queued"
    assert (started.json()["vector_store_id"], started.json()["adapter"]) == (identity, None)
    assert started.headers["openai-poll-after-ms"]
    assert cancelled.json()["status"] == "cancelled"
    adapter = reported.json()["adapter"]
    assert (adapter["usable"], adapter["sequences"], adapter["not_learnt"]) == (
        True,
        DOCUMENTS * SEQUENCES,
        0,
    )
    sequences = reported.json()["training"]["sequences"]
    assert sequences["done"] == sequences["total"] > 0
    assert deleted.json() == {
        "id": identity,
        "object": "vector_store.adapter.deleted",
        "deleted": True,
    }


async def test_an_adapter_that_the_command_trained_is_reported(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus
) -> None:
    free = PausableTrainer(trainer)
    free.running.set()
    async with serving(free) as trainings, client_of(trainings) as client:
        await client.post(_ADAPTER, json={"passes": 1})
        await until(partial(is_completed, client))
        # A command records no operation.
        corpus.training.record(None)
        reported = (await client.get(_ADAPTER)).json()
        corpus.delete("document 3")
        invalid = (await client.get(_ADAPTER)).json()["adapter"]

    assert (reported["status"], reported["training"]) == ("completed", None)
    adapter = reported["adapter"]
    assert (adapter["usable"], adapter["documents"]) == (True, DOCUMENTS)
    assert (invalid["usable"], invalid["documents"], invalid["sequences"]) == (False, 0, 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"seconds": 0}, "`seconds` must be a number above 0"),
        ({"seconds": True}, "`seconds` must be a number above 0"),
        ({"passes": 0}, "`passes` must be a whole number from 1 to 20"),
        ({"parts": 1.5}, "`parts` must be a whole number from 1 to 10000"),
        ({"fresh": 1}, "`fresh` must be true or false"),
        ({"rank": 8}, "unknown field `rank`"),
    ],
)
async def test_invalid_options_are_refused(
    serving: Serve, trainer: TrainerWorker, body: dict[str, Any], message: str
) -> None:
    async with serving(PausableTrainer(trainer)) as trainings, client_of(trainings) as client:
        refused = await client.post(_ADAPTER, json=body)

    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(message)
