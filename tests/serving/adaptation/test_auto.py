"""What `auto` answers with, by losses that a test gives or a real trainer measures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.model.row import Row, check_spans
from adapters.training import TrainingRequest, TrainingResult
from selection.corpus.calibration import Calibration
from selection.embedding import Prompt
from selection.examples.example import Example
from serving.adaptation.auto import (
    BASE,
    CORPUS,
    MAX_CHAT_TOKENS,
    MIN_FALL_OF_BASE,
    MIN_FALL_OF_CORPUS,
    AutoChoice,
    Way,
    decides,
    row_after,
    row_in_chat,
    rows_to_compare,
)
from serving.adaptation.pipeline import Adaptation
from serving.adaptation.prompts import SHOWN, probe_tokens
from serving.adaptation.reporting import AdaptationResult
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.shown import Body, PromptBuilder, Prompts
from serving.adaptation.starts import Starts
from serving.budget import AUTO, INSTANT
from serving.errors import AdaptationFailedError
from serving.report import Stage
from serving.workers.stages import TrainerWorker
from tests.serving.adaptation.test_pipeline import Loads
from tests.serving.adaptation.test_shown import render_words
from tests.serving.adaptation.test_starts import START, Selector, selector, worker

__all__ = ["selector", "worker"]

SHOW, BOTH = Way(corpus=False, shown=True), Way(corpus=True, shown=True)
PROBE = tuple(range(1, 9))
REQUEST = AdaptationRequest(
    (Prompt("a hive of bees"),),
    replace(AUTO, steps=2),
    (),
    "notes",
    show=None,
    probe_tokens=PROBE,
)
QUESTION: Body = {"messages": [{"role": "user", "content": "a hive of bees"}], "max_tokens": 8}
COMPLETION: Body = {"prompt": "a hive of bees", "max_tokens": 8}


@dataclass
class Trainer:
    """A trainer that trains, but whose comparison says what a test gives."""

    worker: TrainerWorker
    losses: Sequence[float] = ()
    problem: Exception | None = None
    # Number of comparisons before the problem; and seconds that a comparison takes.
    succeeds: int = 0
    seconds: float = 0.0
    comparisons: list[tuple[Row, list[bytes | None]]] = field(default_factory=list)
    requests: list[TrainingRequest] = field(default_factory=list)

    async def compare(
        self, rows: Sequence[Row], adapters: Sequence[bytes | None]
    ) -> tuple[tuple[float, ...], ...]:
        (row,) = rows
        self.comparisons.append((row, [*adapters]))
        await asyncio.sleep(self.seconds)
        if self.problem is not None and len(self.comparisons) > self.succeeds:
            raise self.problem
        if self.losses:
            first = 0 if len(self.comparisons) == 1 else len(self.losses) - 1
            return tuple((loss,) for loss in self.losses[first : first + len(adapters)])
        return await self.worker.compare(rows, adapters)

    async def train(self, request: TrainingRequest, on_step: Any) -> TrainingResult:
        self.requests.append(request)
        return await self.worker.train(request, on_step)

    async def loss(self, rows: Any, weights: Any) -> float:
        raise AssertionError("there should be nothing to measure")

    async def give_way(self, seconds: float) -> None:
        raise AssertionError("there should be nothing that gives way")


async def answer(
    request: AdaptationRequest,
    selector: Selector,
    trainer: Trainer,
    tokenizer: Any,
    body: Body = QUESTION,
) -> tuple[Body, AdaptationResult]:
    """The body that is answered, and how."""

    async def render(body: Body) -> Prompts:
        return (rendered(body, tokenizer),)

    adaptation = Adaptation(request, selector, trainer, Loads(), Starts(selector, "nano"))
    try:
        assert adaptation.reads_prompt
        body = await adaptation.show({**body}, PromptBuilder(1000, tokenizer, render))
        return body, await adaptation.run()
    finally:
        await adaptation.discard()


def rendered(body: Body, tokenizer: Any) -> tuple[int, ...]:
    """The prompt of a body as an engine would see it, with a template that is not all words."""
    if "prompt" in body:
        return tuple(tokenizer.encode(body["prompt"], add_special_tokens=False))
    turns = [f"[{each['role']}]\n{each['content']}\n" for each in body["messages"]]
    return tuple(tokenizer.encode("".join([*turns, "[assistant]\n"]), add_special_tokens=False))


class TestRequests:
    """A request's answer follows from the losses of its prompt: those of the base model, of the
    adapter of the corpus, and of the better one with text in the prompt.
    """

    @pytest.mark.parametrize(
        ("losses", "answers", "shows", "adapter"),
        [
            ((3.0, 2.8, 2.7), "corpus, shown", True, START.name),
            ((3.0, 2.7, 2.69), "corpus", False, START.name),
            ((3.0, 3.1, 2.6), "base, shown", True, None),
        ],
    )
    async def test_without_a_step_where_something_at_hand_helps(
        self,
        selector: Selector,
        worker: TrainerWorker,
        tokenizer: Any,
        losses: Sequence[float],
        answers: str,
        shows: bool,
        adapter: str | None,
    ) -> None:
        trainer = Trainer(worker, losses)

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert ("keeps itself warm" in str(body)) == shows
        report = result.report
        assert report.auto is not None
        assert (report.auto["answers"], report.adapter, report.stop) == (answers, adapter, "auto")
        assert report.adapted == (adapter is not None)
        assert (report.shown is not None) == shows
        assert (report.reason is None) == (adapter is not None)
        assert "compare" in report.seconds
        # Of what was chosen nothing was trained on.
        assert (report.strategy is not None) == shows
        assert not trainer.requests

    async def test_with_steps_from_scratch_where_nothing_does(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (2.0, 2.2, 1.9))

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert body == QUESTION
        report = result.report
        assert (report.adapted, report.shown) == (True, None)
        assert report.auto is not None
        assert report.auto["answers"] == "steps"
        assert report.start is not None
        assert report.start["from"] == "fresh"
        assert "base 2.000; corpus 2.200; base, shown 1.900" in report.start["reason"]
        (training,) = trainer.requests
        assert training.start is None
        assert not training.start_if_better
        assert training.learning_rate_factor == 1.0

    async def test_without_an_adapter_the_trainer_measures_the_prompt_and_the_same_after_the_text(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        selector.found = None
        trainer = Trainer(worker)

        _, result = await answer(REQUEST, selector, trainer, tokenizer, COMPLETION)

        (alone, _), (after_text, _) = trainer.comparisons
        assert alone == Row.of(PROBE)
        assert after_text.tokens[-len(PROBE) :] == PROBE
        text = tokenizer.decode(after_text.tokens[: -len(PROBE)])
        sources = (await selector.select(selector.selections[0], None)).sources
        assert text == "".join(f"{source.text}\n\n" for source, _ in reversed(sources))
        assert after_text.scored == ((len(after_text) - len(PROBE) + 1, len(after_text)),)
        ((base,),) = await worker.compare([alone], [None])
        ((shown,),) = await worker.compare([after_text], [None])
        assert result.report.auto is not None
        measured = [*result.report.auto["losses"].values()]
        assert measured == pytest.approx([base, shown], abs=1e-6)

    async def test_beside_the_adapter_of_a_corpus_a_completion_is_shown_text_without_a_comparison(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.9))

        body, result = await answer(REQUEST, selector, trainer, tokenizer, COMPLETION)

        assert trainer.comparisons == [(Row.of(PROBE), [None, selector.weights])]
        assert "keeps itself warm" in body["prompt"]
        assert result.report.auto == {
            "answers": "corpus, shown",
            "losses": {"base": 3.0, "corpus": 2.9},
        }
        assert (result.report.adapter, result.report.stop) == (START.name, "auto")

    async def test_a_completion_whose_corpus_does_not_help_is_compared_with_text(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 3.1, 2.6))

        body, result = await answer(REQUEST, selector, trainer, tokenizer, COMPLETION)

        assert [adapters for _, adapters in trainer.comparisons] == [
            [None, selector.weights],
            [None],
        ]
        assert "keeps itself warm" in body["prompt"]
        assert result.report.adapter is None

    async def test_a_chat_is_measured_as_the_engine_sees_it_up_to_the_end_of_the_users_words(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.8, 2.7))
        request = replace(REQUEST, probe_tokens=probe_tokens(REQUEST.prompts, tokenizer))

        body, _ = await answer(request, selector, trainer, tokenizer)

        (alone, _), (after_text, _) = trainer.comparisons
        end = tokenizer.encode("\n[assistant]\n", add_special_tokens=False)
        assert alone.tokens == rendered(QUESTION, tokenizer)[: -len(end)]
        assert after_text.tokens == rendered(body, tokenizer)[: -len(end)]
        assert tokenizer.decode(after_text.tokens).startswith("[system]\nPassages that may help")
        for row in (alone, after_text):
            ((start, stop),) = row.scored
            assert row.tokens[start:stop] == request.probe_tokens[1:]
            assert stop == len(row)

    async def test_where_text_is_no_question_the_models_are_compared_on_what_the_engine_sees(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.8))
        words = probe_tokens(REQUEST.prompts, tokenizer)
        request = replace(REQUEST, probe_tokens=words, show=0)

        body, _ = await answer(request, selector, trainer, tokenizer)

        ((row, _),) = trainer.comparisons
        assert body == QUESTION
        assert rendered(body, tokenizer)[: len(row)] == row.tokens
        assert row.tokens[-len(words) + 1 :] == words[1:]

    async def test_a_corpus_without_an_adapter_leaves_text_and_steps(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        selector.found = None
        trainer = Trainer(worker, (3.0, 2.5))

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert [adapters for _, adapters in trainer.comparisons] == [[None], [None]]
        assert "keeps itself warm" in str(body)
        assert result.report.reason is not None
        assert "base 3.000; base, shown 2.500" in result.report.reason

    async def test_where_nothing_may_be_shown_the_models_alone_are_compared(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.8))

        body, result = await answer(replace(REQUEST, show=0), selector, trainer, tokenizer)

        assert body == QUESTION
        assert len(trainer.comparisons) == 1
        assert (result.report.adapter, result.report.stop) == (START.name, "auto")

    async def test_nothing_is_compared_for_a_request_that_the_engine_refuses(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker)
        adaptation = Adaptation(REQUEST, selector, trainer, Loads(), Starts(selector, "nano"))
        body = {"messages": [{"role": "user", "content": "refused"}]}

        same = await adaptation.show(body, PromptBuilder(1000, tokenizer, render_words))
        await adaptation.discard()

        assert same is body
        assert not trainer.comparisons

    async def test_without_room_for_text_the_models_alone_are_compared(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.8))
        adaptation = Adaptation(REQUEST, selector, trainer, Loads(), Starts(selector, "nano"))

        body = await adaptation.show({**QUESTION}, PromptBuilder(12, tokenizer, render_words))
        report = (await adaptation.run()).report
        await adaptation.discard()

        assert body == QUESTION
        assert (report.adapter, report.auto and report.auto["answers"]) == (START.name, "corpus")

    @pytest.mark.parametrize("show", [None, 0, 1])
    @pytest.mark.parametrize("strategy", [None, "nn"])
    async def test_the_selector_is_asked_once(
        self,
        selector: Selector,
        worker: TrainerWorker,
        tokenizer: Any,
        show: int | None,
        strategy: str | None,
    ) -> None:
        if show is not None:
            selector.calibrated = Calibration(0.1, 0.5, 1e-3, 4, 24, 90.0, 91.0, show=show)
        trainer = Trainer(worker, (3.0, 2.8, 2.7))
        request = replace(REQUEST, strategy=strategy)

        body, _ = await answer(request, selector, trainer, tokenizer)

        (selection,) = selector.selections
        assert (selection.steps, selection.shows_calibrated) == (SHOWN, True)
        assert selector.lookups == []
        # With a strategy of its own, a request shows what the corpus is calibrated to alone.
        shows = strategy is None or show == 1
        assert ("keeps itself warm" in str(body)) is shows

    async def test_the_comparison_is_a_stage_with_its_progress(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        seen: list[tuple[Stage, str]] = []

        class Watched(Trainer):
            async def compare(self, rows: Any, adapters: Any) -> tuple[tuple[float, ...], ...]:
                seen.append((adaptation.stage, adaptation.progress))
                return await super().compare(rows, adapters)

        adaptation = Adaptation(
            REQUEST, selector, Watched(worker), Loads(), Starts(selector, "nano")
        )
        await adaptation.show({**QUESTION}, PromptBuilder(1000, tokenizer, render_words))
        await adaptation.discard()

        assert seen == [(Stage.COMPARE, "adapting: comparing what could answer")] * 2
        assert (adaptation.stage, adaptation.progress) == (Stage.ANSWER, "adapting")

    @pytest.mark.parametrize("show", [0, 1])
    async def test_beside_an_adapter_of_a_calibrated_corpus_text_is_compared_all_the_same(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any, show: int
    ) -> None:
        selector.calibrated = Calibration(0.1, 0.5, 1e-3, 4, 24, 90.0, 91.0, show=show)
        trainer = Trainer(worker, (3.0, 2.8, 2.7))

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert "keeps itself warm" in str(body)
        assert len(trainer.comparisons) == 2
        assert (result.report.adapter, result.report.stop) == (START.name, "auto")

    @pytest.mark.parametrize("show", [0, 1])
    async def test_a_training_shows_what_the_corpus_is_calibrated_to(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any, show: int
    ) -> None:
        selector.calibrated = Calibration(0.1, 0.5, 1e-3, 4, 24, 90.0, 91.0, show=show)
        trainer = Trainer(worker, (3.0, 3.1, 2.9))

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert ("keeps itself warm" in str(body)) is (show == 1)
        assert len(trainer.requests) == 1
        assert result.report.auto is not None
        assert result.report.auto["answers"] == "steps"
        assert (result.report.shown or {}).get("sequences", 0) == show

    async def test_a_calibrated_corpus_without_an_adapter_shows_what_it_is_calibrated_to(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        selector.calibrated = Calibration(0.1, 0.5, 1e-3, 4, 24, 90.0, 91.0, show=1)
        selector.found = None
        trainer = Trainer(worker)

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert "keeps itself warm" in str(body)
        assert not trainer.comparisons
        assert (result.report.calibrated, result.report.auto) == (True, None)

    async def test_a_calibrated_corpus_without_an_adapter_is_trained_on(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        selector.calibrated = Calibration(0.1, 0.5, 1e-3, 4, 24, 90.0, 91.0, show=0)
        selector.found = None
        trainer = Trainer(worker)

        _, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert not trainer.comparisons
        assert len(trainer.requests) == 1
        assert (result.report.calibrated, result.report.auto) == (True, None)

    async def test_a_request_that_requires_an_adapter_is_not_answered_with_text_alone(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 3.1, 1.0))

        body, result = await answer(replace(REQUEST, required=True), selector, trainer, tokenizer)

        assert body == QUESTION
        assert len(trainer.comparisons) == len(trainer.requests) == 1
        assert result.report.adapted

    async def test_nothing_is_compared_where_only_text_could_be(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        selector.found = None
        trainer = Trainer(worker)

        await answer(replace(REQUEST, required=True), selector, trainer, tokenizer)

        assert not trainer.comparisons

    async def test_a_comparison_that_fails_leaves_the_steps(
        self,
        selector: Selector,
        worker: TrainerWorker,
        tokenizer: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        trainer = Trainer(worker, problem=RuntimeError("no memory"))

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert body == QUESTION
        assert (result.report.adapted, result.report.auto) == (True, None)
        assert "could not compare" in caplog.text

    async def test_text_that_cannot_be_compared_is_not_shown(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.8, 1.0), RuntimeError("no memory"), succeeds=1)

        body, result = await answer(REQUEST, selector, trainer, tokenizer)

        assert body == QUESTION
        assert (result.report.adapter, result.report.stop) == (START.name, "auto")

    async def test_half_of_the_seconds_is_left_for_training(
        self,
        selector: Selector,
        worker: TrainerWorker,
        tokenizer: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        trainer = Trainer(worker, (3.0, 2.8, 1.0), seconds=1000.0)
        request = replace(REQUEST, budget=replace(REQUEST.budget, seconds=4.0))

        body, result = await answer(request, selector, trainer, tokenizer)

        assert body == QUESTION
        assert (len(trainer.comparisons), len(trainer.requests)) == (1, 1)
        assert result.report.auto is None
        assert result.report.seconds[Stage.COMPARE] >= 1.0
        assert not caplog.records

    async def test_the_adapter_that_was_compared_answers(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        await answer(REQUEST, selector, Trainer(worker, (3.0, 2.8, 2.9)), tokenizer)

        # It is not sought again after the comparison: it may have gone by then.
        assert selector.reads == 1

    @pytest.mark.parametrize(
        ("losses", "ways", "answers"),
        [
            ((2.0, math.nan, 1.9), ["base", "base, shown"], "steps"),
            ((2.0, 1.5, math.inf), ["base", "corpus"], "corpus"),
        ],
    )
    async def test_a_way_whose_loss_is_not_finite_is_none(
        self,
        selector: Selector,
        worker: TrainerWorker,
        tokenizer: Any,
        losses: Sequence[float],
        ways: list[str],
        answers: str,
    ) -> None:
        _, result = await answer(REQUEST, selector, Trainer(worker, losses), tokenizer)

        assert result.report.auto is not None
        assert [*result.report.auto["losses"]] == ways
        assert result.report.auto["answers"] == answers

    async def test_why_nothing_could_be_chosen_is_the_reason(
        self, selector: Selector, worker: TrainerWorker, tokenizer: Any
    ) -> None:
        request = replace(REQUEST, corpus=None)

        body, result = await answer(request, selector, Trainer(worker), tokenizer)

        assert body == QUESTION
        assert result.report.reason is not None
        assert "no corpus" in result.report.reason
        with pytest.raises(AdaptationFailedError, match="no corpus"):
            await answer(replace(request, required=True), selector, Trainer(worker), tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"budget": INSTANT},
        {"budget": replace(AUTO, prefers_corpus=False)},
        {"budget": replace(AUTO, steps=0)},
        {"corpus": None},
        {"show": 4},
        {"start": "corpus"},
        {"start": "fresh"},
        {"strategy": "nn"},
        {"plan": "batched"},
        {"reuse": "conversation"},
        {"texts": ("a text",)},
        {"examples": (Example(({"role": "user", "content": "a"},)),)},
        {"probe_tokens": (1,)},
    ],
)
def test_only_a_request_that_leaves_everything_open_is_decided(change: dict[str, Any]) -> None:
    assert decides(REQUEST)
    assert not decides(replace(REQUEST, **change))


@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=20),
    st.lists(st.integers(0, 99), max_size=40),
    st.integers(20, 50),
)
def test_the_same_tokens_of_the_prompt_are_scored_after_a_text(
    probe: list[int], text: list[int], context: int
) -> None:
    row = row_after(text, probe, context)

    check_spans(row.scored, len(row))
    ((start, end),) = row.scored
    assert row.tokens[start:end] == tuple(probe[1:])
    assert len(row) == min(context, len(text) + len(probe))


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=20),
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.integers(10, 19), max_size=9),
)
def test_the_same_tokens_of_the_prompt_are_scored_in_a_chat(
    probe: list[int], before: list[int], after: list[int]
) -> None:
    # The first token of the words may be another one in the template.
    row = row_in_chat([*before, 20, *probe[1:], *after], probe)

    assert row is not None
    assert row.tokens == (*before, 20, *probe[1:])
    assert row.scored == ((len(before) + 1, len(row)),)


@pytest.mark.parametrize(
    "chat",
    [(1, 2, 9, 3, 4), (2, 3), (), (*[7] * (MAX_CHAT_TOKENS - 2), 1, 2, 3)],
    ids=["other tokens", "no token before them", "nothing", "too long"],
)
def test_words_that_cannot_be_scored_in_a_chat_are_compared_as_plain_text(
    chat: Sequence[int],
) -> None:
    probe, text, whole = (1, 2, 3), (5, 6), (8, 1, 2, 3, 9)

    assert row_in_chat(chat, probe) is None
    assert rows_to_compare(probe, [whole, chat], text, 9) == [
        Row.of(probe),
        row_after(text, probe, 9),
    ]
    assert rows_to_compare(probe, [chat], None, 9) == [Row.of(probe)]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({BASE: 2.0}, BASE),
        ({BASE: 2.0, CORPUS: 2.0}, BASE),
        ({BASE: 2.0, CORPUS: 1.99}, CORPUS),
        ({BASE: 2.0, SHOW: 2.01 * (1 - MIN_FALL_OF_BASE)}, BASE),
        ({BASE: 2.0, SHOW: 2.0 * (1 - MIN_FALL_OF_BASE)}, SHOW),
        ({BASE: 2.0, CORPUS: 1.5, BOTH: 1.51 * (1 - MIN_FALL_OF_CORPUS)}, CORPUS),
        ({BASE: 2.0, CORPUS: 1.5, BOTH: 1.5 * (1 - MIN_FALL_OF_CORPUS)}, BOTH),
    ],
)
def test_a_help_must_lower_the_loss_and_text_by_a_share(
    losses: dict[Way, float], best: Way
) -> None:
    choice = AutoChoice(losses)

    assert choice.best == best
    assert choice.takes_steps == (best == BASE)


def test_the_report_has_all_losses() -> None:
    choice = AutoChoice({BASE: 2.5, CORPUS: 2.25, BOTH: 2.125})

    assert choice.as_dict() == {
        "answers": "corpus, shown",
        "losses": {"base": 2.5, "corpus": 2.25, "corpus, shown": 2.125},
    }
