"""THE JOURNEY of one request: budget, select, train, load, answer, discard.

`Adaptation` is one request's. The engine asks it for the adapter once vLLM has found the request
sound; the door discards it when the answer has ended, failed or been abandoned. It knows the three
stages by what they do, not where they run: in this process, or as Ray deployments.

A request never silently loses its adaptation: the report says why the base model answered, unless
the request required an adapter; then it fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from adapters.adapter import Adapter
from adapters.training import Probe, TrainingProgress, TrainingRequest, TrainingResult, TrainingStop
from selection.access import OPERATOR, Principal
from selection.corpus.sqlite_store import CorpusNotFoundError
from selection.limit import SecondsSpentError
from selection.request import SelectionRequest
from selection.selector import Selection
from serving.adaptation.reasons import no_adapter, no_step
from serving.adaptation.wish import AdaptationRequest
from serving.conversations.adapter_cache import CachedAdapter
from serving.engine.current_request import LoadedAdapter
from serving.errors import AdaptationFailedError, is_the_clients
from serving.observability.tracing import span
from serving.report import AdaptationReport, Stage, StopReason, used_sources

log = logging.getLogger(__name__)

# That a stage may answer late: a step that was begun, on a large model, and the way here.
LATE_SECONDS = 10.0
Result = TypeVar("Result")


class _OverdueError(Exception):
    """A stage has not answered in the seconds of the budget."""


class Selects(Protocol):
    """Stage 1."""

    async def select(self, request: SelectionRequest, seconds: float | None) -> Selection:
        """As `selection.selector.Selector.select`, within `seconds`; cancelling ends it."""


class Trains(Protocol):
    """Stage 2."""

    async def train(
        self, request: TrainingRequest, on_step: Callable[[TrainingProgress], None] | None
    ) -> TrainingResult:
        """As `adapters.trainer.Trainer.train`; waiting counts towards the seconds; cancelling ends
        it.
        """


class Loads(Protocol):
    """Stage 3."""

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        """As `serving.engine.engine.Engine.load`."""

    async def unload(self, loaded: LoadedAdapter) -> None:
        """As `serving.engine.engine.Engine.unload`."""


class Adaptation:
    """One request's adapter, from wish to discard.

    Args:
        wish: what the request asks for.
        selector, trainer, engine: the three stages.
        reader: on whose behalf the corpus is read.
        find: the adapter to train further, of the conversation's previous turn, by the id of the
            corpus; None for a fresh one.
    """

    def __init__(
        self,
        wish: AdaptationRequest,
        selector: Selects,
        trainer: Trains,
        engine: Loads,
        reader: Principal = OPERATOR,
        find: Callable[[str], CachedAdapter | None] = lambda corpus: None,
    ) -> None:
        self.report: AdaptationReport | None = None
        self.problem: Exception | None = None
        self.progress = "adapting"  # what can be said of it while it runs
        self.stage = Stage.ANSWER  # where it is: SELECT, TRAIN, LOAD or ANSWER
        self.corpus = ""  # id of the one that was chosen from
        self.earlier: CachedAdapter | None = None  # what is trained further
        self.adapter: Adapter | None = None  # that answers
        # Called once it is clear that there will be no adapter.
        self.on_unadapted: Callable[[], None] = lambda: None
        self._wish, self._reader, self._find = wish, reader, find
        self._selector, self._trainer, self._engine = selector, trainer, engine
        self._arrived = time.monotonic()
        self._journey: asyncio.Task[LoadedAdapter | None] | None = None
        self._answers: list[asyncio.Task[None]] = []
        self._discarded = False

    @property
    def may_adapt(self) -> bool:
        """Whether the budget allows a step."""
        return self._wish.budget.steps > 0

    @property
    def learns(self) -> bool:
        """Whether it is to get an adapter, and has not yet."""
        wished = self.may_adapt and self._wish.corpus is not None
        return wished and self.report is None and self.problem is None

    async def speaker(self) -> LoadedAdapter | None:
        """The adapter that answers, or None for the base model; all parts of an answer share it.

        Raises:
            CorpusError: a corpus that the client must name otherwise.
            AdaptationFailedError: there is none and the request required one.
            CancelledError: the request was discarded; what vLLM began for it may come to life after
                that.
        """
        if self._discarded:
            raise asyncio.CancelledError
        if self._journey is None:
            self._journey = asyncio.create_task(self._travel())
        return await asyncio.shield(self._journey)

    def answering(self, task: asyncio.Task[None]) -> None:
        """Told of each generation by the engine."""
        self._answers.append(task)

    async def discard(self) -> None:
        """End whatever still runs for this request, then forget its adapter. Must be called once."""
        self._discarded = True
        for task in self._answers:
            task.cancel()
        await asyncio.gather(*self._answers, return_exceptions=True)
        if self._journey is None:
            return
        self._journey.cancel()
        (loaded,) = await asyncio.gather(self._journey, return_exceptions=True)
        if isinstance(loaded, LoadedAdapter):
            await self._engine.unload(loaded)

    async def _travel(self) -> LoadedAdapter | None:
        try:
            return await self._adapt()
        except Exception as problem:
            unforeseen = not is_the_clients(problem) and not isinstance(
                problem, AdaptationFailedError
            )
            # They are for the log, whosever mistake it was.
            if unforeseen or hasattr(problem, "__notes__"):
                log.exception("an adaptation failed")
            if unforeseen:
                reason = "the adaptation failed; the server's log says why"
                if not self._wish.required:
                    self._unadapted(reason, StopReason.FAILED)
                    return None
                problem = AdaptationFailedError(reason)
            self.problem = problem
            raise problem from None

    async def _adapt(self) -> LoadedAdapter | None:
        wish = self._wish
        if wish.budget.steps == 0:
            self._unadapted(no_step(wish.budget, wish.cut), StopReason.NONE)
            return None
        if wish.corpus is None:
            self._unadapted(
                "no corpus: name one in `adaptation.corpus`, or start with --corpus",
                StopReason.CORPUS,
            )
            return None

        try:
            with self._in(Stage.SELECT):
                selection = await self._in_time(
                    self._selector.select(
                        SelectionRequest(
                            wish.prompts,
                            wish.corpus,
                            steps=wish.budget.steps,
                            alpha=wish.budget.alpha,
                            strategy=wish.strategy,
                            filter=wish.only,
                            seed=wish.seed,
                            principal=self._reader,
                        ),
                        self._left(),
                    )
                )
        except (SecondsSpentError, _OverdueError):
            self._unadapted("the seconds were spent before anything was chosen", StopReason.SECONDS)
            return None
        except CorpusNotFoundError:
            if wish.named:
                raise
            # The server's is not this key's.
            self._unadapted("no corpus: name one in `adaptation.corpus`", StopReason.CORPUS)
            return None
        if not selection.ids:
            found = "is empty" if wish.only is None else "has no document that passes the filter"
            self._unadapted(f"corpus {wish.corpus!r} {found}", StopReason.CORPUS, selection)
            return None

        left = self._left()

        def stepped(step: TrainingProgress) -> None:
            prompt = (
                "" if step.probe_loss is None else f"loss of the prompt {step.probe_loss:.3f}, "
            )
            self.progress = (
                f"adapting: step {step.steps} of {step.total_steps}, {prompt}"
                f"sigma {selection.uncertainty[step.sequences_used]:.3f}, {step.seconds_left:.1f} seconds left"
            )

        self.corpus, self.earlier = selection.corpus, self._find(selection.corpus)
        start = self.earlier.weights if self.earlier else None
        try:
            with self._in(Stage.TRAIN):
                training = await self._in_time(
                    self._trainer.train(
                        TrainingRequest(
                            selection.sequences,
                            seed=wish.seed,
                            seconds=left,
                            plan=wish.plan,
                            start=start,
                            learning_rate=selection.calibration.learning_rate
                            if selection.calibration
                            else None,
                            probe=Probe(wish.tokens, self._gain(selection))
                            if len(wish.tokens) > 1
                            else None,
                        ),
                        # Each step that is told of costs the trainer time.
                        stepped if wish.progress else None,
                    )
                )
        except _OverdueError:
            self._unadapted(
                "the seconds were spent before the trainer answered", StopReason.SECONDS, selection
            )
            return None
        if training.adapter is None:
            self._unadapted(
                no_adapter(training.stop, wish.budget, left),
                StopReason(training.stop),
                selection,
                training,
            )
            return None

        started = time.monotonic()
        with self._in(Stage.LOAD):
            loaded = await self._engine.load(training.adapter)
        self.adapter = training.adapter
        stop = selection.stop if training.stop is TrainingStop.STEPS else training.stop
        self._tell(None, StopReason(stop), selection, training, loaded, time.monotonic() - started)
        return loaded

    async def _in_time(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What a stage answers, unless the seconds are over: it may hang, or be on its way back
        from the dead.
        """
        left, task = self._left(), asyncio.create_task(work)
        # It may be nobody's any more.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.wait(
                [task], timeout=None if left is None else max(0.0, left) + LATE_SECONDS
            )
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        if not task.done():
            task.cancel()
            raise _OverdueError
        return task.result()

    @contextmanager
    def _in(self, stage: Stage) -> Iterator[None]:
        self.stage = stage
        try:
            with span(stage):
                yield
        finally:
            self.stage = Stage.ANSWER

    def _unadapted(
        self,
        reason: str,
        stop: StopReason,
        selection: Selection | None = None,
        training: TrainingResult | None = None,
    ) -> None:
        if self._wish.required and self._wish.budget.steps > 0:
            raise AdaptationFailedError(f"an adapter was required, but {reason}")
        self.on_unadapted()
        self._tell(reason, stop, selection, training)

    def _gain(self, selection: Selection | None) -> float | None:
        """What each sequence must bring: the corpus's own where the budget leaves it; None of a
        prompt of one token.
        """
        budget, kept = self._wish.budget, selection.calibration if selection else None
        if budget.gain is None or len(self._wish.tokens) < 2:
            return None
        return kept.gain if budget.own_gain and kept else budget.gain

    def _spent(self) -> float:
        return time.monotonic() - self._arrived

    def _left(self) -> float | None:
        """Seconds of the budget that are left, below 0 where it was exceeded; None where it has
        none.
        """
        return (
            None if self._wish.budget.seconds is None else self._wish.budget.seconds - self._spent()
        )

    def _tell(
        self,
        reason: str | None,
        stop: StopReason,
        selection: Selection | None = None,
        training: TrainingResult | None = None,
        loaded: LoadedAdapter | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        seconds = (
            {Stage(stage): each for stage, each in selection.seconds.items()} if selection else {}
        )
        if training:
            seconds |= {
                Stage.QUEUE: training.waited,
                Stage.TRAIN: training.seconds - training.waited,
            }
        if loaded:
            seconds[Stage.LOAD] = load_seconds
        taken, kept = (training.sequences_used, training.adapter_sequences) if training else (0, 0)
        used = selection.ids[:kept] if selection else ()
        truncation = self._wish.truncation or (selection.truncation if selection else None)
        self.report = AdaptationReport(
            adapted=loaded is not None,
            reason=reason,
            budget=replace(self._wish.budget, gain=self._gain(selection)),
            calibrated=selection is not None and selection.calibration is not None,
            cut=self._wish.cut,
            degraded=self._wish.degraded,
            targets=truncation.as_dict() if truncation else None,
            corpus=self._wish.corpus,
            seed=self._wish.seed,
            reused=self.earlier.reused.as_dict() if self.earlier and loaded else None,
            stop=stop,
            uncertainty=selection.uncertainty[: taken + 1] if selection else (),
            irreducible=selection.irreducible if selection else None,
            losses=training.losses if training else (),
            prompt_losses=training.probe_losses if training else (),
            kept=kept,
            sources=used_sources([source for source, _ in selection.sources], used)
            if selection
            else (),
            seconds=seconds,
            spent_seconds=self._spent(),
            adapter=loaded.name if loaded else None,
        )
