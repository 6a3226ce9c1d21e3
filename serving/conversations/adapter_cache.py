"""AdapterCache: adapters that a later request may use: that of a turn, and that of examples.

A request continues the cached turn whose messages and answer are the longest prefix of it
(`serving.conversations.transcript`); of a completion, they are its prompt and its answer. A request
that brings the same examples as an earlier one is answered by the same adapter.

An adapter is never reused across keys, corpora, models, filters or starts: each has adapters of its
own, since an adapter can reveal what it was trained on. Of the texts only digests are stored. One
event loop, no locks; this module is independent of HTTP and of training.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.conversations.cached_adapter import CachedAdapter, CacheScope, ExamplesAdapter
from serving.conversations.completion_reader import AssistantMessage, CompletionReader
from serving.conversations.transcript import Transcript, parse_transcript


@dataclass(frozen=True)
class AdapterCacheConfig:
    """How much is cached.

    Attributes:
        max_bytes: size of all adapters together; the least recently used is dropped first, and a
            larger adapter is not cached at all.
        max_turns: number of turns of all conversations, and of sets of examples, together; dropped
            likewise.
        seconds: time that an adapter is cached after its last use.
        max_steps: number of steps from which an adapter is not trained further: the next turn
            starts afresh. Each turn moves the adapter further from the base model, on few
            documents, and nothing brings it back; gains were measured up to 50 steps. So an adapter
            has at most these steps and those of one request.
    """

    max_bytes: int = 512 << 20
    max_turns: int = 256
    seconds: float = 1800.0
    max_steps: int = 200


@dataclass(eq=False)
class _Entry:
    cached: CachedAdapter | ExamplesAdapter
    group: bytes
    # Digest of the conversation with each of its answers -> length of its text; of examples, their
    # digest -> 0.
    ends: dict[bytes, int]
    used: float


class AdapterCache:
    """The adapters of turns that another turn may follow, and of examples.

    Args:
        config: how much is cached.
        clock: seconds that only grow.

    Attributes:
        in_training: adapters of examples that are being trained, by their `examples_end`; each is
            set once its training has ended.
    """

    def __init__(
        self, config: AdapterCacheConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.bytes = 0
        self.in_training: dict[bytes, asyncio.Event] = {}
        self._clock = clock
        # In the order of their last use, the least recent first.
        self._entries: OrderedDict[_Entry, None] = OrderedDict()
        self._by_end: dict[bytes, _Entry] = {}
        # Group -> lengths of its ends, and how many have that length.
        self._lengths: dict[bytes, Counter[int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def turn(
        self, body: dict[str, Any], scope: CacheScope, *, max_response_bytes: int
    ) -> ConversationTurn | None:
        """The turn that a request is of its conversation; None for a request that no other can
        follow.

        Args:
            body: body of the request, JSON.
            scope: whose turn; its corpus and its start are set later.
            max_response_bytes: size of the longest response that is read.
        """
        transcript = parse_transcript(body)
        if transcript is None:
            return None
        return ConversationTurn(self, transcript, CompletionReader(max_response_bytes), scope)

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
        cached = self._use(found)
        assert isinstance(cached, CachedAdapter)
        return cached if cached.steps < self.config.max_steps else None

    def find_examples(self, scope: CacheScope, digest: bytes) -> ExamplesAdapter | None:
        """The adapter of the same examples; None if it is not cached."""
        self._expire()
        found = self._by_end.get(examples_end(scope, digest))
        if found is None:
            return None
        cached = self._use(found)
        assert isinstance(cached, ExamplesAdapter)
        return cached

    def store(
        self,
        scope: CacheScope,
        transcript: Transcript,
        answers: Sequence[AssistantMessage],
        cached: CachedAdapter,
    ) -> None:
        """Cache the adapter of these answers, for a turn that follows one of them."""
        if not answers:
            return
        if cached.steps >= self.config.max_steps:
            # The turn is stored without its weights: otherwise the turn before it would be
            # continued in its place.
            cached = replace(cached, weights=b"")
        group, texts = scope.digest(), (transcript.with_answer(answer) for answer in answers)
        ends = {hashlib.sha256(group + text).digest(): len(text) for text in texts}
        self._store(_Entry(cached, group, ends, self._clock()))

    def store_examples(self, scope: CacheScope, digest: bytes, cached: ExamplesAdapter) -> None:
        """Cache the adapter of examples, for requests that bring the same ones."""
        end = examples_end(scope, digest)
        self._store(_Entry(cached, end, {end: 0}, self._clock()))

    def _use(self, entry: _Entry) -> CachedAdapter | ExamplesAdapter:
        entry.used = self._clock()
        self._entries.move_to_end(entry)
        return entry.cached

    def _store(self, entry: _Entry) -> None:
        self._expire()
        if len(entry.cached.weights) > self.config.max_bytes:
            return
        for end in entry.ends.keys() & self._by_end.keys():
            self._forget(end)
        for end, length in entry.ends.items():
            self._by_end[end] = entry
            self._lengths.setdefault(entry.group, Counter())[length] += 1
        self._entries[entry] = None
        self.bytes += len(entry.cached.weights)
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
        scope: CacheScope,
    ) -> None:
        self._cache, self._transcript, self._reader = cache, transcript, reader
        self._scope = scope

    def find(self, corpus: str | None, start: str | None = None) -> CachedAdapter | None:
        """The adapter to train further on a corpus, given by its id, after a start from the
        corpus's adapter of that name; None if there is none.
        """
        self._scope = replace(self._scope, corpus=corpus, start=start)
        return self._cache.find(self._scope, self._transcript)

    def feed(self, content: bytes) -> None:
        """Read the next bytes of the response."""
        self._reader.feed(content)

    def store(self, cached: CachedAdapter) -> None:
        """Cache the adapter that gave the response, once that has been read; after `find`."""
        self._cache.store(self._scope, self._transcript, self._reader.answers(), cached)


def examples_end(scope: CacheScope, digest: bytes) -> bytes:
    """The digest under which the adapter of examples is cached."""
    return hashlib.sha256(b"examples" + scope.digest() + digest).digest()
