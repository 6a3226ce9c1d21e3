"""What the server answers with where the budget is `auto`.

The adaptation is the server's own, with the defaults of `mayfly serve`; trainer and selector are in
this process. In place of an engine, the adapter that it would load is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from adapters import Trainer, TrainingProgress
from adapters.adapter import Adapter
from adapters.model.row import Row
from adapters.training import TrainingRequest, TrainingResult
from benchmarks.corpus_adapters.quality import Answer, ResidentModel
from selection import Selector
from serving.adaptation.pipeline import Adaptation
from serving.adaptation.request import parse_adaptation_request
from serving.adaptation.shown import Body, PromptBuilder
from serving.adaptation.starts import Starts
from serving.budget import AUTO, LIMITS, Terms
from serving.engine.current_request import LoadedAdapter
from serving.workers.stages import SelectorWorker


class AutoAnswers:
    """Answers as the server's `auto`, one request at a time.

    Args:
        resident: the trainer.
        selector: the selector of the corpora.
        model: folder of the base model.
    """

    def __init__(self, resident: ResidentModel, selector: Selector, model: str) -> None:
        self._resident, self._model = resident, model
        self._selector = SelectorWorker(selector.config, embedder=selector.embedder)
        self._trainer, self._engine = TrainerStage(resident.trainer), _Kept()
        self._starts = Starts(self._selector, model)
        self._loop = asyncio.Runner()
        self._known: set[str] = set()

    def answer(self, prompt: Sequence[int], corpus: str, answer_tokens: int) -> Answer:
        """The answer to a prompt from a corpus.

        Args:
            prompt: tokens of the prompt.
            corpus: name of the corpus.
            answer_tokens: tokens that the answer may have.
        """
        body = {"prompt": [*prompt], "max_tokens": answer_tokens}
        if corpus not in self._known:
            # A server has the corpus open, and its adapter loaded.
            self._known.add(corpus)
            self._loop.run(self._selector.warm_up(corpus))
            self._loop.run(self._answer({**body}, corpus, "instant"))
        return self._loop.run(self._answer(body, corpus, "auto"))

    async def _answer(self, body: Body, corpus: str, budget: str) -> Answer:
        terms = Terms(AUTO, LIMITS, corpus)
        request = parse_adaptation_request(body, budget, None, terms, self._resident.tokenizer)
        adaptation = Adaptation(request, self._selector, self._trainer, self._engine, self._starts)
        if adaptation.reads_prompt:
            builder = PromptBuilder(self._resident.context, self._resident.tokenizer, prompt_tokens)
            body = await adaptation.show(body, builder)
        result = await adaptation.run()
        adapter = self._engine.take(result.adapter)
        await adaptation.discard()
        start = (result.report.start or {}).get("from")
        return Answer(
            tuple(body["prompt"]),
            adapter.weights if adapter else None,
            result.report.spent_seconds,
            # The corpus's adapter, where it answers as it is, is loaded already.
            is_new=adapter is not None and not (start == "corpus" and not result.report.learnt),
        )


class TrainerStage:
    """A trainer as a stage of the server."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    async def train(
        self, request: TrainingRequest, on_step: Callable[[TrainingProgress], None] | None
    ) -> TrainingResult:
        """As `Trainer.train`."""
        return await asyncio.to_thread(partial(self._trainer.train, request, on_step=on_step))

    async def loss(self, rows: Sequence[Row], weights: bytes | None) -> float:
        """As `Trainer.loss`."""
        return await asyncio.to_thread(self._trainer.loss, rows, weights)

    async def compare(
        self, rows: Sequence[Row], adapters: Sequence[bytes | None]
    ) -> tuple[tuple[float, ...], ...]:
        """As `Trainer.compare`."""
        return await asyncio.to_thread(self._trainer.compare, rows, adapters)

    async def give_way(self, seconds: float) -> None:
        """As `Trainer.give_way`."""
        self._trainer.give_way(seconds)


class _Kept:
    """In place of an engine: the adapters that it would have loaded."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._adapters: dict[str, Adapter] = {}

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        """Keep an adapter."""
        self._adapters[adapter.name] = adapter
        return LoadedAdapter(adapter.name, next(self._ids), Path())

    async def unload(self, loaded: LoadedAdapter, *, keeps: bool = False) -> None:
        """Forget an adapter."""
        self._adapters.pop(loaded.name, None)

    def take(self, loaded: LoadedAdapter | None) -> Adapter | None:
        """A kept adapter; None for the base model."""
        return None if loaded is None else self._adapters[loaded.name]


async def prompt_tokens(body: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """In place of an engine: a prompt of tokens."""
    return (tuple(body["prompt"]),)
