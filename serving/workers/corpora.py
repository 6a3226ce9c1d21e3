"""CorporaWorker: a selector and the library of corpora, as a stage of a server; and the shards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from selection.corpus.shards import Shard, ShardCall
from selection.examples.templates import set_chat_template
from selection.ingest.examples import context_tokens
from selection.library.library import Library
from selection.limit import Limit
from selection.location import home_of
from selection.selector import SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from serving.calls import SerialExecutor
from serving.environment import hidden_packages
from serving.workers.stages import SelectorWorker

P = ParamSpec("P")
Result = TypeVar("Result")


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
        with hidden_packages():
            from transformers import AutoTokenizer

        super().__init__(config, shards, embedder)
        assert config.base_model is not None, "a library needs the tokenizer of the base model"
        tokenizer = AutoTokenizer.from_pretrained(config.base_model)
        set_chat_template(tokenizer, config.chat_template)
        files = home_of(config.root) / "files"
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
        return await self.run_in_thread(
            partial(search, self._library.owner, *args, **kwargs, limit=limit), cancelled
        )
