"""ExamplesReuse: one request's use of the adapter that its examples made before, or make now.

Of several requests with the same examples at the same time, the first trains, and the others wait
for its adapter. Where there is none in the end, each of them trains its own.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from serving.conversations.adapter_cache import AdapterCache, examples_end
from serving.conversations.cached_adapter import CacheScope, ExamplesAdapter


class ExamplesReuse:
    """One request's use of the adapter of its examples: it finds it, waits for it, or stores its
    own.

    Args:
        cache: the cached adapters.
        digest: equal for requests whose examples make the same adapter from the same corpus.
        scope: whose examples; the corpus is given to each method, by its id, and the name of the
            corpus's adapter that the training starts from.
    """

    def __init__(self, cache: AdapterCache, digest: bytes, scope: CacheScope) -> None:
        self._cache, self._digest, self._scope = cache, digest, scope
        self._claimed: bytes | None = None
        self._held: ExamplesAdapter | None = None

    def is_cached(self) -> bool:
        """Whether the adapter of the same examples without a corpus is cached; this request then
        has it, also if the cache drops it meanwhile.
        """
        self._held = self.find(None)
        return self._held is not None

    def find(self, corpus: str | None, start: str | None = None) -> ExamplesAdapter | None:
        """The adapter of the same examples; None if it is not cached."""
        if corpus is None and self._held is not None:
            return self._held
        return self._cache.find_examples(self._scope_of(corpus, start), self._digest)

    async def claim(
        self, corpus: str | None, start: str | None, seconds: float | None, *, is_shared: bool
    ) -> ExamplesAdapter | None:
        """The adapter of the same examples, once a request that is training it has ended; None to
        train one.

        Args:
            corpus: id of the corpus.
            start: name of the corpus's adapter that the training starts from; None for a fresh one.
            seconds: how long to wait for the other request; None without a limit.
            is_shared: whether other requests may wait for the adapter that this one trains, until
                `release`.
        """
        end = examples_end(self._scope_of(corpus, start), self._digest)
        found, training = self.find(corpus, start), self._cache.in_training.get(end)
        if found is None and training is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await training.wait()
            found = self.find(corpus, start)
        if found is None and is_shared and end not in self._cache.in_training:
            self._claimed = end
            self._cache.in_training[end] = asyncio.Event()
        return found

    def store(self, corpus: str | None, cached: ExamplesAdapter, start: str | None = None) -> None:
        """Cache the adapter that was trained."""
        self._cache.store_examples(self._scope_of(corpus, start), self._digest, cached)

    def release(self) -> None:
        """Let the requests go on that wait for this one, whether or not it stored an adapter."""
        if self._claimed is not None:
            self._cache.in_training.pop(self._claimed).set()
            self._claimed = None

    def _scope_of(self, corpus: str | None, start: str | None) -> CacheScope:
        return replace(self._scope, corpus=corpus, start=start)
