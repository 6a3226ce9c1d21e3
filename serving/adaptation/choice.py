"""Choice: what one request learns from and shows, chosen once for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from selection.access import Principal
from selection.corpus.calibration import Calibration
from selection.corpus.sqlite_store import Source
from selection.errors import CorpusNotFoundError
from selection.limit import SecondsSpentError
from selection.selector import Selection
from serving.adaptation.candidates import example_sources
from serving.adaptation.fallback_reasons import NoAdapterError
from serving.adaptation.request import AdaptationRequest
from serving.adaptation.stages import OverdueError, Selects, in_time
from serving.report import Stage, StopReason


class Choice:
    """The choice of one request.

    Args:
        request: what the request asks of its adaptation.
        selector: stage that chooses.
        principal: on whose behalf the corpus is read.
        seconds_left: gives the seconds left of the budget; None without a limit.
        enter: context of a stage.

    Attributes:
        request: the request, without the server's corpus if that is not the principal's to see, and
            with the number of sequences to show once that is known.
    """

    def __init__(
        self,
        request: AdaptationRequest,
        selector: Selects,
        principal: Principal,
        seconds_left: Callable[[], float | None],
        enter: Callable[[Stage], AbstractContextManager[None]],
    ) -> None:
        self.request = request
        self._selector, self._principal = selector, principal
        self._seconds_left, self._enter = seconds_left, enter
        self._task: asyncio.Task[Selection] | None = None

    async def selection(self) -> Selection:
        """The sequences chosen; calls after the first give the same.

        Raises:
            NoAdapterError: nothing can be chosen.
            CorpusError: the corpus cannot be used, and another one must be named.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._select())
        return await asyncio.shield(self._task)

    async def number_to_show(self) -> int:
        """The number of sequences to show: the request's, or that of a calibrated corpus."""
        request = self.request
        if request.show is None:
            calibration = await self._calibration(request.corpus)
            show = calibration.show if calibration else 0
            self.request = request = replace(request, show=show)
        return request.show or 0

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

    async def discard(self) -> None:
        """End a choice that is still being made."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _calibration(self, corpus: str | None) -> Calibration | None:
        if corpus is None:
            return None
        left = self._seconds_left()
        try:
            looking = self._selector.calibration(corpus, self._principal, left)
            return await in_time(looking, left)
        # The selection meets the same error, and reports or raises it.
        except Exception:
            return None

    async def _select(self) -> Selection:
        request = self.request
        if request.corpus is None and not request.candidates:
            raise NoAdapterError(
                "no corpus: name one in `adaptation.corpus`, bring `adaptation.examples`, "
                "or start with --corpus",
                StopReason.CORPUS,
            )
        try:
            selection = await self._select_from(request.corpus)
        except CorpusNotFoundError:
            if request.corpus_explicit:
                raise
            # The server's corpus is not this key's to see, nor is its name.
            self.request = replace(request, corpus=None)
            if not request.candidates:
                reason = "no corpus: name one in `adaptation.corpus`"
                raise NoAdapterError(reason, StopReason.CORPUS) from None
            selection = await self._select_from(None)
        if not selection.ids:
            what = (
                "is empty" if request.filter is None else "has no document that passes the filter"
            )
            raise NoAdapterError(f"corpus {request.corpus!r} {what}", StopReason.CORPUS, selection)
        return selection

    async def _select_from(self, corpus: str | None) -> Selection:
        try:
            with self._enter(Stage.SELECT):
                selecting = self._selector.select(
                    self.request.selection(corpus, self._principal), self._seconds_left()
                )
                return await in_time(selecting, self._seconds_left())
        except (SecondsSpentError, OverdueError):
            reason = "the seconds were spent before anything was chosen"
            raise NoAdapterError(reason, StopReason.SECONDS) from None
