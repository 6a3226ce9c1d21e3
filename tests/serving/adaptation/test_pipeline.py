"""Adaptation: a stage that hangs costs no more than the budget's seconds, and the report says why
the base model answered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Adapter
from adapters.trainer import TrainerConfig
from adapters.training import TrainingRequest, TrainingResult
from selection.access import OPERATOR, Principal
from selection.corpus.calibration import Calibration, calibration_meta, model_digest
from selection.corpus.corpus import Corpus
from selection.corpus.postgres import connections, outage
from selection.embedding import Embedder, Prompt
from selection.errors import CorpusNotFoundError
from selection.examples.example import Example
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.location import DatabaseLocation
from selection.selector import SelectorConfig
from selection.targets import MAX_TARGETS, Truncation
from selection.threaded_embedder import ThreadedEmbedder
from serving.adaptation import stages
from serving.adaptation.admission import TrainerLoad
from serving.adaptation.candidates import CandidateRenderer
from serving.adaptation.pipeline import Adaptation
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.shown import PromptBuilder
from serving.adaptation.stages import Trains
from serving.adaptation.starts import Starts
from serving.budget import Budget, ExampleLimits
from serving.conversations.adapter_cache import AdapterCache, AdapterCacheConfig
from serving.conversations.cached_adapter import CacheScope
from serving.conversations.examples_reuse import ExamplesReuse
from serving.engine.current_request import LoadedAdapter
from serving.errors import AdaptationFailedError, StageFailedError, TrainerFailedError
from serving.report import StopReason
from serving.workers.stages import STALL_SECONDS, SelectorWorker, TrainerWorker
from tests import postgres_server
from tests.serving.adaptation.test_shown import render_words

REQUEST = AdaptationRequest((Prompt("a hive of bees"),), Budget(steps=3, seconds=0.3), (), "notes")


class NoEngine:
    """Is never reached."""

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        raise AssertionError("there should be nothing to load")

    async def unload(self, loaded: LoadedAdapter, *, keeps: bool = False) -> None:
        raise AssertionError("there should be nothing to unload")


def adaptation_of(
    request: AdaptationRequest,
    selector: SelectorWorker,
    trainer: Trains,
    engine: stages.Loads,
    principal: Principal = OPERATOR,
    **more: Any,
) -> Adaptation:
    starts = Starts(selector, "nano")
    return Adaptation(request, selector, trainer, engine, starts, principal, **more)


@pytest.fixture
def selector(
    corpora: Path, words: Embedder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> SelectorWorker:
    monkeypatch.setattr(stages, "GRACE_SECONDS", 0.3)
    corpus = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    ingest(
        corpus, [Document("bees", "A hive of bees keeps itself warm in winter.")], words, tokenizer
    )
    corpus.close()
    return SelectorWorker(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: words))


@pytest.fixture(scope="module")
def trainer(nano: str) -> TrainerWorker:
    return TrainerWorker(TrainerConfig(nano, rank=4))


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """A lock that another thread holds and does not give back, as something that hangs would."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def test_a_trainer_that_hangs_costs_no_more_than_the_seconds(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = adaptation_of(REQUEST, selector, trainer, NoEngine())
    with held(trainer._trainer._loop.model_lock):
        begun = time.monotonic()
        loaded = await adaptation.adapter()
        waited = time.monotonic() - begun
        await adaptation.discard()

    assert loaded is None
    assert waited < 3.0
    assert adaptation.report is not None
    assert (adaptation.report.adapted, adaptation.report.stop) == (False, "seconds")
    assert adaptation.report.reason == "the seconds were spent before the trainer answered"
    assert (await trainer.train(TrainingRequest([[1, 2, 3]]))).stop == "steps"  # it is as it was


