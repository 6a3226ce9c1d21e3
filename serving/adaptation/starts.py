"""What the adapter of a request starts from: the adapter of its corpus, or a fresh one.

The selector finds the corpus's adapter, and `Starts` fetches its weights, once for all requests.
Where they are gone by then, since documents were deleted or the corpus was removed, the request
starts afresh, and its report says so. So it does where the adapter does not lower the loss of the
prompt: the trainer compares, since it has the model.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakValueDictionary

from adapters.adapter import Adapter
from adapters.training import TrainingResult
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, StartFound
from selection.errors import CorpusError
from serving.adaptation.fallback_reasons import fresh_start_reason
from serving.adaptation.stages import OverdueError, Selects, in_time
from serving.budget import HEADER, Budget
from serving.conversations.cached_adapter import CachedAdapter
from serving.errors import RequestError

Start: TypeAlias = Literal["corpus", "fresh"]

# Bounds of the weights in memory; the last ones used are kept in any case.
_MAX_ADAPTERS, _MAX_BYTES = 8, 256 << 20
# Number of corpora whose current adapter is remembered.
_MAX_CORPORA = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """What the adapter of a request starts from.

    Attributes:
        found: the corpus's adapter; None for a fresh start.
        adapter: the same, with its weights.
        reason: why the start is fresh, in words; None for one from the corpus's adapter.
    """

    found: CorpusStart | None = None
    adapter: Adapter | None = None
    reason: str | None = None

    @property
    def name(self) -> str | None:
        """Name of the corpus's adapter; None for a fresh start."""
        return self.found.name if self.found else None

    def after(self, training: TrainingResult | None) -> StartingPoint:
        """What a training has started from that was given this starting point; None for one without
        a result.
        """
        comparison = training.comparison if training else None
        if comparison is None or comparison.uses_start:
            return self
        return StartingPoint(reason=fresh_start_reason(comparison))

    def as_dict(self) -> dict[str, Any]:
        """The object `start` of the report."""
        if self.found is None:
            return {"from": "fresh", "reason": self.reason}
        return {"from": "corpus", **self.found.as_dict()}


class Starts:
    """The adapters of corpora from which requests start; belongs to one event loop.

    Of each corpus, only the adapter that the last lookup found is kept: the one before it may have
    become invalid, or is a mixture of parts for another prompt.

    Args:
        selector: reads them.
        model: hub id or folder of the base model.
        retire: called with the name of an adapter from which no request starts any more.
    """

    def __init__(
        self, selector: Selects, model: str, retire: Callable[[str], None] = lambda name: None
    ) -> None:
        self._selector, self._model, self._retire = selector, model, retire
        # Both in the order of their last use, the least recent first.
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        # Id of a corpus -> name of the adapter that the last lookup found.
        self._current: OrderedDict[str, str] = OrderedDict()
        # One by name: weights are read once for requests that need them at the same time.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def is_current(self, name: str) -> bool:
        """Whether further requests are likely to start from the adapter of this name."""
        return name in self._current.values()

    async def point(
        self, found: StartFound, seconds: float | None, *, has_filter: bool
    ) -> StartingPoint:
        """The starting point of a request.

        Args:
            found: what the lookup of the corpus's adapter found.
            seconds: seconds left of the budget; None without a limit.
            has_filter: whether the request has a filter, because of which it starts afresh.
        """
        if not has_filter:
            self._note(found)
        if found.start is None:
            return StartingPoint(reason=found.reason)
        try:
            adapter = await in_time(self._adapter(found.corpus, found.start), seconds)
        except CorpusError as problem:
            log.warning("the adapter of corpus %s could not be read: %s", found.corpus, problem)
            # Its own words may name what the client does not know.
            reason = "the corpus's adapter could not be read: it is gone or damaged"
            return StartingPoint(reason=reason)
        except OverdueError:
            reason = "the seconds were spent before the corpus's adapter was read"
            return StartingPoint(reason=reason)
        return StartingPoint(found.start, adapter)

    def _note(self, found: StartFound) -> None:
        """Remember the adapter of a corpus, and forget the one before it."""
        earlier = self._current.pop(found.corpus, None)
        name = found.start.name if found.start else None
        if earlier is not None and earlier != name:
            self._forget(earlier)
        if name is not None:
            self._current[found.corpus] = name
        if len(self._current) > _MAX_CORPORA:
            self._forget(self._current.popitem(last=False)[1])

    def _forget(self, name: str) -> None:
        self._adapters.pop(name, None)
        self._retire(name)

    async def _adapter(self, corpus: str, start: CorpusStart) -> Adapter:
        """The corpus's adapter with its weights.

        Raises:
            CorpusError: it became invalid, or its files are gone or damaged.
        """
        async with self._locks.setdefault(start.name, asyncio.Lock()):
            if start.name not in self._adapters:
                weights = await self._selector.start_weights(corpus, start)
                adapter = corpus_adapter(weights, self._model)
                if not self.is_current(start.name):
                    return adapter
                self._adapters[start.name] = adapter
            self._adapters.move_to_end(start.name)
            adapter = self._adapters[start.name]
            while len(self._adapters) > 1 and self._is_full():
                self._adapters.popitem(last=False)
            return adapter

    def _is_full(self) -> bool:
        size = sum(len(adapter.weights) for adapter in self._adapters.values())
        return len(self._adapters) > _MAX_ADAPTERS or size > _MAX_BYTES


def corpus_adapter(weights: CorpusWeights, model: str) -> Adapter:
    """The adapter of a corpus, of a model that is given by its hub id or folder."""
    return Adapter(
        weights.name,
        model,
        weights.rank,
        weights.scale_numerator,
        weights.targets,
        weights.weights,
        losses=(),
    )


def continued(
    start: StartingPoint, earlier: CachedAdapter | None, asked: Start | None
) -> tuple[StartingPoint, CachedAdapter | None]:
    """What a turn of a conversation starts from, and the earlier turn's adapter that it continues:
    one that started afresh is not continued where the request asks for that of the corpus.
    """
    if start.adapter is None or earlier is None or earlier.fresh_reason is None:
        return start, earlier
    if asked == "corpus":
        return start, None
    return StartingPoint(reason=earlier.fresh_reason), earlier


def parse_start(options: dict[str, Any], budget: Budget) -> Start | None:
    """What the request's training starts from; None if the request does not say.

    Args:
        options: the `adaptation` object.
        budget: the request's budget.

    Raises:
        RequestError: it is unknown, or nothing is left that could answer.
    """
    value = options.get("start")
    if value is None or value == "corpus":
        return value
    if value != "fresh":
        raise RequestError(
            '`adaptation.start` is "corpus" (start from the adapter of the corpus) or "fresh"'
        )
    if budget.instant:
        raise RequestError(
            f'`adaptation.start` "fresh" and {HEADER} `instant` contradict each other: `instant` '
            "answers with the adapter of the corpus; give steps, or leave out the start"
        )
    return "fresh"
