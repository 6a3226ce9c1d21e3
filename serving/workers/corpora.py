"""Workers of the corpora: selector, shards and library as asynchronous, cancellable stages.

The work itself runs in threads, so that the event loop stays free to notice a cancelled request.
Selections and searches of several requests run together and take turns.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from selection.access import Principal
from selection.corpus.calibration import Calibration
from selection.corpus.lookup import find_corpus
from selection.corpus.shards import Shard, ShardCall
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, LearntCorpus, StartFound
from selection.embedding import Prompt
from selection.errors import CorpusError, CorpusNotFoundError
from selection.examples.templates import set_chat_template
from selection.ingest.examples import context_tokens
from selection.library.library import Library
from selection.limit import Limit
from selection.request import SelectionRequest
from selection.selector import Selection, Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.calls import SerialExecutor, wait_until_ended

# Maximum number of calls to a worker at the same time. Ray Serve admits no more, and each selection
# or search occupies a thread, also while it waits for its turn.
MAX_CALLS = 256

P = ParamSpec("P")
Result = TypeVar("Result")


class SelectorWorker:
    """A selector.

    Args:
        config, shards, embedder: as for `Selector`.
    """

    def __init__(
        self,
        config: SelectorConfig,
        shards: Sequence[ShardCall] = (),
        embedder: ThreadedEmbedder | None = None,
    ) -> None:
        self._selector = Selector(config, shards, embedder)
        # Asyncio's own pool has six threads on two cores, which large requests would all occupy.
        self._threads = ThreadPoolExecutor(MAX_CALLS, "selection")

    async def select(self, request: SelectionRequest, seconds: float | None = None) -> Selection:
        """As `Selector.select`, within `seconds` from now. Cancelling ends it within a unit of its
        work.
        """
        cancelled = threading.Event()
        select = partial(self._selector.select, request, Limit(seconds, cancelled))
        return await self._run_in_thread(select, cancelled)

    async def calibration(
        self, corpus: str, principal: Principal, seconds: float | None = None
    ) -> Calibration | None:
        """As `Selector.calibration`, within `seconds` from now."""
        cancelled = threading.Event()
        limit = Limit(seconds, cancelled)
        look_up = partial(self._selector.calibration, corpus, principal, limit)
        return await self._run_in_thread(look_up, cancelled)

    async def start(self, request: SelectionRequest, seconds: float | None = None) -> StartFound:
        """As `Selector.start`, within `seconds` from now, and cancelled as `select`."""
        cancelled = threading.Event()
        find = partial(self._selector.start, request, Limit(seconds, cancelled))
        return await self._run_in_thread(find, cancelled)

    async def start_weights(self, corpus: str, start: CorpusStart) -> CorpusWeights:
        """As `Selector.start_weights`, cancelled as `select`."""
        cancelled = threading.Event()
        limit = Limit(None, cancelled)
        read = partial(self._selector.start_weights, corpus, start, limit)
        return await self._run_in_thread(read, cancelled)

    async def learnt_corpora(self, principal: Principal) -> tuple[LearntCorpus, ...]:
        """As `Selector.learnt_corpora`."""
        return await asyncio.to_thread(self._selector.learnt_corpora, principal)

    async def sees(self, corpus: str, principal: Principal) -> bool:
        """Whether a principal sees a corpus of this name or id."""
        try:
            await asyncio.to_thread(find_corpus, self._selector.config.root, corpus, principal)
        except CorpusNotFoundError:
            return False
        # Several have this name: the request itself is refused for that.
        except CorpusError:
            return True
        return True

    async def warm_up(self, corpus: str | None) -> None:
        """Select once from a corpus, if one is named, so that it is open and its index loaded."""
        if corpus is not None:
            prompt = Prompt("a first prompt, so that no request pays for the first search")
            await self.select(SelectionRequest([prompt], corpus, steps=1))

    async def ready(self, corpus: str | None) -> None:
        """Check that the corpus, if one is named, can be selected from.

        Raises:
            CorpusError: the corpus cannot be selected from.
        """
        if corpus is not None:
            await asyncio.to_thread(self._selector.check, corpus)

    async def _run_in_thread(
        self, work: Callable[[], Result], cancelled: threading.Event
    ) -> Result:
        run = partial(contextvars.copy_context().run, work)
        running = asyncio.get_running_loop().run_in_executor(self._threads, run)
        return await wait_until_ended(running, cancelled)


class ShardWorker(SerialExecutor[Shard]):
    """A shard of corpora, in the folder that contains them."""

    def __init__(self, root: Path) -> None:
        super().__init__(Shard(root))


class CorporaWorker(SelectorWorker):
    """A selector and a library over the same corpora, which share the embedder and the open
    indexes.
    """

    def __init__(
        self,
        config: SelectorConfig,
        shards: Sequence[ShardCall] = (),
        embedder: ThreadedEmbedder | None = None,
    ) -> None:
        # Imported here and below, so that the command, which names these classes, stays small.
        from transformers import AutoTokenizer

        super().__init__(config, shards, embedder)
        assert config.base_model is not None, "a library needs the tokenizer of the base model"
        tokenizer = AutoTokenizer.from_pretrained(config.base_model)
        set_chat_template(tokenizer, config.chat_template)
        files = config.root.parent / "files"
        selector = self._selector
        self._library = SerialExecutor(
            Library(
                config.root,
                selector.embedder,
                tokenizer,
                files,
                selector.corpora,
                context_tokens(config.base_model),
            )
        )

    async def call(
        self,
        method: Callable[Concatenate[Library, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """As `SerialExecutor.call`, for the library; a search, which may be long, runs beside other
        calls.
        """
        if method is not Library.search:
            return await self._library.call(method, *args, **kwargs)
        cancelled = threading.Event()
        search: Callable[..., Result] = method
        limit = Limit(abandoned=cancelled)
        return await self._run_in_thread(
            partial(search, self._library.owner, *args, **kwargs, limit=limit), cancelled
        )
