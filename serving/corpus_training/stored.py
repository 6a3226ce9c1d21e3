"""StoredCorpus: the corpus side of a training, over the files beside the corpus.

Its calls go to the corpus's `AdapterTraining`, in this process (`calls_here`) or through a server's
library (`calls_to`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from adapters.errors import first_line
from adapters.model.row import Row
from adapters.model_defaults import CORPUS_SCALING
from adapters.training import TrainingState
from selection.access import Principal
from selection.config import AdapterShape
from selection.corpus.trained.files import Checkpoint as StoredCheckpoint
from selection.corpus.trained.manifest import AdapterSettings, TrainedPart
from selection.corpus.trained.plan import TrainingPlan
from selection.corpus.trained.training import AdapterTraining
from selection.library.library import Library
from serving.adaptation.stages import LibraryExecutor, Trains
from serving.corpus_training.checkpoint import Checkpoint
from serving.corpus_training.course import Position
from serving.corpus_training.values import CorpusSummary, TrainingOptions

log = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")

# Sequences of one call.
_BATCH = 512


class AdapterCall(Protocol):
    """Calls a method of the corpus's `AdapterTraining`."""

    async def __call__(
        self,
        method: Callable[Concatenate[AdapterTraining, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """The result of the method."""


def calls_here(adapter: AdapterTraining) -> AdapterCall:
    """Calls of an adapter in this process."""

    async def call(
        method: Callable[Concatenate[AdapterTraining, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        return method(adapter, *args, **kwargs)

    return call


def calls_to(
    library: LibraryExecutor, store: str, principal: Principal, *, reads: bool = False
) -> AdapterCall:
    """Calls of the adapter of a vector store that the principal owns or, to read only, sees."""

    async def call(
        method: Callable[Concatenate[AdapterTraining, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        return await library.call(_call_training, store, principal, reads, method, *args, **kwargs)

    return call


def check_free(library: Library, store: str, principal: Principal) -> str:
    """As `StoreTrainings.check_free`."""
    return library.trainings.check_free(store, principal)


def _call_training(
    library: Library,
    store: str,
    principal: Principal,
    reads: bool,
    method: Callable[Concatenate[AdapterTraining, P], Result],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    call = library.trainings.read if reads else library.trainings.call
    return call(store, principal, method, *args, **kwargs)


class TellsRecipe(Protocol):
    """A trainer."""

    async def learning_rate(self) -> float:
        """As `adapters.trainer.Trainer.learning_rate`."""

    async def corpus_rates(self) -> tuple[float, float]:
        """As `adapters.trainer.Trainer.corpus_rates`."""


class CorpusTrainer(TellsRecipe, Trains, Protocol):
    """A trainer that tells what it trains, or several of the same kind."""

    async def count(self) -> int:
        """As `serving.workers.stages.TrainerWorker.count`."""


@dataclass(frozen=True)
class Recipe:
    """What the trainer trains: adapters of one recipe continue each other.

    Attributes:
        shape: base model, rank and projections.
        learning_rate: Adam learning rate, of which a course takes a multiple.
        rates: the multiples that are tried, the highest first.
    """

    shape: AdapterShape
    learning_rate: float
    rates: tuple[float, float]

    @classmethod
    async def of(cls, shape: AdapterShape, trainer: TellsRecipe) -> Recipe:
        """The recipe of a trainer."""
        return cls(shape, await trainer.learning_rate(), await trainer.corpus_rates())

    def as_dict(self) -> dict[str, Any]:
        """What interrupted trainings must have in common with it, for JSON."""
        shape = self.shape
        named = {"model": shape.model, "rank": shape.rank, "targets": list(shape.targets)}
        return {**named, "learning_rate": self.learning_rate, "rates": list(self.rates)}


class StoredCorpus:
    """The corpus side of a training.

    Args:
        call: calls the corpus's adapter.
        recipe: what the trainer trains.
    """

    def __init__(self, call: AdapterCall, recipe: Recipe) -> None:
        self._call, self._recipe = call, recipe

    async def begin(self, options: TrainingOptions) -> Checkpoint:
        """As `CorpusSide.begin`."""
        shape = self._recipe.shape
        plan = await self._call(AdapterTraining.plan, shape, options.parts, fresh=options.fresh)
        info = (await self._call(AdapterTraining.status, shape)).info
        if info is None or options.fresh or info.shape.mismatch(shape) is not None:
            return Checkpoint(
                plan, self._recipe.rates, passes=options.passes, fresh=options.fresh
            ).begun()
        names = tuple(part.name for part in info.parts)
        rate = info.learning_rate / self._recipe.learning_rate
        is_offered = any(math.isclose(rate, each) for each in self._recipe.rates)
        if plan.replaces_all(names) and not is_offered:
            # Nothing stays that was trained at the old rate, and another one was asked for.
            return Checkpoint(plan, self._recipe.rates, names, passes=options.passes).begun()
        passes = options.passes or info.passes
        return Checkpoint(plan, self._recipe.rates, names, rate, passes).begun()

    async def resume(self) -> Checkpoint | None:
        """As `CorpusSide.resume`."""
        stored = await self._call(AdapterTraining.load_checkpoint)
        if stored is None:
            return None
        try:
            found = self._checkpoint(stored)
        except (KeyError, TypeError, ValueError) as problem:
            log.warning(
                "the interrupted training of this corpus was of another version of Mayfly: it "
                "begins again (%s)",
                first_line(problem),
            )
            return None
        if found is None:
            log.warning(
                "the interrupted training of this corpus was for another model, rank, choice of "
                "projections or learning rate: it begins again"
            )
        return found

    def _checkpoint(self, stored: StoredCheckpoint) -> Checkpoint | None:
        """What was stored; None if it is not of this recipe."""
        progress, files = stored.progress, stored.files
        if progress["recipe"] != self._recipe.as_dict():
            return None
        return Checkpoint(
            TrainingPlan.from_bytes(files["plan"]),
            self._recipe.rates,
            tuple(progress["names"]),
            progress["rate"],
            progress["passes"],
            progress["number"],
            Position.from_dict(progress["position"]),
            _state(files, "", progress["steps"]),
            _state(files, "kept", progress["kept_steps"]),
            tuple(progress["learnt"]),
            progress["scale_numerator"],
            progress["fresh"],
        )

    async def rows(self, ids: Sequence[int]) -> dict[int, Row]:
        """As `CorpusSide.rows`."""
        found = {}
        for start in range(0, len(ids), _BATCH):
            found.update(await self._call(AdapterTraining.sequences, ids[start : start + _BATCH]))
        return {each: Row.of(*found[each]) for each in ids if each in found}

    async def has_deleted(self, ids: Sequence[int]) -> bool:
        """As `CorpusSide.has_deleted`."""
        return not await self._call(AdapterTraining.are_present, ids)

    async def earlier(self, part: str) -> tuple[TrainingState, tuple[int, ...]]:
        """As `CorpusSide.earlier`."""
        found = await self._call(AdapterTraining.part, part)
        return TrainingState(found.weights, found.moments, found.steps), found.learnt

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """As `CorpusSide.save_checkpoint`."""
        state, kept = checkpoint.state, checkpoint.kept
        progress = {
            "recipe": self._recipe.as_dict(),
            "names": checkpoint.names,
            "rate": checkpoint.rate,
            "passes": checkpoint.passes,
            "number": checkpoint.number,
            "position": checkpoint.position.as_dict(),
            "steps": None if state is None else state.steps,
            "kept_steps": None if kept is None else kept.steps,
            "learnt": checkpoint.learnt,
            "scale_numerator": checkpoint.scale_numerator,
            "fresh": checkpoint.fresh,
        }
        files = {"plan": checkpoint.plan.to_bytes(), **_files("", state), **_files("kept", kept)}
        stored = StoredCheckpoint(checkpoint.plan.snapshot, progress, files, checkpoint.needed)
        await self._call(AdapterTraining.save_checkpoint, stored)

    async def clear_checkpoint(self) -> None:
        """As `CorpusSide.clear_checkpoint`."""
        await self._call(AdapterTraining.clear_checkpoint)

    async def drop_invalid(self) -> None:
        """As `CorpusSide.drop_invalid`."""
        await self._call(AdapterTraining.drop_invalid)

    async def save(self, checkpoint: Checkpoint) -> str:
        """As `CorpusSide.save`."""
        state, position = checkpoint.state, checkpoint.position
        assert state is not None, "there is an adapter to save"
        shape = self._recipe.shape
        settings = AdapterSettings(
            shape.model,
            shape.rank,
            checkpoint.scale_numerator,
            shape.targets,
            position.rate * self._recipe.learning_rate,
            max(1, position.passes),
            checkpoint.plan.divided,
        )
        part = TrainedPart(
            state.weights,
            checkpoint.all_learnt,
            checkpoint.plan.snapshot,
            state.moments,
            state.steps,
            CORPUS_SCALING,
        )
        # An interrupted run may have saved this part already.
        info = (await self._call(AdapterTraining.status)).info
        present = () if info is None else [each.name for each in info.parts]
        earlier = tuple(name for name in present if name not in checkpoint.names)
        replaces = (*checkpoint.part.replaces, *earlier)
        saved = await self._call(AdapterTraining.save_part, settings, part, replaces)
        return saved.name

    async def summary(self) -> CorpusSummary:
        """As `CorpusSide.summary`."""
        status = await self._call(AdapterTraining.status, self._recipe.shape)
        info = status.info
        if info is None or info.shape.mismatch(self._recipe.shape) is not None:
            return CorpusSummary(not_learnt=status.learnt + status.not_learnt)
        return CorpusSummary(
            status.learnt,
            status.documents,
            status.not_learnt,
            len(info.parts),
            info.learning_rate,
            info.passes,
        )


def _files(prefix: str, state: TrainingState | None) -> dict[str, bytes]:
    if state is None:
        return {}
    return {f"{prefix}weights": state.weights, f"{prefix}moments": state.moments}


def _state(files: Mapping[str, bytes], prefix: str, steps: int | None) -> TrainingState | None:
    if steps is None:
        return None
    return TrainingState(files[f"{prefix}weights"], files[f"{prefix}moments"], steps)
