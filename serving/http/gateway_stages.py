"""The selector and the trainer as the gateway needs them: in this process, or Ray deployments."""

from __future__ import annotations

from typing import Protocol

from selection.access import Principal
from selection.corpus.trained.manifest import LearntCorpus
from serving.adaptation.stages import Selects, Trains
from serving.http.vector_stores.routes import LibraryExecutor


class CorporaStage(Selects, LibraryExecutor, Protocol):
    """Selection, and the library of corpora that it selects from."""

    async def learnt_corpora(self, principal: Principal) -> tuple[LearntCorpus, ...]:
        """As `serving.adaptation.workers.CorporaWorker.learnt_corpora`."""

    async def sees(self, corpus: str, principal: Principal) -> bool:
        """As `serving.adaptation.workers.CorporaWorker.sees`."""

    async def ready(self, corpus: str | None) -> None:
        """As `serving.adaptation.workers.CorporaWorker.ready`."""


class TrainerStage(Trains, Protocol):
    """Training."""

    async def ready(self) -> None:
        """As `serving.adaptation.workers.TrainerWorker.ready`."""
