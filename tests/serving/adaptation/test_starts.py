"""Requests that start from the adapter of their corpus, with a real selector and a real trainer.
What the lookup of the adapter finds is given by each test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from adapters.trainer import TrainerConfig
from adapters.training import StartComparison, TrainingRequest, TrainingResult, TrainingStop
from selection.corpus.calibration import Calibration
from selection.corpus.corpus import Corpus
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, StartFound
from selection.embedding import Embedder, Prompt
from selection.errors import CorpusError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.request import SelectionRequest
from selection.selector import Selection, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.adaptation.pipeline import Adaptation
from serving.adaptation.reporting import AdaptationResult
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.shown import PromptBuilder
from serving.adaptation.starts import Starts, parse_start
from serving.budget import INSTANT, Budget
from serving.conversations.adapter_cache import AdapterCache, AdapterCacheConfig, ConversationTurn
from serving.conversations.cached_adapter import CachedAdapter, CacheScope
from serving.errors import AdaptationFailedError, RequestError, TrainerFailedError
from serving.report import Stage
from serving.workers.stages import SelectorWorker, TrainerWorker
from tests.serving.adaptation.test_pipeline import Loads, NoTrainer
from tests.serving.adaptation.test_shown import NO_TOKENIZER, render_words

STEPS = AdaptationRequest((Prompt("a hive of bees"),), Budget(steps=2), (), "notes")
INSTANTLY = replace(STEPS, budget=INSTANT)
START = CorpusStart("corpus-1", "vs_1", 3, 7, 40, 2, (("corpus-1", 1.0),))
NO_ADAPTER = "the corpus has no adapter"


@dataclass
class Selector:
    """A selector of real data, whose corpus has an adapter as a test says."""

    worker: SelectorWorker
    weights: bytes
    found: CorpusStart | None = START
    problem: Exception | None = None
    reads: int = 0
    lookups: list[str] = field(default_factory=list)
    selections: list[SelectionRequest] = field(default_factory=list)
    calibrated: Calibration | None = None

    async def select(self, request: SelectionRequest, seconds: float | None) -> Selection:
        self.selections.append(request)
        selection = await self.worker.select(replace(request, start=False), seconds)
        selection = replace(selection, calibration=self.calibrated)
        if not request.start:
            return selection
        reason = None if self.found else NO_ADAPTER
        return replace(selection, start=self.found, no_start=reason)

    async def start(self, request: SelectionRequest, seconds: float | None) -> StartFound:
        assert request.corpus is not None
        self.lookups.append("start")
        reason = None if self.found else NO_ADAPTER
        return StartFound("vs_1", self.found, reason)

    async def start_weights(self, corpus: str, start: CorpusStart) -> CorpusWeights:
        self.reads += 1
        if self.problem is not None:
            raise self.problem
        return CorpusWeights(start.name, self.weights, 4, 4.0, ("q_proj",))


@dataclass
class Trainer:
    """A trainer that records its requests, and may fail."""

    worker: TrainerWorker
    problem: Exception | None = None
    stop: TrainingStop | None = None
    comparison: StartComparison | None = None
    requests: list[TrainingRequest] = field(default_factory=list)

    async def train(self, request: TrainingRequest, on_step: Any) -> TrainingResult:
        self.requests.append(request)
        if self.problem is not None:
            raise self.problem
        if self.stop is not None:
            return TrainingResult(None, (), 0, self.stop, 0.1, 0.1, comparison=self.comparison)
        return await self.worker.train(request, on_step)


@pytest.fixture(scope="module")
def worker(nano: str) -> TrainerWorker:
    return TrainerWorker(TrainerConfig(nano, rank=4))


@pytest.fixture
def trainer(worker: TrainerWorker) -> Trainer:
    return Trainer(worker)


@pytest.fixture
async def selector(
    corpora: Path, words: Embedder, tokenizer: Any, worker: TrainerWorker
) -> Selector:
    corpus = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    document = Document("bees", "A hive of bees keeps itself warm in winter.")
    ingest(corpus, [document], words, tokenizer)
    corpus.close()
    learnt = await worker.train(TrainingRequest([[1, 2, 3]]))
    assert learnt.adapter is not None
    config = SelectorConfig(corpora)
    selects = SelectorWorker(config, embedder=ThreadedEmbedder(lambda: words))
    return Selector(selects, learnt.adapter.weights)


async def run(
    request: AdaptationRequest,
    selector: Selector,
    trainer: Any,
    engine: Loads | None = None,
    starts: Starts | None = None,
    **more: Any,
) -> AdaptationResult:
    """Run an adaptation to its end."""
    adaptation = Adaptation(
        request,
        selector,
        trainer,
        engine or Loads(),
        starts or Starts(selector, "nano"),
        **more,
    )
    result = await adaptation.run()
    await adaptation.discard()
    return result


def conversation() -> Callable[..., ConversationTurn]:
    """Gives the turn of what user and assistant have said in turns."""
    cache = AdapterCache(AdapterCacheConfig())

    def turn(*said: str) -> ConversationTurn:
        roles = cycle(("user", "assistant"))
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, said, strict=False)
        ]
        scope = CacheScope("ann", None, "nano")
        found = cache.turn({"messages": messages}, scope, max_response_bytes=1000)
        assert found is not None
        return found

    return turn


def store(turn: ConversationTurn, result: AdaptationResult) -> None:
    """Let the adapter of a turn answer "I.", and keep it."""
    message = {"role": "assistant", "content": "I."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    turn.feed(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())
    assert isinstance(result.reusable, CachedAdapter)
    turn.store(result.reusable)


class TestSteps:
    async def test_they_start_from_the_corpuss_adapter_at_a_lower_rate(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        report = (await run(STEPS, selector, trainer)).report

        (training,) = trainer.requests
        assert (training.start, training.learning_rate_factor) == (selector.weights, None)
        assert (report.adapted, report.reason, report.stop) == (True, None, "steps")
        assert report.adapter != START.name
        assert report.start == {
            "from": "corpus",
            "adapter": "corpus-1",
            "generation": 3,
            "documents": 7,
            "sequences": 40,
            "not_learnt": 2,
            "parts": [{"adapter": "corpus-1", "weight": 1.0}],
        }

    @pytest.mark.parametrize("start", [None, "corpus"])
    async def test_without_one_they_start_afresh_for_a_stated_reason(
        self, selector: Selector, trainer: Trainer, start: Any
    ) -> None:
        selector.found = None

        report = (await run(replace(STEPS, start=start), selector, trainer)).report

        (training,) = trainer.requests
        assert (training.start, training.learning_rate_factor) == (None, 1.0)
        assert report.start == {"from": "fresh", "reason": NO_ADAPTER}

    async def test_a_fresh_start_looks_up_no_adapter(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        report = (await run(replace(STEPS, start="fresh"), selector, trainer)).report

        assert trainer.requests[0].start is None
        assert selector.reads == 0
        assert report.start == {"from": "fresh", "reason": "the request asked for it"}

    async def test_a_required_start_that_is_missing_is_an_error(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        selector.found = None
        required = replace(STEPS, required=True)

        with pytest.raises(AdaptationFailedError, match=NO_ADAPTER):
            await run(replace(required, start="corpus"), selector, trainer)
        report = (await run(required, selector, trainer)).report

        assert (report.adapted, report.start) == (True, {"from": "fresh", "reason": NO_ADAPTER})

    @pytest.mark.parametrize(
        ("stop", "problem", "reason"),
        [
            (TrainingStop.SECONDS, None, "the seconds were spent"),
            (TrainingStop.DIVERGED, None, "training diverged"),
            (None, TrainerFailedError("the trainer hangs"), "the adaptation failed"),
        ],
    )
    async def test_where_training_fails_the_corpuss_adapter_answers(
        self,
        selector: Selector,
        trainer: Trainer,
        stop: TrainingStop | None,
        problem: Exception | None,
        reason: str,
    ) -> None:
        trainer.stop, trainer.problem = stop, problem
        request = replace(STEPS, budget=Budget(2, seconds=30.0), required=True)

        report = (await run(request, selector, trainer)).report

        assert (report.adapted, report.adapter) == (True, START.name)
        assert report.reason is not None
        assert report.reason.startswith(reason)
        assert (report.losses, report.stop) == ((), stop or "failed")
        assert report.start is not None
        assert report.start["from"] == "corpus"

    async def test_an_adapter_that_is_gone_when_it_is_read_is_a_reason_to_start_afresh(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        selector.problem = CorpusError("a learnt document was deleted; corpora: secret")

        report = (await run(STEPS, selector, trainer)).report

        assert (report.adapted, trainer.requests[0].learning_rate_factor) == (True, 1.0)
        reason = "the corpus's adapter could not be read: it is gone or damaged"
        assert report.start == {"from": "fresh", "reason": reason}

    async def test_a_conversation_goes_on_from_its_own_adapter_while_the_start_is_the_same(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        turn = conversation()
        first = turn("Who?")
        made = await run(STEPS, selector, trainer, turn=first)
        store(first, made)
        again = await run(STEPS, selector, trainer, turn=turn("Who?", "I.", "And?"))
        selector.found = replace(START, name="corpus-2")
        anew = await run(STEPS, selector, trainer, turn=turn("Who?", "I.", "And?"))

        assert again.report.reused == {"adapter": made.report.adapter, "turns": 1, "steps": 2}
        assert made.reusable is not None
        assert trainer.requests[1].start == made.reusable.weights
        assert trainer.requests[1].learning_rate_factor is None
        # What a deleted document taught may be in the earlier turn's adapter, too.
        assert anew.report.reused is None
        assert trainer.requests[2].start == selector.weights


class TestComparison:
    """The corpus's adapter is used where it lowers the loss of the prompt."""

    # Of the model; not the tokens of the prompt, which is only embedded here.
    PROMPT = tuple(range(40, 60))
    REQUEST = replace(STEPS, probe_tokens=PROMPT)
    BETTER, WORSE = StartComparison(2.1, 2.31), StartComparison(2.31, 2.1)

    @staticmethod
    async def learn(selector: Selector, trainer: Trainer, tokens: list[int]) -> None:
        """Let the corpus's adapter be one that has learnt these tokens."""
        request = TrainingRequest([tokens] * 30, learning_rate=3e-3)
        adapter = (await trainer.worker.train(request)).adapter
        assert adapter is not None
        selector.weights = adapter.weights

    async def test_steps_start_from_one_that_does(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        await self.learn(selector, trainer, list(self.PROMPT))

        report = (await run(self.REQUEST, selector, trainer)).report
        forced = (await run(replace(self.REQUEST, start="corpus"), selector, trainer)).report

        assert [each.start_if_better for each in trainer.requests] == [True, False]
        assert report.start == forced.start
        assert report.start is not None
        assert report.start["from"] == "corpus"
        assert report.prompt_losses == forced.prompt_losses

    async def test_a_turn_that_asks_for_it_does_not_continue_one_that_started_afresh(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        await self.learn(selector, trainer, list(reversed(self.PROMPT)))
        turn = conversation()
        first = turn("Who?")
        made = await run(self.REQUEST, selector, trainer, turn=first)
        store(first, made)
        asks = replace(self.REQUEST, start="corpus", required=True)

        continued, asked = [
            (await run(request, selector, trainer, turn=turn("Who?", "I.", "And?"))).report
            for request in (self.REQUEST, asks)
        ]

        assert continued.reused is not None
        assert continued.start is not None
        assert continued.start["from"] == "fresh"
        assert asked.reused is None
        assert asked.start is not None
        assert asked.start["from"] == "corpus"
        assert trainer.requests[-1].start == selector.weights

    async def test_steps_start_afresh_from_one_that_does_not(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        await self.learn(selector, trainer, list(reversed(self.PROMPT)))

        report, fresh, forced = [
            (await run(replace(self.REQUEST, start=start), selector, trainer)).report
            for start in (None, "fresh", "corpus")
        ]

        assert (report.adapted, report.reason, report.stop) == (True, None, "steps")
        assert report.start is not None
        assert report.start["from"] == "fresh"
        before = [each.prompt_losses[0][1] for each in (fresh, forced)]
        assert report.start["reason"] == (
            "the base model expects the prompt at least as well as the adapter of the corpus does "
            f"({before[0]:.3f} against {before[1]:.3f} nats per token)"
        )
        assert (report.losses, report.prompt_loss) == (fresh.losses, fresh.prompt_loss)
        assert forced.start is not None
        assert forced.start["from"] == "corpus"

    async def test_where_training_fails_the_better_one_answers(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        trainer.stop, trainer.comparison = TrainingStop.DIVERGED, self.BETTER
        from_it = (await run(self.REQUEST, selector, trainer)).report
        trainer.comparison = self.WORSE
        base = (await run(self.REQUEST, selector, trainer)).report

        assert (from_it.adapted, from_it.adapter) == (True, START.name)
        assert (base.adapted, base.start, base.stop) == (False, None, "diverged")
        assert base.reason is not None
        assert base.reason.startswith("training diverged")
        assert "(2.100 against 2.310 nats per token)" in base.reason
        with pytest.raises(AdaptationFailedError, match="against"):
            await run(replace(self.REQUEST, required=True), selector, trainer)

    async def test_a_conversation_goes_on_from_what_it_started_from(
        self, selector: Selector, trainer: Trainer
    ) -> None:
        await self.learn(selector, trainer, list(reversed(self.PROMPT)))
        turn = conversation()

        made = await run(self.REQUEST, selector, trainer, turn=(first := turn("Who?")))
        store(first, made)
        again = await run(
            self.REQUEST, selector, trainer, turn=(second := turn("Who?", "I.", "And?"))
        )
        store(second, again)
        third = await run(
            self.REQUEST, selector, trainer, turn=turn("Who?", "I.", "And?", "I.", "So?")
        )

        for report, before in ((again.report, made), (third.report, again)):
            assert report.start == made.report.start
            assert report.reused is not None
            assert report.reused["adapter"] == before.report.adapter
        assert made.report.start is not None
        assert made.report.start["from"] == "fresh"
        assert [each.start_if_better for each in trainer.requests] == [True, False, False]
        assert [each.learning_rate_factor for each in trainer.requests[1:]] == [1.0, 1.0]

    @pytest.mark.parametrize("probe", [(), (1,)])
    async def test_without_a_loss_of_the_prompt_nothing_is_compared(
        self, selector: Selector, trainer: Trainer, probe: tuple[int, ...]
    ) -> None:
        report = (await run(replace(STEPS, probe_tokens=probe), selector, trainer)).report

        assert not trainer.requests[0].start_if_better
        assert report.start is not None
        assert report.start["from"] == "corpus"


class TestInstant:
    async def test_the_corpuss_adapter_answers_and_is_read_once(self, selector: Selector) -> None:
        engine, starts = Loads(), Starts(selector, "nano")
        reports = [
            (await run(INSTANTLY, selector, NoTrainer(), engine, starts)).report for _ in range(2)
        ]

        assert [(each.adapted, each.stop, each.adapter) for each in reports] == [
            (True, "instant", START.name)
        ] * 2
        assert list(reports[0].seconds) == ["search", "load"]
        assert reports[0].start is not None
        assert reports[0].start["adapter"] == START.name
        assert selector.reads == 1
        # Under the same name vLLM finds the prompts that the adapter has seen in its prefix cache.
        assert engine.adapters[0] is engine.adapters[1]
        assert (engine.adapters[0].weights, engine.adapters[0].rank) == (selector.weights, 4)
        assert engine.kept == [START.name] * 2

    @pytest.mark.parametrize("problem", [None, CorpusError("damaged")])
    async def test_without_one_the_base_model_answers_for_a_stated_reason(
        self, selector: Selector, problem: Exception | None
    ) -> None:
        reason = NO_ADAPTER
        if problem is not None:
            selector.problem, reason = problem, "it is gone or damaged"
        else:
            selector.found = None

        result = await run(INSTANTLY, selector, NoTrainer())

        assert result.adapter is None
        report = result.report
        assert (report.adapted, report.stop, report.start) == (False, "instant", None)
        assert report.reason is not None
        assert reason in report.reason
        assert list(report.seconds) == ["search"]
        with pytest.raises(AdaptationFailedError, match=reason):
            await run(replace(INSTANTLY, required=True), selector, NoTrainer())

    async def test_one_lookup_finds_the_adapter_and_nothing_is_chosen(
        self, selector: Selector
    ) -> None:
        # Arrange
        adaptation = Adaptation(INSTANTLY, selector, NoTrainer(), Loads(), Starts(selector, "nano"))
        prompts = PromptBuilder(1000, NO_TOKENIZER, render_words)

        # Act
        asked = {"messages": [{"role": "user", "content": "a hive of bees"}], "max_tokens": 8}
        body = await adaptation.show(asked, prompts)
        report = (await adaptation.run()).report
        await adaptation.discard()

        # Assert
        assert (selector.lookups, selector.selections) == (["start"], [])
        assert (report.adapted, report.adapter) == (True, START.name)
        assert body == asked

    async def test_it_needs_a_corpus(self, selector: Selector) -> None:
        report = (await run(replace(INSTANTLY, corpus=None), selector, NoTrainer())).report

        assert (report.adapted, report.stop) == (False, "corpus")
        assert report.reason is not None
        assert "name one in `adaptation.corpus`" in report.reason


@dataclass
class HeldLookup:
    """The lookup of a selector that waits until a test lets it go on."""

    selector: Selector
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    async def start(self, request: SelectionRequest, seconds: float | None) -> StartFound:
        self.begun.set()
        try:
            await self.goes_on.wait()
        finally:
            self.ended = True
        return await Selector.start(self.selector, request, seconds)


class TestLookupAhead:
    @pytest.fixture
    def lookup(self, selector: Selector, monkeypatch: pytest.MonkeyPatch) -> HeldLookup:
        lookup = HeldLookup(selector)
        monkeypatch.setattr(selector, "start", lookup.start)
        return lookup

    async def test_it_begins_before_the_adapter_is_asked_for_and_is_the_only_one(
        self, selector: Selector, lookup: HeldLookup
    ) -> None:
        adaptation = Adaptation(INSTANTLY, selector, NoTrainer(), Loads(), Starts(selector, "nano"))

        adaptation.look_ahead()
        await lookup.begun.wait()
        running = asyncio.create_task(adaptation.run())
        lookup.goes_on.set()
        report = (await running).report
        await adaptation.discard()

        assert (report.adapter, selector.lookups) == (START.name, ["start"])
        assert report.seconds[Stage.SEARCH] > 0

    @pytest.mark.parametrize(
        "request_", [STEPS, replace(INSTANTLY, corpus=None), replace(INSTANTLY, show=1)]
    )
    async def test_a_request_that_needs_none_begins_none(
        self, selector: Selector, request_: AdaptationRequest
    ) -> None:
        adaptation = Adaptation(request_, selector, NoTrainer(), Loads(), Starts(selector, "nano"))

        adaptation.look_ahead()
        await asyncio.sleep(0)
        await adaptation.discard()

        assert selector.lookups == []

    async def test_it_ends_with_a_request_that_is_refused(
        self, selector: Selector, lookup: HeldLookup
    ) -> None:
        adaptation = Adaptation(INSTANTLY, selector, NoTrainer(), Loads(), Starts(selector, "nano"))
        adaptation.look_ahead()
        await lookup.begun.wait()

        await adaptation.discard()

        assert (lookup.ended, selector.lookups) == (True, [])

    async def test_why_it_failed_is_the_error_of_the_request(
        self, selector: Selector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(request: SelectionRequest, seconds: float | None) -> StartFound:
            raise CorpusError("several corpora are called 'notes'")

        monkeypatch.setattr(selector, "start", fail)
        adaptation = Adaptation(INSTANTLY, selector, NoTrainer(), Loads(), Starts(selector, "nano"))

        adaptation.look_ahead()
        await asyncio.sleep(0)
        with pytest.raises(CorpusError, match="several"):
            await adaptation.run()
        await adaptation.discard()


class TestStarts:
    async def test_the_adapter_before_the_current_one_is_retired(self, selector: Selector) -> None:
        retired: list[str] = []
        starts = Starts(selector, "nano", retired.append)
        found = StartFound("vs_1", START)
        await starts.point(found, None, has_filter=False)
        # A filter says nothing about the adapter.
        await starts.point(replace(found, start=None, reason="filter"), None, has_filter=True)
        assert (starts.is_current("corpus-1"), retired) == (True, [])

        second = replace(START, name="corpus-2")
        await starts.point(replace(found, start=second), None, has_filter=False)
        await starts.point(replace(found, corpus="vs_2"), None, has_filter=False)
        assert (starts.is_current("corpus-2"), retired) == (True, ["corpus-1"])

        invalid = StartFound("vs_1", None, "a learnt document was deleted")
        point = await starts.point(invalid, None, has_filter=False)

        assert (starts.is_current("corpus-2"), retired) == (False, ["corpus-1", "corpus-2"])
        assert point.as_dict() == {"from": "fresh", "reason": "a learnt document was deleted"}

    async def test_a_selector_that_does_not_answer_costs_no_more_than_the_seconds(
        self, selector: Selector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.adaptation.stages.GRACE_SECONDS", 0.1)
        never = asyncio.Event()

        async def hang(corpus: str, start: CorpusStart) -> CorpusWeights:
            await never.wait()
            raise AssertionError

        monkeypatch.setattr(selector, "start_weights", hang)
        point = await Starts(selector, "nano").point(
            StartFound("vs_1", START), 0.0, has_filter=False
        )

        assert point.adapter is None
        assert point.reason == "the seconds were spent before the corpus's adapter was read"


@pytest.mark.parametrize("value", ["Corpus", "", 1, True, ["corpus"]])
def test_an_unknown_start_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match=r"`adaptation\.start`"):
        parse_start({"start": value}, Budget(2))


def test_an_instant_answer_cannot_start_afresh() -> None:
    with pytest.raises(RequestError, match="contradict"):
        parse_start({"start": "fresh"}, INSTANT)
    assert parse_start({"start": "corpus"}, INSTANT) == "corpus"
    assert parse_start({"start": None}, INSTANT) is None
