"""Pieces measured for real: the bundled model's trainer, the embedder, a corpus; an engine by
answers of known time.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapters import TrainerConfig
from adapters.model_defaults import for_model
from selection import SelectorConfig
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import CorpusNotFoundError
from selection.embedding import Embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from serving.capacity.cost_model import AT_ONCE
from serving.capacity.engine_profiler import ask_engine
from serving.capacity.planner import Workload, plan_for
from serving.capacity.profiler import Asked, measure
from serving.client import AnswerError, Server
from serving.engine.config import EngineConfig
from tests.serving.replay import FIRST, REPORT, Plays, Replay, events

_PER_PROMPT_TOKEN, _PER_TOKEN, _FIXED, _LOAD, _ADAPTING = 2e-4, 4e-3, 0.01, 0.03, 0.02  # seconds


def timed(body: dict[str, Any]) -> Plays:
    """An answer that takes what its tokens take; with an adapter, which takes _ADAPTING, twice as
    much for each.
    """
    adapted = body["compute_budget"] != "none"
    seconds = (
        _FIXED
        + _PER_PROMPT_TOKEN * len(body["prompt"])
        + _PER_TOKEN * (1 + adapted) * body["max_tokens"]
    )
    spent = {
        "spent": {"steps": 1, "seconds": _ADAPTING},
        "seconds": {**REPORT["seconds"], "load": _LOAD},
    }
    report = {**REPORT, "adapted": adapted, **spent}
    return (seconds + _ADAPTING * adapted, *events({**FIRST, "adaptation": report}))


@pytest.fixture(scope="module")
def selector(
    tmp_path_factory: pytest.TempPathFactory, nano: str, embedder: Embedder, tokenizer: Any
) -> SelectorConfig:
    """Of a corpus `notes`."""
    root = tmp_path_factory.mktemp("corpora")
    corpus = Corpus.create(root, "notes", embedder, tokenizer_digest(tokenizer))
    texts = [f"def add_{n}(a, b):\n    return a + b + {n}\n" for n in range(20)]
    ingest(corpus, [Document(str(n), text) for n, text in enumerate(texts)], embedder, tokenizer)
    corpus.close()
    return SelectorConfig(root, base_model=nano)


def asked(trainer: TrainerConfig, selector: SelectorConfig, corpus: str | None) -> Asked:
    return Asked(trainer, selector, corpus, None, steps=4, sequence_tokens=32, prompt_tokens=64)


def test_stages_have_the_places_that_a_plan_takes_them_to_have() -> None:
    assert EngineConfig.adapters == TrainerConfig.slots == AT_ONCE


def test_real_parts_are_measured_and_what_is_not_is_said(
    nano: str, selector: SelectorConfig
) -> None:
    told: list[str] = []

    pieces = measure(asked(for_model(nano), selector, "notes"), told.append)

    assert told == ["choosing", "training", "multiplying"]
    assert (pieces.model, pieces.rank, pieces.dimension, pieces.rows) == ("nano", 16, 384, 8)
    assert 4e6 < pieces.parameters < 8e6
    assert pieces.estimated == ("the engine", "loading an adapter")
    assert pieces.cache_bytes == 2 * 6 * 4 * 64 * pieces.engine_bytes
    assert pieces.adapter_numbers == pytest.approx(
        16 * 6 * (4 * (256 + 256) + 3 * (256 + 640)), rel=0.02
    )
    assert 1e-4 < pieces.step_fixed + 32 * pieces.step_token < 5  # seconds of a step
    assert 1e-3 < pieces.select < 5
    assert 1e8 < pieces.engine_flops < 1e15
    assert 1e8 < pieces.trainer_flops < 1e15
    assert 1e8 < pieces.bandwidth < 1e14
    assert plan_for(Workload(1.0, steps=4, sequence_tokens=32), pieces).needs[1].replicas >= 1


def test_without_a_corpus_the_embedder_is_measured_alone(tiny_llama: str, tmp_path: Path) -> None:
    trainer = TrainerConfig(tiny_llama, rank=2, slots=2)

    pieces = measure(asked(trainer, SelectorConfig(tmp_path), None))

    assert pieces.estimated[-1].startswith("search and SIFT")
    assert pieces.rows == 2
    assert pieces.select > 0


def test_a_corpus_that_is_not_there_is_said_before_the_model_is_loaded(
    nano: str, selector: SelectorConfig
) -> None:
    with pytest.raises(CorpusNotFoundError):
        measure(asked(TrainerConfig("/no/such/model"), selector, "nowhere"))


def test_an_engine_is_measured_by_its_answers(replay: Replay) -> None:
    replay.plays = timed

    with closing(Server(replay.url)) as server:
        engine = ask_engine(server, 4096, 512)

    assert engine.prefill_token == pytest.approx(_PER_PROMPT_TOKEN, rel=0.5)
    assert engine.decode_fixed + engine.decode_each == pytest.approx(2 * _PER_TOKEN, rel=0.5)
    assert engine.load == _LOAD
    assert 0 < engine.answer_fixed < 0.1
    prompts = [tuple(body["prompt"]) for _, body in replay.asked]
    assert len(set(prompts)) == len(prompts)  # none that a prefix cache knows
    assert max(map(len, prompts)) == 512
    assert all(min(prompt) >= 0 and max(prompt) < 4096 for prompt in prompts)
    assert all(body["ignore_eos"] for _, body in replay.asked)


def test_an_engine_without_a_corpus_has_no_time_to_load(replay: Replay) -> None:
    replay.plays = events({**FIRST, "adaptation": {**REPORT, "adapted": False}})

    with closing(Server(replay.url)) as server:
        assert ask_engine(server, 4096, 64).load is None


def test_a_server_that_is_not_there_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with (
        closing(Server("http://127.0.0.1:9/v1")) as server,
        pytest.raises(AnswerError, match="no server at"),
    ):
        measure(
            Asked(
                TrainerConfig("/no/such/model"), SelectorConfig(tmp_path), None, server, 1, 32, 64
            )
        )
