"""Runner: measures the ways to answer a passage, in a process of its own.

What is chosen, its form and the loss of the prompt's end are the server's own: of each way, what
`auto` would compare. The suffix is scored in the trainer's own precision, too. Seconds are those of
the processor, which other work on the machine changes little; the process has one thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer

from adapters import Trainer
from adapters.model.row import Row as ScoredRow
from benchmarks.auto_defaults.ways import COUNTS, MODELS, STRATEGIES, Text, Way
from benchmarks.corpus_adapters.arms import Strategy
from benchmarks.corpus_adapters.learning import open_selector, trainer_config
from benchmarks.proof_of_gain.auto import TrainerStage, prompt_tokens
from benchmarks.proof_of_gain.copies import share_of_copies
from benchmarks.quality.passages import Passage
from selection.access import OPERATOR
from selection.corpus.sqlite_store import Source
from serving.adaptation.auto import row_after
from serving.adaptation.choice import Choice
from serving.adaptation.request import AdaptationRequest, parse_adaptation_request
from serving.adaptation.shown import Body, PromptBuilder
from serving.adaptation.starts import Starts
from serving.budget import AUTO, LIMITS, Terms
from serving.workers.stages import SelectorWorker

_Result = TypeVar("_Result")


class WaysRunner:
    """Measures passages of several corpora; for one thread.

    Args:
        model: folder of the base model.
        home: home of the corpora.
        prefix: tokens of a passage that are the prompt.
    """

    def __init__(self, model: str, home: Path, prefix: int) -> None:
        self._trainer = Trainer(trainer_config(model))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._prefix = prefix
        self._chooser = open_selector(home, model)
        self._selector = SelectorWorker(self._chooser.config, embedder=self._chooser.embedder)
        self._compares = TrainerStage(self._trainer)
        self._starts = Starts(self._selector, model)
        self._loop = asyncio.Runner()
        self._known: set[str] = set()

    def measure(self, passage: Passage, corpus: str) -> dict[str, Any]:
        """The fields of a row, without the names of its domain and document.

        Raises:
            RuntimeError: the corpus has no adapter.
        """
        return self._loop.run(self._measure(passage, corpus))

    async def _measure(self, passage: Passage, corpus: str) -> dict[str, Any]:
        prompt = passage.tokens[: self._prefix]
        body = {"prompt": [*prompt], "max_tokens": len(passage.tokens) - len(prompt)}
        terms = Terms(AUTO, LIMITS, corpus)
        request = parse_adaptation_request({**body}, "auto", None, terms, self._tokenizer)
        if corpus not in self._known:
            # A server has it open already, and its adapter in memory.
            self._known.add(corpus)
            await self._chosen(request, STRATEGIES[0])
        scores = _Scores(self._trainer, self._tokenizer, passage, body, request.probe_tokens)
        ways: dict[str, dict[str, float]] = {}
        choosing: dict[str, float] = {}
        weights: dict[str, bytes | None] = {"base": None}
        for strategy in STRATEGIES:
            choosing[strategy], (sources, adapter) = await _timed(self._chosen(request, strategy))
            weights["corpus"] = adapter
            texts = [Text(count, strategy) for count in COUNTS]
            for text in [None, *texts] if strategy == STRATEGIES[0] else texts:
                for model in MODELS:
                    shown = sources[: text.count] if text else []
                    name = Way(model, text).name
                    ways[name] = await scores.of(weights[model], shown)
        return {
            "copies": round(share_of_copies(self._chooser, passage, corpus), 4),
            "choosing": {name: round(seconds, 4) for name, seconds in choosing.items()},
            "ways": ways,
        }

    async def _chosen(
        self, request: AdaptationRequest, strategy: Strategy
    ) -> tuple[list[Source], bytes]:
        """The sequences to show, the most relevant first, and the adapter of the corpus."""
        asked = replace(request, strategy=strategy, show=max(COUNTS))
        choice = Choice(
            asked,
            self._selector,
            self._compares,
            self._starts,
            OPERATOR,
            lambda: None,
            lambda stage: nullcontext(),
        )
        sources, start = await choice.to_show(), await choice.start()
        if start.adapter is None:
            raise RuntimeError(f"no request starts from corpus {request.corpus}: {start.reason}")
        return sources, start.adapter.weights


class _Scores:
    """The scores of the answers to one passage; equal prompts are scored once."""

    def __init__(
        self,
        trainer: Trainer,
        tokenizer: Any,
        passage: Passage,
        body: Body,
        probe: Sequence[int],
    ) -> None:
        self._trainer, self._body, self._probe = trainer, body, probe
        self._scored = passage.tokens[len(body["prompt"]) :]
        self._bytes = len(passage.suffix.encode())
        self._context = trainer.base.context
        self._builder = PromptBuilder(self._context, tokenizer, prompt_tokens)
        self._known: dict[tuple[bytes | None, tuple[int, ...]], dict[str, float]] = {}

    async def of(self, weights: bytes | None, sources: Sequence[Source]) -> dict[str, float]:
        """The scores with an adapter and sequences in the prompt."""

        async def choose() -> Sequence[Source]:
            return sources

        body, shown = await self._builder.show(self._body, len(sources), choose)
        prompt = tuple(body["prompt"])
        key = weights, prompt
        if key not in self._known:
            text = self._builder.tokens(shown)
            row = row_after(text, self._probe, self._context)
            seconds, loss = self._loss(row, weights)
            nats = self._trainer.nats([*prompt, *self._scored], len(prompt), weights)
            self._known[key] = {
                "bits": round(nats / math.log(2) / self._bytes, 5),
                "loss": round(loss, 6),
                "seconds": round(seconds, 4),
                "tokens": len(prompt),
            }
        return self._known[key]

    def _loss(self, row: ScoredRow, weights: bytes | None) -> tuple[float, float]:
        started = time.process_time()
        ((loss,),) = self._trainer.compare([row], [weights])
        return time.process_time() - started, loss


async def _timed(work: Awaitable[_Result]) -> tuple[float, _Result]:
    started = time.process_time()
    result = await work
    return time.process_time() - started, result