async def test_a_selector_that_hangs_costs_no_more_than_the_seconds(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = adaptation_of(REQUEST, selector, trainer, NoEngine())
    with held(selector._selector.corpora._lock):
        loaded = await adaptation.adapter()
        await adaptation.discard()

    assert loaded is None
    assert adaptation.report is not None
    assert adaptation.report.reason == "the seconds were spent before anything was chosen"


async def test_selecting_counts_against_the_seconds(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    adaptation = adaptation_of(
        replace(REQUEST, budget=Budget(steps=3, seconds=1e-9)), selector, trainer, NoEngine()
    )

    loaded = await adaptation.adapter()
    await adaptation.discard()

    assert loaded is None
    assert adaptation.report is not None
    assert (adaptation.report.stop, adaptation.report.seconds) == ("seconds", {})
    assert adaptation.report.reason == "the seconds were spent before anything was chosen"


async def test_the_report_counts_the_prompts_used(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    prompts = tuple(Prompt(f"bees {number}") for number in range(100))
    # Nothing to train on.
    request = replace(
        REQUEST, budget=Budget(steps=3), filter={"type": "eq", "key": "none", "value": 1}
    )

    clamped = adaptation_of(replace(request, prompts=prompts), selector, trainer, NoEngine())
    await clamped.adapter()
    before = adaptation_of(
        replace(request, truncation=Truncation(MAX_TARGETS, 2048, "prompts")),
        selector,
        trainer,
        NoEngine(),
    )
    await before.adapter()
    all_of_it = adaptation_of(request, selector, trainer, NoEngine())
    await all_of_it.adapter()

    targets = [
        each.report.targets for each in (clamped, before, all_of_it) if each.report is not None
    ]
    assert targets == [
        {"used": MAX_TARGETS, "of": 100, "unit": "prompts"},
        {"used": MAX_TARGETS, "of": 2048, "unit": "prompts"},
        None,
    ]


async def test_the_report_names_the_strategy_that_chose(
    selector: SelectorWorker, trainer: TrainerWorker, corpora: Path, words: Embedder, nano: str
) -> None:
    calibration = Calibration(0.3, 0.25, 1e-3, 4, 24, 90.0, 91.0, strategy="nn")
    with closing(Corpus.open(corpora, "notes")) as corpus:
        corpus.update_meta(calibration_meta(calibration, corpus.meta(), model_digest(nano)))
    calibrated = SelectorWorker(
        SelectorConfig(corpora, base_model=nano), embedder=ThreadedEmbedder(lambda: words)
    )
    request = replace(REQUEST, budget=Budget(steps=3))
    requests = (
        request,
        replace(request, strategy="sift"),
        replace(request, filter={"type": "eq", "key": "none", "value": 1}),
    )

    adaptations = [adaptation_of(each, calibrated, trainer, Loads()) for each in requests]
    for each in adaptations:
        await each.adapter()

    reports = [each.report for each in adaptations]
    assert [each.strategy for each in reports if each] == ["nn", "sift", None]
    # Nearest neighbours repeats nothing, and the corpus has one sequence.
    assert [len(each.losses) for each in reports if each] == [1, 3, 0]


async def test_a_request_that_requires_an_adapter_fails_in_time_and_in_one_line_of_the_log(
    selector: SelectorWorker, trainer: TrainerWorker, caplog: pytest.LogCaptureFixture
) -> None:
    adaptation = adaptation_of(replace(REQUEST, required=True), selector, trainer, NoEngine())
    with held(trainer._trainer._loop.model_lock):
        with pytest.raises(AdaptationFailedError, match="before the trainer answered"):
            await adaptation.adapter()
        await adaptation.discard()

    assert [(record.getMessage(), record.exc_info) for record in caplog.records] == [
        (
            "an adaptation failed: an adapter was required, but the seconds were spent before the "
            "trainer answered",
            None,
        )
    ]


@pytest.mark.parametrize(
    ("problem", "has_stack"),
    [(StageFailedError("the trainer has ended"), False), (RuntimeError("odd weights"), True)],
)
@pytest.mark.parametrize("required", [False, True])
async def test_a_failed_training_is_logged_with_its_stack_only_if_it_is_a_bug(
    selector: SelectorWorker,
    caplog: pytest.LogCaptureFixture,
    problem: Exception,
    has_stack: bool,
    required: bool,
) -> None:
    class Fails(NoTrainer):
        async def train(self, request: TrainingRequest, on_step: Any) -> TrainingResult:
            raise problem

    adaptation = adaptation_of(replace(REQUEST, required=required), selector, Fails(), NoEngine())
    with pytest.raises(AdaptationFailedError) if required else nullcontext():
        await adaptation.adapter()
    await adaptation.discard()

    (record,) = caplog.records
    assert record.getMessage().startswith("an adaptation failed")
    assert (record.exc_info is not None) is has_stack
    assert has_stack or "the trainer has ended" in record.getMessage()


class Clock:
    """Seconds that pass when a test sets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_trainer_that_hangs_is_unhealthy_until_a_step_ends(tiny_llama: str) -> None:
    clock = Clock()
    trainer = TrainerWorker(TrainerConfig(tiny_llama, rank=4), clock)
    await trainer.check_health()
    with held(trainer._trainer._loop.model_lock):
        training = asyncio.create_task(trainer.train(TrainingRequest([[1, 2, 3]])))
        await asyncio.sleep(0)
        assert trainer._trainings
        clock.now += STALL_SECONDS
        await trainer.check_health()
        clock.now += 1.0
        with pytest.raises(TrainerFailedError, match="no step has ended for 21 s"):
            await trainer.check_health()
        with pytest.raises(TrainerFailedError, match="hangs"):
            await training
        # No training waits any more.
        with pytest.raises(TrainerFailedError, match="hangs"):
            await trainer.check_health()
    assert (await trainer.train(TrainingRequest([[1, 2, 3]]))).stop == "steps"
    await trainer.check_health()


async def test_a_trainer_that_takes_step_after_step_is_healthy(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    trainer = TrainerWorker(TrainerConfig(tiny_llama, rank=4), clock)
    note_progress = trainer._note_progress

    def note_progress_after_a_pause() -> None:
        clock.now += STALL_SECONDS
        note_progress()

    monkeypatch.setattr(trainer, "_note_progress", note_progress_after_a_pause)
    training = asyncio.create_task(trainer.train(TrainingRequest([[1, 2, 3]] * 20)))
    while not training.done():
        await trainer.check_health()
        await asyncio.sleep(0)
    assert clock.now > 20 * STALL_SECONDS
    assert (await training).stop == "steps"


async def test_warming_up_opens_the_corpus_and_measures_a_step(
    selector: SelectorWorker, trainer: TrainerWorker
) -> None:
    # Arrange: what was measured while other processes started says that no step fits.
    times = trainer._trainer._loop.times
    with trainer._trainer._loop.model_lock:
        for _ in range(40):
            for each in (times.step, times.probe, times.final):
                each.observe(16, 600.0)

    await selector.warm_up("notes")
    await trainer.warm_up()

    assert [held.corpus.name for held in selector._selector.corpora._entries] == ["notes"]
    assert (await trainer.train(TrainingRequest([[1, 2, 3]] * 2, seconds=60.0))).stop == "steps"


async def test_warming_up_without_a_corpus_opens_none(selector: SelectorWorker) -> None:
    await selector.warm_up(None)

    assert selector._selector.corpora._entries == []


class Loads:
    """An engine that only notes what it loads, and what it is to keep."""

    def __init__(self) -> None:
        self.adapters: list[Adapter] = []
        self.kept: list[str] = []

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        self.adapters.append(adapter)
        return LoadedAdapter(adapter.name, len(self.adapters), Path(adapter.name))

    async def unload(self, loaded: LoadedAdapter, *, keeps: bool = False) -> None:
        if keeps:
            self.kept.append(loaded.name)


class NoTrainer:
    """Is never reached."""

    async def train(self, request: TrainingRequest, on_step: Any) -> TrainingResult:
        raise AssertionError("there should be nothing to train")

    async def loss(self, rows: Any, weights: Any) -> float:
        raise AssertionError("there should be nothing to measure")

    async def compare(self, rows: Any, adapters: Any) -> tuple[tuple[float, ...], ...]:
        raise AssertionError("there should be nothing to compare")

    async def give_way(self, seconds: float) -> None:
        raise AssertionError("there should be nothing that gives way")


class TestExamplesOfTheRequest:
    OWNER = CacheScope("ann", None, "nano")

    @pytest.fixture
    async def request_(self, tokenizer: Any) -> AdaptationRequest:
        """Three examples, and no corpus."""
        animals = (("cat", "meow"), ("dog", "woof"), ("cow", "moo"))
        examples = tuple(
            Example(({"role": "user", "content": a}, {"role": "assistant", "content": b}))
            for a, b in animals
        )
        request = replace(
            REQUEST, corpus=None, budget=Budget(steps=4), examples=examples, reuse="examples"
        )
        return await CandidateRenderer(tokenizer, 64, ExampleLimits()).render(
            request, is_chat=False
        )

    @staticmethod
    def reuse(
        request: AdaptationRequest, cache: AdapterCache, owner: CacheScope = OWNER
    ) -> ExamplesReuse:
        return ExamplesReuse(cache, request.examples_digest(False), owner)

    async def test_they_are_enough_without_a_corpus(
        self, request_: AdaptationRequest, selector: SelectorWorker, trainer: TrainerWorker
    ) -> None:
        engine = Loads()
        adaptation = adaptation_of(request_, selector, trainer, engine)
        loaded = await adaptation.adapter()

        report = adaptation.report
        assert loaded is not None
        assert report is not None
        assert (report.adapted, report.corpus, report.stop) == (True, None, "steps")
        assert len(report.losses) == sum(source["times"] for source in report.sources) == 4
        assert {(source["document"], source["start"]) for source in report.sources} == {(None, 0)}
        names = {f"example {position} of the request" for position in (1, 2, 3)}
        assert {source["name"] for source in report.sources} <= names
        assert report.prompt_losses == ()

    async def test_they_are_enough_where_the_servers_corpus_is_not_the_keys(
        self, request_: AdaptationRequest, selector: SelectorWorker, trainer: TrainerWorker
    ) -> None:
        stranger = Principal("bob", frozenset())
        default = replace(request_, corpus="notes", corpus_explicit=False)

        adaptation = adaptation_of(default, selector, trainer, Loads(), stranger)
        await adaptation.run()
        explicit = adaptation_of(
            replace(default, corpus_explicit=True), selector, trainer, NoEngine(), stranger
        )

        assert adaptation.report is not None
        assert (adaptation.report.adapted, adaptation.report.corpus) == (True, None)
        with pytest.raises(CorpusNotFoundError):
            await explicit.run()

    @pytest.mark.parametrize("corpus", [None, "notes"])
    async def test_the_same_ones_are_not_trained_on_again(
        self,
        request_: AdaptationRequest,
        selector: SelectorWorker,
        trainer: TrainerWorker,
        corpus: str | None,
    ) -> None:
        request_ = replace(request_, corpus=corpus)
        cache, engine = AdapterCache(AdapterCacheConfig()), Loads()
        first = adaptation_of(
            request_, selector, trainer, engine, examples=self.reuse(request_, cache)
        )
        made = (await first.run()).report
        again = adaptation_of(
            request_, selector, NoTrainer(), engine, examples=self.reuse(request_, cache)
        )
        report = (await again.run()).report

        assert made.reused is None
        assert (report.adapted, report.stop, report.losses) == (True, "reused", ())
        assert report.reused == {"adapter": made.adapter, "steps": 4}
        assert (report.sources, report.uncertainty) == (made.sources, ())
        # Under the same name vLLM finds the prompts that the adapter has seen in its prefix cache.
        assert engine.adapters[0] == engine.adapters[1]
        assert "spent" in report.as_dict()

    async def test_requests_at_the_same_time_train_once(
        self, request_: AdaptationRequest, selector: SelectorWorker, trainer: TrainerWorker
    ) -> None:
        cache, engine = AdapterCache(AdapterCacheConfig()), Loads()
        first, second, third = (
            adaptation_of(request_, selector, trainer, engine, examples=self.reuse(request_, cache))
            for _ in range(3)
        )

        results = await asyncio.gather(first.run(), second.run(), third.run())

        reports = [result.report for result in results]
        assert [report.stop for report in reports] == ["steps", "reused", "reused"]
        assert {adapter.name for adapter in engine.adapters} == {reports[0].adapter}

    async def test_a_request_trains_itself_where_the_one_before_is_discarded(
        self, request_: AdaptationRequest, selector: SelectorWorker, trainer: TrainerWorker
    ) -> None:
        cache = AdapterCache(AdapterCacheConfig())
        first, second = (
            adaptation_of(
                request_, selector, trainer, Loads(), examples=self.reuse(request_, cache)
            )
            for _ in range(2)
        )
        with held(trainer._trainer._loop.model_lock):
            running = [asyncio.create_task(each.run()) for each in (first, second)]
            await asyncio.sleep(0.01)
            assert cache.in_training
            discarding = asyncio.create_task(first.discard())
            await asyncio.sleep(0.01)

        await discarding
        result = await running[1]
        with pytest.raises(asyncio.CancelledError):
            await running[0]

        assert (result.report.adapted, result.report.reused) == (True, None)

    async def test_another_key_trains_its_own(
        self, request_: AdaptationRequest, selector: SelectorWorker, trainer: TrainerWorker
    ) -> None:
        cache = AdapterCache(AdapterCacheConfig())
        for key in ("ann", "bob"):
            owner = replace(self.OWNER, key=key)
            reuse = self.reuse(request_, cache, owner)
            adaptation = adaptation_of(request_, selector, trainer, Loads(), examples=reuse)

            assert (await adaptation.run()).report.reused is None

    async def test_an_adapter_of_fewer_steps_than_asked_for_is_not_kept(
        self, request_: AdaptationRequest, selector: SelectorWorker, trainer: TrainerWorker
    ) -> None:
        cache = AdapterCache(AdapterCacheConfig())
        shed = request_.shed_load(TrainerLoad(pending=4, undegraded=1))

        adaptation = adaptation_of(
            shed, selector, trainer, Loads(), examples=self.reuse(request_, cache)
        )

        assert len((await adaptation.run()).report.losses) == 1
        assert len(cache) == 0


async def test_a_request_waits_once_for_a_database_that_is_away(
    postgres: DatabaseLocation,
    words: Embedder,
    tokenizer: Any,
    trainer: TrainerWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = Corpus.create(postgres, "notes", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document("bees", "A hive of bees.")], words, tokenizer)
    corpus.close()
    selector = SelectorWorker(SelectorConfig(postgres), embedder=ThreadedEmbedder(lambda: words))
    await selector.ready("notes")
    monkeypatch.setattr(connections, "_POOL_SECONDS", 0.1)
    monkeypatch.setattr(outage, "_OUTAGE_SECONDS", 3600.0)
    waits: list[Exception] = []
    checked = connections.Pool._checked

    def counted(pool: connections.Pool) -> Any:
        try:
            return checked(pool)
        except Exception as problem:
            waits.append(problem)
            raise

    monkeypatch.setattr(connections.Pool, "_checked", counted)
    # What the corpus says about what to show is asked for first.
    request = replace(REQUEST, budget=Budget(steps=3), show=None)
    adaptation = adaptation_of(request, selector, trainer, NoEngine())
    body = {"messages": [{"role": "user", "content": "a hive of bees"}]}
    with postgres_server.away(postgres.url):
        # As for a `model` that names the corpus.
        assert await selector.sees("notes", OPERATOR)
        shown = await adaptation.show(body, PromptBuilder(1000, tokenizer, render_words))
        result = await adaptation.run()
    await adaptation.discard()

    assert shown == body
    assert (result.report.adapted, result.report.stop) == (False, StopReason.FAILED)
    assert len(waits) == 1
