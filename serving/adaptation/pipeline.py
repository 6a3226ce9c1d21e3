"""Adaptation: the pipeline of one request: select, train, load, answer, discard.

The engine asks for the adapter once vLLM has validated the request; the gateway discards it when
the answer has ended, failed or been abandoned. The pipeline knows the three stages by their
protocols, not where they run: in this process, or as Ray deployments.

A request never loses its adaptation silently: the report says why the base model answered, unless
the request required an adapter; then it fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from adapters.training import TrainingProgress, TrainingResult, TrainingStop
from selection.access import OPERATOR, Principal
from selection.errors import CorpusNotFoundError
from selection.limit import SecondsSpentError
from selection.selector import Selection
from serving.adaptation.fallback_reasons import no_adapter_reason, no_step_reason
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.stages import Loads, OverdueError, Selects, Trains, in_time
from serving.conversations.adapter_cache import CachedAdapter, ConversationTurn
from serving.engine.current_request import LoadedAdapter
from serving.errors import AdaptationFailedError, is_the_clients
from serving.observability.tracing import span
from serving.report import AdaptationReport, Stage, StopReason, used_sources

log = logging.getLogger(__name__)

_FAILED = "the adaptation failed; the server's log says why"


@dataclass(frozen=True)
class AdaptationResult:
    """The end of an adaptation, before the answer.

    Attributes:
        report: report for the client.
        adapter: adapter that answers; None for the base model.
        reusable: the same adapter, for the next turn; None outside a conversation.
    """

    report: AdaptationReport
    adapter: LoadedAdapter | None = None
    reusable: CachedAdapter | None = None


class _NoAdapterError(Exception):
    """The adaptation ends without an adapter: the reason, what ended it, and its results so far."""

    def __init__(
        self,
        reason: str,
        stop: StopReason,
        selection: Selection | None = None,
        training: TrainingResult | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.stop = reason, stop
        self.selection, self.training = selection, training


class Adaptation:
    """The adaptation of one request.

    Args:
        request: what the request asks of its adaptation.
        selector, trainer, engine: the three stages.
        principal: on whose behalf the corpus is read.
        turn: its turn of a conversation, whose adapter is trained further; None to start afresh.
        on_fallback: called once it is clear that the base model answers.
    """

    def __init__(
        self,
        request: AdaptationRequest,
        selector: Selects,
        trainer: Trains,
        engine: Loads,
        principal: Principal = OPERATOR,
        turn: ConversationTurn | None = None,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        self._request, self._principal, self._turn = request, principal, turn
        self._selector, self._trainer, self._engine = selector, trainer, engine
        self._on_fallback = on_fallback
        self._arrived = time.monotonic()
        self._stage, self._progress = Stage.ANSWER, "adapting"
        self._result: AdaptationResult | None = None
        self._problem: Exception | None = None
        self._task: asyncio.Task[AdaptationResult] | None = None
        self._generations: list[asyncio.Task[None]] = []
        self._is_discarded = False

    @property
    def stage(self) -> Stage:
        """Where the request is: SELECT, TRAIN, LOAD or ANSWER."""
        return self._stage

    @property
    def progress(self) -> str:
        """The progress of the adaptation, in words for the client."""
        return self._progress

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
        """Whether the budget allows a step."""
        return self._request.budget.steps > 0

    @property
    def is_pending(self) -> bool:
        """Whether the request waits for its adapter."""
        return self._request.adapts and self._result is None and self._problem is None

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
        await asyncio.gather(*self._generations, return_exceptions=True)
        if self._task is None:
            return
        self._task.cancel()
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(result, AdaptationResult) and result.adapter is not None:
            await self._engine.unload(result.adapter)

    async def _run(self) -> AdaptationResult:
        try:
            try:
                self._result = await self._adapt()
            except _NoAdapterError as problem:
                self._result = self._fall_back(problem)
        except Exception as problem:
            is_ours = not is_the_clients(problem) and not isinstance(problem, AdaptationFailedError)
            # Notes are for the log, even those of a client's mistake.
            if is_ours or hasattr(problem, "__notes__"):
                log.exception("an adaptation failed")
            if is_ours and not self._request.required:
                self._result = self._fall_back(_NoAdapterError(_FAILED, StopReason.FAILED))
            else:
                self._problem = AdaptationFailedError(_FAILED) if is_ours else problem
                raise self._problem from None
        return self._result

    async def _adapt(self) -> AdaptationResult:
        selection = await self._select()
        earlier = self._turn.find(selection.corpus) if self._turn else None
        training = await self._train(selection, earlier)
        assert training.adapter is not None
        started = time.monotonic()
        with self._enter(Stage.LOAD):
            loaded = await self._engine.load(training.adapter)
        seconds = time.monotonic() - started
        stop = selection.stop if training.stop is TrainingStop.STEPS else training.stop
        report = self._report(None, StopReason(stop), selection, training)
        report = replace(
            report,
            adapted=True,
            adapter=loaded.name,
            reused=earlier.as_dict() if earlier else None,
            seconds={**report.seconds, Stage.LOAD: seconds},
        )
        if self._turn is None:
            return AdaptationResult(report, loaded)
        return AdaptationResult(report, loaded, CachedAdapter.after(earlier, training.adapter))

    async def _select(self) -> Selection:
        request = self._request
        if request.budget.steps == 0:
            raise _NoAdapterError(no_step_reason(request.budget, request.clamped), StopReason.NONE)
        if request.corpus is None:
            raise _NoAdapterError(
                "no corpus: name one in `adaptation.corpus`, or start with --corpus",
                StopReason.CORPUS,
            )
        try:
            with self._enter(Stage.SELECT):
                selecting = self._selector.select(
                    request.selection(request.corpus, self._principal), self._seconds_left()
                )
                selection = await in_time(selecting, self._seconds_left())
        except (SecondsSpentError, OverdueError):
            reason = "the seconds were spent before anything was chosen"
            raise _NoAdapterError(reason, StopReason.SECONDS) from None
        except CorpusNotFoundError:
            if request.corpus_explicit:
                raise
            # The server's corpus is not this key's to see.
            reason = "no corpus: name one in `adaptation.corpus`"
            raise _NoAdapterError(reason, StopReason.CORPUS) from None
        if not selection.ids:
            what = (
                "is empty" if request.filter is None else "has no document that passes the filter"
            )
            raise _NoAdapterError(f"corpus {request.corpus!r} {what}", StopReason.CORPUS, selection)
        return selection

    async def _train(self, selection: Selection, earlier: CachedAdapter | None) -> TrainingResult:
        left = self._seconds_left()

        def show(step: TrainingProgress) -> None:
            prompt = (
                "" if step.probe_loss is None else f"loss of the prompt {step.probe_loss:.3f}, "
            )
            self._progress = (
                f"adapting: step {step.steps} of {step.total_steps}, {prompt}"
                f"sigma {selection.uncertainty[step.sequences_used]:.3f}, "
                f"{step.seconds_left:.1f} seconds left"
            )

        try:
            with self._enter(Stage.TRAIN):
                start = earlier.weights if earlier else None
                training_request = self._request.training(selection, left, start)
                # Reporting a step costs the trainer time.
                on_step = show if self._request.progress else None
                training = await in_time(self._trainer.train(training_request, on_step), left)
        except OverdueError:
            reason = "the seconds were spent before the trainer answered"
            raise _NoAdapterError(reason, StopReason.SECONDS, selection) from None
        if training.adapter is None:
            reason = no_adapter_reason(training.stop, self._request.budget, left)
            raise _NoAdapterError(reason, StopReason(training.stop), selection, training)
        return training

    @contextmanager
    def _enter(self, stage: Stage) -> Iterator[None]:
        self._stage = stage
        try:
            with span(stage):
                yield
        finally:
            self._stage = Stage.ANSWER

    def _fall_back(self, problem: _NoAdapterError) -> AdaptationResult:
        """The base model answers, unless the request required an adapter.

        Raises:
            AdaptationFailedError: it did.
        """
        if self._request.required and self.may_adapt:
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
    ) -> AdaptationReport:
        """The report without what only an adapted answer has."""
        request, calibration = self._request, selection.calibration if selection else None
        seconds = {
            Stage(name): each for name, each in (selection.seconds if selection else {}).items()
        }
        if training:
            seconds[Stage.QUEUE] = training.waited
            seconds[Stage.TRAIN] = training.seconds - training.waited
        used, learnt = 0, 0
        if training:
            used, learnt = training.sequences_used, training.adapter_sequences
        truncation = request.truncation or (selection.truncation if selection else None)
        return AdaptationReport(
            adapted=False,
            reason=reason,
            budget=replace(request.budget, gain=request.gain(calibration)),
            calibrated=calibration is not None,
            clamped=request.clamped,
            shed=request.shed,
            targets=truncation.as_dict() if truncation else None,
            corpus=request.corpus,
            seed=request.seed,
            reused=None,
            stop=stop,
            uncertainty=selection.uncertainty[: used + 1] if selection else (),
            irreducible=selection.irreducible if selection else None,
            losses=training.losses if training else (),
            prompt_losses=training.probe_losses if training else (),
            learnt=learnt,
            sources=used_sources(
                [source for source, _ in selection.sources], selection.ids[:learnt]
            )
            if selection
            else (),
            seconds=seconds,
            spent_seconds=self._seconds_spent(),
            adapter=None,
        )
