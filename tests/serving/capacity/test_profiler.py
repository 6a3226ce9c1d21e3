"""Profiling: the bundled model, the embedder and a corpus are measured for real; an engine
by answers of known time.
"""

from __future__ import annotations

import timeit
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import TrainerConfig
from adapters.model_defaults import for_model, parameters_of
from selection import SelectorConfig
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import CorpusNotFoundError
from selection.embedding import Embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from serving.capacity.cost_model import CONCURRENCY
from serving.capacity.engine_profiler import profile_engine
from serving.capacity.planner import Workload, plan_for
from serving.capacity.profiler import ProfilerConfig, profile
from serving.client import AnswerError, Server
from serving.engine.config import EngineConfig
from tests.serving.replay import FIRST, REPORT, Plays, Replay, events

# Seconds.
_PER_PROMPT_TOKEN, _PER_TOKEN, _FIXED, _LOAD, _ADAPTING = 2e-4, 4e-3, 0.01, 0.03, 0.02


class SimulatedEngine:
    """Answers at once, and advances its own clock by the time that an engine would need.

    Answers of concurrent requests take their times one after another. An adapter takes _ADAPTING,
    and makes each token take twice as long.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def answer(self, body: dict[str, Any]) -> Plays:
        adapted = body["compute_budget"] != "none"
        self.now += (
            _FIXED
            + _PER_PROMPT_TOKEN * len(body["prompt"])
            + _PER_TOKEN * (1 + adapted) * body["max_tokens"]
            + _ADAPTING * adapted
        )
        report = {
            **REPORT,
            "adapted": adapted,
            "spent": {"steps": 1, "seconds": _ADAPTING},
            "seconds": {**REPORT["seconds"], "load": _LOAD},
        }
        return events({**FIRST, "adaptation": report})


@pytest.fixture(scope="module")
def selector(
    tmp_path_factory: pytest.TempPathFactory, nano: str, embedder: Embedder, tokenizer: Any
) -> SelectorConfig:
    """The configuration of a selector with a corpus `notes`."""
    root = tmp_path_factory.mktemp("corpora")
    corpus = Corpus.create(root, "notes", embedder, tokenizer_digest(tokenizer))
    texts = [f"def add_{n}(a, b):\n    return a + b + {n}\n" for n in range(20)]
    ingest(corpus, [Document(str(n), text) for n, text in enumerate(texts)], embedder, tokenizer)
    corpus.close()
    return SelectorConfig(root, base_model=nano)


def config_of(
    trainer: TrainerConfig, selector: SelectorConfig, corpus: str | None
) -> ProfilerConfig:
    return ProfilerConfig(
        trainer, selector, corpus, None, steps=4, sequence_tokens=32, prompt_tokens=64
    )


def float32_flops() -> float:
    """Operations per second of a matrix product, measured apart from the profiler."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = min(timeit.repeat(lambda: a @ b, number=3, repeat=5)) / 3
    return 2 * 1024**3 / seconds


def within_factor(factor: float, one: float, other: float) -> bool:
    """Whether two rates agree as far as measurements on a busy machine do."""
    return 1 / factor < one / other < factor


def copy_bandwidth() -> float:
    """Bytes per second of a copy, read and written, measured apart from the profiler."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    seconds = min(timeit.repeat(lambda: target.copy_(source), number=1, repeat=5))
    return 2 * source.nbytes / seconds


def test_the_default_configurations_have_the_slots_that_a_plan_assumes() -> None:
    assert EngineConfig.adapters == TrainerConfig.slots == CONCURRENCY


def test_real_stages_are_measured_and_the_rest_is_reported_as_estimated(
    nano: str, selector: SelectorConfig
) -> None:
    stages: list[str] = []

    costs = profile(config_of(for_model(nano), selector, "notes"), stages.append)

    assert stages == ["selection", "training", "matrix products"]
    assert (costs.model, costs.rank, costs.dimension, costs.rows) == ("nano", 16, 384, 8)
    assert costs.parameters == parameters_of(Path(nano))
    assert costs.estimated == ("the engine", "loading an adapter")
    assert costs.cache_bytes == 2 * 6 * 4 * 64 * costs.engine_bytes
    assert costs.adapter_parameters == pytest.approx(
        16 * 6 * (4 * (256 + 256) + 3 * (256 + 640)), rel=0.02
    )
    assert within_factor(8, costs.engine_flops, float32_flops())
    assert within_factor(8, costs.bandwidth, copy_bandwidth())
    # Four operations per parameter and token cannot be faster than matrix products; noise aside.
    assert 0.001 < costs.training_efficiency < 2
    assert costs.select > 0
    # The engine is estimated from the measured rates.
    forward = costs.step_per_token / 2 * costs.trainer_flops / costs.engine_flops
    assert costs.prefill_per_token == costs.decode_per_answer == pytest.approx(forward)
    assert costs.decode_fixed == pytest.approx(costs.parameters * 4 / costs.bandwidth)
    assert costs.load == pytest.approx(3 * 4 * costs.adapter_parameters / costs.bandwidth)
    assert plan_for(Workload(1.0, steps=4, sequence_tokens=32), costs).stages[1].replicas >= 1


def test_without_a_corpus_the_embedder_is_measured_alone(tiny_llama: str, tmp_path: Path) -> None:
    trainer = TrainerConfig(tiny_llama, rank=2, slots=2)

    costs = profile(config_of(trainer, SelectorConfig(tmp_path), None))

    assert costs.estimated[-1].startswith("search and SIFT")
    assert costs.rows == 2
    assert costs.select > 0


def test_an_unknown_corpus_is_refused_before_the_model_is_loaded(
    nano: str, selector: SelectorConfig
) -> None:
    with pytest.raises(CorpusNotFoundError):
        profile(config_of(TrainerConfig("/no/such/model"), selector, "nowhere"))


def test_an_engine_is_measured_by_its_answers(replay: Replay) -> None:
    simulated = SimulatedEngine()
    replay.plays = simulated.answer

    with closing(Server(replay.url)) as server:
        engine = profile_engine(server, 4096, 512, simulated.clock)

    assert engine.prefill_per_token == pytest.approx(_PER_PROMPT_TOKEN)
    # Answers one after another take as long as alone: nothing of a step is shared.
    assert engine.decode_fixed == pytest.approx(0.0, abs=1e-9)
    # An adapted answer takes 2 * 33 token times, a plain one 33, a short one 1.
    assert engine.decode_per_answer == pytest.approx(_PER_TOKEN * (2 * 33 - 1) / (33 - 1))
    assert engine.answer_fixed == pytest.approx(_FIXED)
    assert engine.load == _LOAD
    prompts = [tuple(body["prompt"]) for _, body in replay.asked]
    # No prompt is in a prefix cache.
    assert len(set(prompts)) == len(prompts)
    assert max(map(len, prompts)) == 512
    assert all(min(prompt) >= 0 and max(prompt) < 4096 for prompt in prompts)
    assert all(body["ignore_eos"] for _, body in replay.asked)


def test_an_engine_without_a_corpus_has_no_loading_time(replay: Replay) -> None:
    replay.plays = events({**FIRST, "adaptation": {**REPORT, "adapted": False}})

    with closing(Server(replay.url)) as server:
        assert profile_engine(server, 4096, 64).load is None


def test_an_unreachable_server_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with (
        closing(Server("http://127.0.0.1:9/v1")) as server,
        pytest.raises(AnswerError, match="no server at"),
    ):
        profile(
            ProfilerConfig(
                TrainerConfig("/no/such/model"), SelectorConfig(tmp_path), None, server, 1, 32, 64
            )
        )
