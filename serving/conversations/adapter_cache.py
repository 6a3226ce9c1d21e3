"""Conversations: the adapter that answered a turn, kept a while for the turn that follows it.

A request belongs to the conversation that it begins with: a chat's messages up to and including the
assistant's answer, or a completion's prompt and its answer (`serving.conversations.transcript`).
The longest beginning that is known is continued.

Nobody is given an adapter across keys, corpora, models or filters: each has conversations of its
own, because an adapter knows the documents it was trained on. Of what was said only digests are
kept. One event loop, no locks; it knows no HTTP, and trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapters.adapter import Adapter
from selection.corpus.filters import Filter
from serving.conversations.completion_reader import AssistantMessage
from serving.conversations.transcript import Transcript


@dataclass(frozen=True)
class AdapterCacheConfig:
    """How much is kept.

    Attributes:
        most_bytes: of all adapters together; the least recently used goes first. A larger one is
            not kept at all.
        most_turns: of all conversations together, likewise.
        seconds: that a turn is kept after it was last used.
        most_steps: an adapter with so many steps behind it is not trained further: the next turn
            starts afresh. Every turn's steps go the whole learning rate further from the base
            model, on few documents, and nothing brings them back; gains were measured up to 50
            steps. So none has more steps than these and one request's.
    """

    most_bytes: int = 512 << 20
    most_turns: int = 256
    seconds: float = 1800.0
    most_steps: int = 200


@dataclass(frozen=True)
class CacheScope:
    """Who may continue an adapter.

    Attributes:
        key: name of the API key; "" where there are none.
        corpus: id of the one that it was trained on: a name may become another's.
        model: the served one.
        only: the filter on the corpus's documents.
    """

    key: str
    corpus: str
    model: str
    only: Filter | None = None

    def digest(self) -> bytes:
        """The same for the same."""
        named = json.dumps([self.key, self.corpus, self.model, self.only], sort_keys=True)
        return hashlib.sha256(named.encode()).digest()


@dataclass(frozen=True)
class Reused:
    """What a request's adapter was before it, for its report.

    Attributes:
        adapter: name of the one that was trained further.
        turns: that it had been trained for.
        steps: that these took, all together.
    """

    adapter: str
    turns: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """The object `reused` of a report."""
        return {"adapter": self.adapter, "turns": self.turns, "steps": self.steps}


@dataclass(frozen=True)
class CachedAdapter:
    """A turn's adapter: its weights as `adapters.Adapter` holds them, its name, and the turns and
    steps behind it.
    """

    weights: bytes
    adapter: str
    turns: int
    steps: int

    @classmethod
    def after(cls, earlier: CachedAdapter | None, adapter: Adapter) -> CachedAdapter:
        """A turn's adapter, and the one it was trained further from, if any."""
        turns, steps = (earlier.turns, earlier.steps) if earlier else (0, 0)
        return cls(adapter.weights, adapter.name, turns + 1, steps + len(adapter.losses))

    @property
    def reused(self) -> Reused:
        """For the report of the turn that continues it."""
        return Reused(self.adapter, self.turns, self.steps)


@dataclass(eq=False)
class _Turn:
    kept: CachedAdapter
    group: bytes
    # Digest of the conversation with each of its answers -> length of what was said.
    ends: dict[bytes, int]
    used: float


class AdapterCache:
    """The turns that may be followed by another."""

    def __init__(
        self, config: AdapterCacheConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.bytes = 0  # of the adapters that are held
        self._clock = clock
        self._turns: OrderedDict[_Turn, None] = OrderedDict()  # the least recently used first
        self._by_end: dict[bytes, _Turn] = {}
        # Group -> lengths of its ends, and how many are that long.
        self._lengths: dict[bytes, Counter[int]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def find(self, whose: CacheScope, talk: Transcript) -> CachedAdapter | None:
        """The adapter of the longest known beginning; None if there is none, or its steps are
        spent.
        """
        self._expire()
        group = whose.digest()
        digest, position, found = hashlib.sha256(group), 0, None
        for length in sorted(self._lengths.get(group, ())):
            if length > len(talk.said):
                break
            digest.update(talk.said[position:length])
            position = length
            found = self._by_end.get(digest.digest(), found)
        if found is None:
            return None
        found.used = self._clock()
        self._turns.move_to_end(found)
        return found.kept if found.kept.steps < self.config.most_steps else None

    def keep(
        self,
        whose: CacheScope,
        talk: Transcript,
        answers: Sequence[AssistantMessage],
        kept: CachedAdapter,
    ) -> None:
        """Keep the adapter that gave these answers, for whoever goes on from one of them."""
        self._expire()
        if not answers or len(kept.weights) > self.config.most_bytes:
            return
        if kept.steps >= self.config.most_steps:
            # That it is spent must be known, or else the turn before it would be continued in its
            # place.
            kept = replace(kept, weights=b"")
        group, turns = whose.digest(), (talk.answered(answer) for answer in answers)
        turn = _Turn(
            kept,
            group,
            {hashlib.sha256(group + said).digest(): len(said) for said in turns},
            self._clock(),
        )
        for end in turn.ends.keys() & self._by_end.keys():
            self._forget(end)
        for end, length in turn.ends.items():
            self._by_end[end] = turn
            self._lengths.setdefault(group, Counter())[length] += 1
        self._turns[turn] = None
        self.bytes += len(kept.weights)
        while self.bytes > self.config.most_bytes or len(self._turns) > self.config.most_turns:
            self._drop(next(iter(self._turns)))

    def _expire(self) -> None:
        """They lie in the order of their last use, so the expired ones are the first."""
        last = self._clock() - self.config.seconds
        while self._turns and (first := next(iter(self._turns))).used <= last:
            self._drop(first)

    def _drop(self, turn: _Turn) -> None:
        for end in list(turn.ends):
            self._forget(end)

    def _forget(self, end: bytes) -> None:
        """Nobody goes on from here any more; a turn that nobody can go on from goes itself."""
        turn = self._by_end.pop(end)
        lengths, length = self._lengths[turn.group], turn.ends.pop(end)
        lengths[length] -= 1
        if not lengths[length]:
            del lengths[length]
        if not lengths:
            del self._lengths[turn.group]
        if not turn.ends:
            del self._turns[turn]
            self.bytes -= len(turn.kept.weights)
