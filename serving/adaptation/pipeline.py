"""Adaptation: the pipeline of one request: select, train, load, answer, discard.

The engine asks for the adapter once vLLM has validated the request; the gateway discards it when
the answer has ended, failed or been abandoned. The pipeline does not know where the stages run.

A request never loses its adaptation silently: the report says why the base model answered, or the
adapter of its corpus as it was. A request that requires an adapter, and gets none, fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from adapters.adapter import Adapter
from adapters.training import TrainingProgress, TrainingResult, TrainingStop
from selection.access import OPERATOR, Principal
from selection.selector import Selection
from serving.adaptation.auto import COMPARING
from serving.adaptation.choice import Choice
from serving.adaptation.fallback_reasons import FAILED, NoAdapterError, no_step_reason
from serving.adaptation.reporting import AdaptationResult, build_report, describe_progress
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.shown import Body, PromptBuilder
from serving.adaptation.stages import Loads, Selects, Trains, train_in_time
from serving.adaptation.starts import StartingPoint, Starts, continued
from serving.conversations.adapter_cache import ConversationTurn
from serving.conversations.cached_adapter import CachedAdapter, ExamplesAdapter
from serving.conversations.examples_reuse import ExamplesReuse
from serving.engine.current_request import LoadedAdapter
from serving.errors import AdaptationFailedError, is_the_clients
from serving.observability.logs import log_failure
from serving.observability.tracing import span
from serving.report import AdaptationReport, Stage, StopReason

log = logging.getLogger(__name__)


class Adaptation:
    """The adaptation of one request.

    Args:
        request: what the request asks of its adaptation.
        selector, trainer, engine: the three stages.
        starts: the adapters of corpora.
        principal: on whose behalf the corpus is read.
        turn: its turn of a conversation, whose adapter is trained further; None to start afresh.
        examples: the reuse of the adapter of its examples; None to train one for this request.
        on_fallback: called once it is clear that the base model answers.
    """

    def __init__(
        self,
        request: AdaptationRequest,
        selector: Selects,
        trainer: Trains,
        engine: Loads,
        starts: Starts,
        principal: Principal = OPERATOR,
        turn: ConversationTurn | None = None,
        examples: ExamplesReuse | None = None,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        self._request, self._turn, self._examples = request, turn, examples
        self._trainer, self._engine, self._starts = trainer, engine, starts
        self._on_fallback, self._arrived = on_fallback, time.monotonic()
        self._choice = Choice(
            request, selector, trainer, starts, principal, self._seconds_left, self._enter
        )
        self._stage, self._progress = Stage.ANSWER, "adapting"
        self._result: AdaptationResult | None = None
        self._problem: Exception | None = None
        self._task: asyncio.Task[AdaptationResult] | None = None
        self._generations: list[asyncio.Task[None]] = []
        self._is_discarded = False

    @property
    def stage(self) -> Stage:
        """Where the request is: SELECT, COMPARE, TRAIN, LOAD or ANSWER."""
        return self._stage

    @property
    def progress(self) -> str:
        """The progress of the adaptation, in words for the client."""
        return COMPARING if self._stage is Stage.COMPARE else self._progress

    @property
    def report(self) -> AdaptationReport | None:
        """The report, once the adaptation has ended."""
        return self._result.report if self._result else None

    @property
    def problem(self) -> Exception | None:
        """Why the request fails; None while it does not."""
        return self._problem

    @property
    def may_adapt(self) -> bool:
        """Whether an adapter is to answer, or something is to be chosen for the prompt."""
        return self._request.needs_adapter or self.reads_prompt

    @property
    def reads_prompt(self) -> bool:
        """Whether `show` must be called: it may put something into the prompt, or compare on it."""
        return self._request.show != 0 or self._choice.is_open

    @property
    def is_pending(self) -> bool:
        """Whether the request waits for its adapter."""
        return self._request.adapts and self._result is None and self._problem is None

    def look_ahead(self) -> None:
        """As `Choice.look_ahead`; a request that vLLM refuses costs no more than that."""
        self._choice.look_ahead()

    async def run(self) -> AdaptationResult:
        """Adapt, once for all generations of the request.

        Raises:
            CorpusError: the corpus cannot be used, and another one must be named.
            AdaptationFailedError: there is no adapter, and the request required one.
            CancelledError: the request was discarded; what vLLM started for it may run after that.
        """
        if self._is_discarded:
            raise asyncio.CancelledError
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await asyncio.shield(self._task)

    async def show(self, body: Body, prompts: PromptBuilder) -> Body:
        """As `Choice.show`, unless vLLM refuses the request; `run` raises why choosing failed."""
        return await self._choice.show(body, prompts)

    async def adapter(self) -> LoadedAdapter | None:
        """The adapter that answers, as `run`; None for the base model."""
        return (await self.run()).adapter

    def track_generation(self, task: asyncio.Task[None]) -> None:
        """Keep the adapter until this generation has ended."""
        self._generations.append(task)

    def fail(self, problem: Exception) -> None:
        """Let the request fail."""
        self._problem = problem

    def store(self) -> None:
        """Cache the adapter for the conversation's next turn, once the answer has been read."""
        if self._turn is not None and self._result and self._result.reusable:
            self._turn.store(self._result.reusable)

    async def discard(self) -> None:
        """End what still runs for the request, then unload its adapter. Must be called once."""
        self._is_discarded = True
        for task in self._generations:
            task.cancel()
        await asyncio.gather(*self._generations, self._choice.discard(), return_exceptions=True)
        if self._task is None:
            return
        self._task.cancel()
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(result, AdaptationResult) and result.adapter is not None:
            keeps = self._starts.is_current(result.adapter.name)
            await self._engine.unload(result.adapter, keeps=keeps)

    async def _run(self) -> AdaptationResult:
        try:
            try:
                self._result = await self._adapt()
            except NoAdapterError as problem:
                self._result = self._fall_back(problem)
        except Exception as problem:
            is_ours = not is_the_clients(problem) and not isinstance(problem, AdaptationFailedError)
            # Notes are for the log, even those of a client's mistake.
            if not is_the_clients(problem) or hasattr(problem, "__notes__"):
                log_failure(log, "an adaptation failed", problem)
            if is_ours and not self._request.required:
                self._result = self._fall_back(NoAdapterError(FAILED, StopReason.FAILED))
            else:
                self._problem = AdaptationFailedError(FAILED) if is_ours else problem
                raise self._problem from None
        finally:
            if self._examples is not None:
                self._examples.release()
        return self._result

    async def _adapt(self) -> AdaptationResult:
        request, selection = self._request, None
        if request.budget.steps == 0:
            return await self._adapt_without_steps()
        # A corpus is asked for even where the adapter is cached: it may have been removed.
        if self._examples is None or request.corpus is not None:
            selection = await self._choice.selection()
        await self._choice.decide()
        start = await self._choice.start()
        auto = self._choice.auto
        if auto is not None and not auto.takes_steps and (start.adapter or not auto.best.corpus):
            if start.adapter is None:
                raise NoAdapterError(auto.no_adapter_reason, StopReason.AUTO, selection)
            report = self._report(None, StopReason.AUTO, selection, None)
            return await self._answer(start.adapter, start, report)
        if self._examples is not None:
            cached = await self._examples.claim(
                selection.corpus if selection else None,
                start.name,
                self._seconds_left(),
                # An adapter of fewer steps than were asked for is not what others ask for.
                is_shared=request.shed is None,
            )
            if cached is not None:
                report = self._report(None, StopReason.REUSED, selection, None, cached)
                return await self._answer(cached.adapter, start, report)
        if selection is None:
            selection = await self._choice.selection()
        earlier = self._turn.find(selection.corpus, start.name) if self._turn else None
        start, earlier = continued(start, earlier, request.start)
        try:
            training = await self._train(selection, start, earlier)
        except NoAdapterError as problem:
            start = start.after(problem.training)
            if start.adapter is None:
                raise
            report = self._report(problem.reason, problem.stop, selection, problem.training)
            return await self._answer(start.adapter, start, report)
        assert training.adapter is not None
        start = start.after(training)
        stop, budget = StopReason(training.stop), request.budget_for(selection.calibration)
        # Of a selection that is longer, since more is shown, only a part was trained on.
        if training.stop is TrainingStop.STEPS and len(selection.ids) <= budget.steps:
            stop = StopReason(selection.stop)
        report = self._report(None, stop, selection, training, earlier)
        result = await self._answer(training.adapter, start, report)
        if self._examples is not None and request.shed is None:
            made = ExamplesAdapter(training.adapter, report.sources)
            self._examples.store(selection.corpus, made, start.name)
        if self._turn is None:
            return result
        reusable = CachedAdapter.after(earlier, training.adapter, start.reason)
        return replace(result, reusable=reusable)

    async def _adapt_without_steps(self) -> AdaptationResult:
        """Answer with the adapter of the corpus where the budget is `instant`."""
        request, selection = self._request, None
        if request.show != 0 and request.shows_chosen:
            # Why nothing could be chosen is the reason why nothing was shown.
            with suppress(NoAdapterError):
                selection = await self._choice.selection()
        if not request.budget.instant:
            reason = no_step_reason(request.budget, request.clamped)
            raise NoAdapterError(reason, StopReason.NONE, selection)
        start = await self._choice.start()
        if start.adapter is None:
            reason = f"`instant` takes no step, and no adapter is there to answer: {start.reason}"
            stop = StopReason.INSTANT if self._choice.request.corpus else StopReason.CORPUS
            raise NoAdapterError(reason, stop, selection)
        report = self._report(None, StopReason.INSTANT, selection, None)
        return await self._answer(start.adapter, start, report)

    async def _answer(
        self, adapter: Adapter, start: StartingPoint, report: AdaptationReport
    ) -> AdaptationResult:
        """Load the adapter that answers, and complete its report."""
        started = time.monotonic()
        with self._enter(Stage.LOAD):
            loaded = await self._engine.load(adapter)
        report = replace(
            report,
            adapted=True,
            adapter=loaded.name,
            start=start.as_dict(),
            seconds={**report.seconds, Stage.LOAD: time.monotonic() - started},
            spent_seconds=self._seconds_spent(),
        )
        return AdaptationResult(report, loaded)

    async def _train(
        self, selection: Selection, start: StartingPoint, earlier: CachedAdapter | None
    ) -> TrainingResult:
        weights = earlier.weights if earlier else None
        request = self._request.training(selection, self._seconds_left(), start, weights)

        def show(step: TrainingProgress) -> None:
            self._progress = describe_progress(step, selection)

        # Reporting a step costs the trainer time.
        on_step = show if self._request.progress else None
        try:
            with self._enter(Stage.TRAIN):
                return await train_in_time(
                    self._trainer, request, on_step, self._request.budget, selection
                )
        except Exception as problem:
            # Without the adapter of a corpus, `_run` decides what happens.
            if start.adapter is None or isinstance(problem, NoAdapterError):
                raise
            log_failure(log, "a training failed", problem)
            raise NoAdapterError(FAILED, StopReason.FAILED, selection) from None

    @contextmanager
    def _enter(self, stage: Stage) -> Iterator[None]:
        self._stage = stage
        try:
            with span(stage):
                yield
        finally:
            self._stage = Stage.ANSWER

    def _fall_back(self, problem: NoAdapterError) -> AdaptationResult:
        """The base model answers, unless the request required an adapter.

        Raises:
            AdaptationFailedError: it did.
        """
        if self._request.required and self._request.needs_adapter:
            raise AdaptationFailedError(f"an adapter was required, but {problem.reason}")
        self._on_fallback()
        return AdaptationResult(
            self._report(problem.reason, problem.stop, problem.selection, problem.training)
        )

    def _seconds_spent(self) -> float:
        return time.monotonic() - self._arrived

    def _seconds_left(self) -> float | None:
        """Seconds left of the budget, negative once it is exceeded; None without a limit."""
        seconds = self._request.budget.seconds
        return None if seconds is None else seconds - self._seconds_spent()

    def _report(
        self,
        reason: str | None,
        stop: StopReason,
        selection: Selection | None,
        training: TrainingResult | None,
        reused: CachedAdapter | ExamplesAdapter | None = None,
    ) -> AdaptationReport:
        return build_report(
            self._choice,
            selection,
            training,
            stop=stop,
            reason=reason,
            reused=reused,
            spent_seconds=self._seconds_spent(),
        )
