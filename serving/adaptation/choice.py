"""Choice: what one request learns from, shows and starts from, and which of these `auto` uses."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from adapters.model.row import Row
from selection.access import Principal
from selection.corpus.sqlite_store import Source
from selection.corpus.trained.manifest import StartFound
from selection.errors import CorpusNotFoundError
from selection.limit import SecondsSpentError
from selection.request import SelectionRequest
from selection.selector import Selection
from serving.adaptation.auto import BASE, CORPUS, AutoChoice, Way, decides, rows_to_compare
from serving.adaptation.candidates import example_sources
from serving.adaptation.fallback_reasons import NoAdapterError
from serving.adaptation.prompts import SHOWN, SHOWN_IN_CHAT
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.shown import Body, PromptBuilder, Prompts, Shown
from serving.adaptation.stages import OverdueError, Result, Selects, Trains, in_time
from serving.adaptation.starts import StartingPoint, Starts
from serving.engine.rendering import PromptRefusedError
from serving.observability.logs import log_failure
from serving.report import Stage, StopReason

log = logging.getLogger(__name__)


class Choice:
    """The choice of one request.

    Args:
        request: what the request asks of its adaptation.
        selector: stage that chooses.
        trainer: stage that compares, for `auto`.
        starts: the adapters of corpora.
        principal: on whose behalf the corpus is read.
        seconds_left: gives the seconds left of the budget; None without a limit.
        enter: context of a stage.

    Attributes:
        request: the request, without the server's corpus if that is not the principal's to see, and
            with the number of sequences to show once that is known.
        lookup_seconds: seconds that the lookup of the corpus's adapter took, 0 without one.
        shown: what was put into the prompt; None if nothing was to be shown.
        auto: what `auto` has decided; None where it decides nothing.
        is_open: whether `auto` is still to decide.
        compare_seconds: seconds that this took, 0 without it.
    """

    def __init__(
        self,
        request: AdaptationRequest,
        selector: Selects,
        trainer: Trains,
        starts: Starts,
        principal: Principal,
        seconds_left: Callable[[], float | None],
        enter: Callable[[Stage], AbstractContextManager[None]],
    ) -> None:
        self.request = request
        self._selector, self._trainer = selector, trainer
        self._starts, self._principal = starts, principal
        self._seconds_left, self._enter = seconds_left, enter
        self.lookup_seconds = self.compare_seconds = 0.0
        self.shown: Shown | None = None
        self.auto: AutoChoice | None = None
        self._start: StartingPoint | None = None
        # A request with another budget than `auto` is not looked at any further.
        self.is_open = request.budget.prefers_corpus and decides(request)
        self._considers_text, self._calibrated_show = False, 0
        self._task: asyncio.Task[Selection] | None = None
        self._lookup: asyncio.Task[StartFound | None] | None = None

    async def selection(self) -> Selection:
        """The sequences chosen; calls after the first give the same.

        Raises:
            NoAdapterError: nothing can be chosen.
            CorpusError: the corpus cannot be used, and another one must be named.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._select())
        return await asyncio.shield(self._task)

    async def _number_to_show(self, is_chat: bool) -> int:
        """As many as the request, or a calibrated corpus, says, or as `auto` considers: beside an
        adapter of the corpus in any case, since calibrations are of trainings from scratch.
        """
        if self.request.show is None:
            selection = await self._selection_if_any()
            calibration = selection.calibration if selection else None
            show = calibration.show if calibration else 0
            has_adapter = selection is not None and selection.start is not None
            if self.is_open and (calibration is None or has_adapter):
                self._considers_text, show = True, SHOWN_IN_CHAT if is_chat else SHOWN
                self._calibrated_show = calibration.show if calibration else 0
            # The lookup may have found that the server's corpus is not the principal's to see.
            self.request = replace(self.request, show=show)
        return self.request.show or 0

    async def show(self, body: Body, prompts: PromptBuilder) -> Body:
        """Put what the request shows into its prompt, as far as it fits; `auto` decides here
        whether to.

        Args:
            body: body of the request, as vLLM's application takes it.
            prompts: puts sequences into the prompts of the request's API.
        """
        before: Prompts = ()
        is_chat = "prompt" not in body
        if self.is_open and (self.request.show is None or is_chat):
            try:
                # Nothing is chosen for a request that the engine refuses.
                before = await prompts.render(body)
            except PromptRefusedError:
                return body
        asked = await self._number_to_show(is_chat)
        longer, shown = body, Shown(asked)
        if asked > 0:
            longer, shown = await prompts.show(body, asked, self.to_show, before)
        if self._considers_text and not shown.sequences:
            # `auto` compares the models alone.
            self.request, self._considers_text, asked = replace(self.request, show=0), False, 0
        if self.is_open:
            text = prompts.tokens(shown) if self._considers_text else None
            seen = [before, shown.prompts] if self._considers_text else [before]
            chats = [tokens for (tokens,) in seen] if is_chat else []
            probe = self.request.probe_tokens
            await self._decide(rows_to_compare(probe, chats, text, prompts.context), is_chat)
        if self._considers_text and not (self.auto is not None and self.auto.best.shown):
            # As many as go with a training from scratch, if that follows.
            trains = self.auto is None or self.auto.takes_steps
            asked = self._calibrated_show if trains else 0
            if asked > 0:
                longer, shown = await prompts.show(body, asked, self.to_show, before)
        if asked == 0:
            return body
        self.shown = shown
        return longer

    async def to_show(self) -> list[Source]:
        """The different sequences to show, the most relevant first: of a selection, in the order in
        which each was first chosen.

        Raises:
            NoAdapterError, CorpusError: as `selection`.
        """
        if not self.request.shows_chosen:
            return example_sources(self.request.examples)
        selection = await self.selection()
        sources = {source.sequence: source for source, _ in selection.sources}
        return [sources[sequence] for sequence in dict.fromkeys(selection.ids)]

    async def start(self) -> StartingPoint:
        """What the adapter of a request with steps starts from, or which adapter answers without
        one.

        Raises:
            NoAdapterError, CorpusError: as `selection`; or the request requires the adapter of a
                corpus, and it cannot be used.
        """
        if self._start is None:
            self._start = await self._resolve_start()
        if self.auto is not None and self._start.adapter is not None and not self.auto.best.corpus:
            return StartingPoint(reason=self.auto.fresh_reason)
        return self._start

    async def decide(self) -> None:
        """Let `auto` decide, unless it has: where no text of its own choice may be shown."""
        if self.is_open:
            await self._decide([Row.of(self.request.probe_tokens)], is_chat=False)

    async def _decide(self, rows: Sequence[Row], is_chat: bool) -> None:
        """Compare what could answer by `rows_to_compare`; what could not be is left out."""
        self.is_open = False
        started = time.monotonic()
        try:
            await self._compare(is_chat, *rows)
        # The selection is asked for again, and reports or raises its error; or time was short.
        except (NoAdapterError, OverdueError):
            pass
        except Exception as problem:
            log_failure(log, "`auto` could not compare all that could answer", problem)
        finally:
            self.compare_seconds = time.monotonic() - started

    async def _compare(self, is_chat: bool, alone: Row, after_text: Row | None = None) -> None:
        await self.selection()
        start, request = await self.start(), self.request
        weights = start.adapter.weights if start.adapter else None
        # Text alone would leave a request without the adapter that it requires.
        if weights is None and (after_text is None or request.required):
            return
        models = [BASE] if weights is None else [BASE, CORPUS]
        losses = await self._losses(alone, [None, weights][: len(models)])
        measured = zip(models, losses, strict=True)
        finite = {way: loss for way, loss in measured if math.isfinite(loss)}
        if BASE not in finite:
            return
        self.auto = auto = AutoChoice(finite)
        if after_text is None or (request.required and not auto.best.corpus):
            return
        if auto.best.corpus and not is_chat:
            # A completion continues a text like those of the corpus; a chat may ask for anything.
            self.auto = AutoChoice(finite, shows_beside_corpus=True)
            return
        shown = Way(auto.best.corpus, shown=True)
        (loss,) = await self._losses(after_text, [weights if shown.corpus else None])
        if math.isfinite(loss):
            self.auto = AutoChoice({**finite, shown: loss})

    async def _losses(self, row: Row, adapters: Sequence[bytes | None]) -> list[float]:
        """The loss of a row under each adapter, within half of the seconds left: the rest is for
        what follows.

        Raises:
            OverdueError: it took longer.
        """
        left = self._seconds_left()
        half = None if left is None else left / 2
        with self._enter(Stage.COMPARE):
            comparing = in_time(self._trainer.compare([row], adapters), half, grace=0.0)
            return [loss for (loss,) in await comparing]

    async def _resolve_start(self) -> StartingPoint:
        request = self.request
        if request.start == "fresh":
            return StartingPoint(reason="the request asked for it")
        found = await self._find_start()
        if found is None:
            reason = "the request has no corpus: name one in `adaptation.corpus` to use its adapter"
            start = StartingPoint(reason=reason)
        else:
            has_filter = request.filter is not None
            start = await self._starts.point(found, self._seconds_left(), has_filter=has_filter)
        if request.start == "corpus" and request.required and start.adapter is None:
            reason = f"it cannot start from the adapter of a corpus: {start.reason}"
            raise NoAdapterError(reason, StopReason.CORPUS)
        return start

    async def _find_start(self) -> StartFound | None:
        """The adapter of the corpus: of the selection, where one is made, and else of a lookup
        alone; None without a corpus.
        """
        if self.request.corpus is None:
            return None
        if self._takes_lookup:
            return await self._looked_up()
        selection = await self.selection()
        if selection.corpus is None:
            return None
        return StartFound(selection.corpus, selection.start, selection.no_start)

    @property
    def _takes_lookup(self) -> bool:
        """Whether a lookup alone finds the adapter of the corpus, since nothing is chosen."""
        request = self.request
        return request.budget.steps == 0 and not (request.show and request.shows_chosen)

    def look_ahead(self) -> None:
        """Begin the lookup of the adapter that answers an `instant` request."""
        if self.request.seeks_start and self._takes_lookup and self._lookup is None:
            self._lookup = asyncio.create_task(self._look_up())

    async def _looked_up(self) -> StartFound | None:
        """What a lookup finds of the corpus; None if the principal may not see the server's."""
        if self._lookup is None:
            self._lookup = asyncio.create_task(self._look_up())
        return await asyncio.shield(self._lookup)

    async def _look_up(self) -> StartFound | None:
        found, started = None, time.monotonic()
        try:
            found = await self._within(
                self._selector.start, self.request.corpus, "the corpus's adapter was found"
            )
        except CorpusNotFoundError:
            if self.request.corpus_explicit:
                raise
            self.request = replace(self.request, corpus=None)
        self.lookup_seconds = time.monotonic() - started
        return found

    async def discard(self) -> None:
        """End a choice that is still being made."""
        tasks = [task for task in (self._task, self._lookup) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _selection_if_any(self) -> Selection | None:
        if self.request.corpus is None:
            return None
        try:
            return await self.selection()
        # The same error is met again, and reported or raised, where the result is needed.
        except Exception:
            return None

    async def _select(self) -> Selection:
        request, select, aim = self.request, self._selector.select, "anything was chosen"
        if request.corpus is None and not request.candidates:
            raise NoAdapterError(
                "no corpus: name one in `adaptation.corpus`, bring `adaptation.examples`, or start "
                "with --corpus",
                StopReason.CORPUS,
            )
        try:
            selection = await self._within(select, request.corpus, aim)
        except CorpusNotFoundError:
            if request.corpus_explicit:
                raise
            # The server's corpus is not this key's to see, nor is its name.
            self.request = replace(request, corpus=None)
            if not request.candidates:
                reason = "no corpus: name one in `adaptation.corpus`"
                raise NoAdapterError(reason, StopReason.CORPUS) from None
            selection = await self._within(select, None, aim)
        if not selection.ids:
            what = "has no document that passes the filter" if request.filter else "is empty"
            raise NoAdapterError(f"corpus {request.corpus!r} {what}", StopReason.CORPUS, selection)
        return selection

    async def _within(
        self,
        call: Callable[[SelectionRequest, float | None], Coroutine[Any, Any, Result]],
        corpus: str | None,
        aim: str,
    ) -> Result:
        """The result of a call to the selector, within the seconds of the budget.

        Raises:
            NoAdapterError: they were spent before the `aim` was reached.
        """
        request = self.request.selection(corpus, self._principal)
        try:
            with self._enter(Stage.SELECT):
                return await in_time(call(request, self._seconds_left()), self._seconds_left())
        except (SecondsSpentError, OverdueError):
            reason = f"the seconds were spent before {aim}"
            raise NoAdapterError(reason, StopReason.SECONDS) from None
