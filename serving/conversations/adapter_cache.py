"""AdapterCache: the adapter that answered a turn, cached for the turn that follows it.

A request continues the cached turn whose messages and answer are the longest prefix of it
(`serving.conversations.transcript`); of a completion, they are its prompt and its answer.

An adapter is never reused across keys, corpora, models or filters: each has conversations of its
own, since an adapter can reveal the documents it was trained on. Of the texts only digests are
stored. One event loop, no locks; this module is independent of HTTP and of training.
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
from serving.conversations.completion_reader import AssistantMessage, CompletionReader
from serving.conversations.transcript import Transcript, parse_transcript


@dataclass(frozen=True)
class AdapterCacheConfig:
    """How much is cached.

    Attributes:
        max_bytes: size of all adapters together; the least recently used is dropped first, and a
            larger adapter is not cached at all.
        max_turns: number of turns of all conversations together, dropped likewise.
        seconds: time that a turn is cached after its last use.
        max_steps: number of steps from which an adapter is not trained further: the next turn
            starts afresh. Each turn moves the adapter further from the base model, on few
            documents, and nothing brings it back; gains were measured up to 50 steps. So an adapter
            has at most these steps and those of one request.
    """

    max_bytes: int = 512 << 20
    max_turns: int = 256
    seconds: float = 1800.0
    max_steps: int = 200


@dataclass(frozen=True)
class CacheScope:
    """The requests that may continue an adapter.

    Attributes:
        key: name of the API key; "" for a server without keys.
        corpus: id of the corpus that the adapter was trained on, since a name may be given to
            another corpus.
        model: name of the served model.
        filter: filter on the corpus's documents.
    """

    key: str
    corpus: str
    model: str
    filter: Filter | None = None

    def digest(self) -> bytes:
        """Equal for equal scopes."""
        fields = json.dumps([self.key, self.corpus, self.model, self.filter], sort_keys=True)
        return hashlib.sha256(fields.encode()).digest()


@dataclass(frozen=True)
class CachedAdapter:
    """The adapter of a turn.

    Attributes:
        weights: weights in the format of `adapters.Adapter`.
        name: name of the adapter.
        turns: number of turns that it was trained for.
        steps: number of training steps of these turns together.
    """

    weights: bytes
    name: str
    turns: int
    steps: int

    @classmethod
    def after(cls, earlier: CachedAdapter | None, adapter: Adapter) -> CachedAdapter:
        """The adapter of a turn, which continued an earlier one or started afresh."""
        turns, steps = (earlier.turns, earlier.steps) if earlier else (0, 0)
        return cls(adapter.weights, adapter.name, turns + 1, steps + len(adapter.losses))

    def as_dict(self) -> dict[str, Any]:
        """The object `reused` in the report of the turn that continues it."""
        return {"adapter": self.name, "turns": self.turns, "steps": self.steps}


@dataclass(eq=False)
class _Entry:
    cached: CachedAdapter
    group: bytes
    # Digest of the conversation with each of its answers -> length of its text.
    ends: dict[bytes, int]
    used: float


class AdapterCache:
    """The adapters of turns that another turn may follow.

    Args:
        config: how much is cached.
        clock: seconds that only grow.
    """

    def __init__(
        self, config: AdapterCacheConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.bytes = 0
        self._clock = clock
        # In the order of their last use, the least recent first.
        self._entries: OrderedDict[_Entry, None] = OrderedDict()
        self._by_end: dict[bytes, _Entry] = {}
        # Group -> lengths of its ends, and how many have that length.
        self._lengths: dict[bytes, Counter[int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def turn(
        self,
        body: dict[str, Any],
        *,
        key: str,
        model: str,
        filter: Filter | None,
        max_response_bytes: int,
    ) -> ConversationTurn | None:
        """The turn that a request is of its conversation; None for a request that no other can
        follow.

        Args:
            body: body of the request, JSON.
            key, model, filter: as in `CacheScope`; the corpus is known later.
            max_response_bytes: size of the longest response that is read.
        """
        transcript = parse_transcript(body)
        if transcript is None:
            return None
        reader = CompletionReader(max_response_bytes)
        return ConversationTurn(
            self, transcript, reader, lambda corpus: CacheScope(key, corpus, model, filter)
        )

    def find(self, scope: CacheScope, transcript: Transcript) -> CachedAdapter | None:
        """The adapter of the longest cached prefix; None if no prefix is cached, and for an adapter
        that has all its steps.
        """
        self._expire()
        group = scope.digest()
        digest, position, found = hashlib.sha256(group), 0, None
        for length in sorted(self._lengths.get(group, ())):
            if length > len(transcript.text):
                break
            digest.update(transcript.text[position:length])
            position = length
            found = self._by_end.get(digest.digest(), found)
        if found is None:
            return None
        found.used = self._clock()
        self._entries.move_to_end(found)
        return found.cached if found.cached.steps < self.config.max_steps else None

    def store(
        self,
        scope: CacheScope,
        transcript: Transcript,
        answers: Sequence[AssistantMessage],
        cached: CachedAdapter,
    ) -> None:
        """Cache the adapter of these answers, for a turn that follows one of them."""
        self._expire()
        if not answers or len(cached.weights) > self.config.max_bytes:
            return
        if cached.steps >= self.config.max_steps:
            # The turn is stored without its weights: otherwise the turn before it would be
            # continued in its place.
            cached = replace(cached, weights=b"")
        group, texts = scope.digest(), (transcript.with_answer(answer) for answer in answers)
        entry = _Entry(
            cached,
            group,
            {hashlib.sha256(group + text).digest(): len(text) for text in texts},
            self._clock(),
        )
        for end in entry.ends.keys() & self._by_end.keys():
            self._forget(end)
        for end, length in entry.ends.items():
            self._by_end[end] = entry
            self._lengths.setdefault(group, Counter())[length] += 1
        self._entries[entry] = None
        self.bytes += len(cached.weights)
        while self.bytes > self.config.max_bytes or len(self._entries) > self.config.max_turns:
            self._drop(next(iter(self._entries)))

    def _expire(self) -> None:
        oldest = self._clock() - self.config.seconds
        while self._entries and (first := next(iter(self._entries))).used <= oldest:
            self._drop(first)

    def _drop(self, entry: _Entry) -> None:
        for end in list(entry.ends):
            self._forget(end)

    def _forget(self, end: bytes) -> None:
        """Forget one end of an entry, and with the last one the entry."""
        entry = self._by_end.pop(end)
        lengths, length = self._lengths[entry.group], entry.ends.pop(end)
        lengths[length] -= 1
        if not lengths[length]:
            del lengths[length]
        if not lengths:
            del self._lengths[entry.group]
        if not entry.ends:
            del self._entries[entry]
            self.bytes -= len(entry.cached.weights)


class ConversationTurn:
    """One request's turn of a conversation: it finds the adapter of the previous turn, and stores
    that of its own.
    """

    def __init__(
        self,
        cache: AdapterCache,
        transcript: Transcript,
        reader: CompletionReader,
        scope_of: Callable[[str], CacheScope],
    ) -> None:
        self._cache, self._transcript, self._reader = cache, transcript, reader
        self._scope_of = scope_of
        self._scope: CacheScope | None = None

    def find(self, corpus: str) -> CachedAdapter | None:
        """The adapter to train further on a corpus, given by its id; None to start afresh."""
        self._scope = self._scope_of(corpus)
        return self._cache.find(self._scope, self._transcript)

    def feed(self, content: bytes) -> None:
        """Read the next bytes of the response."""
        self._reader.feed(content)

    def store(self, cached: CachedAdapter) -> None:
        """Cache the adapter that gave the response, once that has been read; after `find`."""
        assert self._scope is not None
        self._cache.store(self._scope, self._transcript, self._reader.answers(), cached)
