"""The selector and the trainer as the gateway needs them: in this process, or Ray deployments; and
whether they are ready.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from selection.access import Principal
from selection.corpus.trained.manifest import LearntCorpus
from serving.adaptation.stages import LibraryExecutor, Selects
from serving.corpus_training.stored import CorpusTrainer
from serving.engine.engine import Engine

# Seconds that a stage may take to respond when it is asked whether it is ready.
_READY_SECONDS = 10.0


class CorporaStage(Selects, LibraryExecutor, Protocol):
    """Selection, and the library of corpora that it selects from."""

    async def learnt_corpora(self, principal: Principal) -> tuple[LearntCorpus, ...]:
        """As `serving.workers.corpora.CorporaWorker.learnt_corpora`."""

    async def sees(self, corpus: str, principal: Principal) -> bool:
        """As `serving.workers.corpora.CorporaWorker.sees`."""

    async def ready(self, corpus: str | None) -> None:
        """As `serving.workers.corpora.CorporaWorker.ready`."""


class TrainerStage(CorpusTrainer, Protocol):
    """Training, for requests and of corpora."""

    async def ready(self) -> None:
        """As `serving.workers.stages.TrainerWorker.ready`."""


class Readiness:
    """The state of the stages of a server.

    Args:
        engine, selector, trainer: the stages.
        corpus: the default corpus, if there is one.
    """

    def __init__(
        self, engine: Engine, selector: CorporaStage, trainer: TrainerStage, corpus: str | None
    ) -> None:
        self._engine, self._selector, self._trainer = engine, selector, trainer
        self._corpus = corpus

    async def answer(self, _: Request) -> Response:
        """Whether the engine lives, the other stages respond, and the default corpus opens."""
        checks = {
            "engine": self._engine.check(),
            "selector": self._selector.ready(self._corpus),
            "trainer": self._trainer.ready(),
        }
        timed = (asyncio.wait_for(check, _READY_SECONDS) for check in checks.values())
        outcomes = await asyncio.gather(*timed, return_exceptions=True)
        state = {
            name: "ready" if outcome is None else "not ready"
            for name, outcome in zip(checks, outcomes, strict=True)
        }
        return JSONResponse(state, 200 if set(state.values()) == {"ready"} else 503)
