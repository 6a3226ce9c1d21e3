"""TrainingRecords: the trainings of a server's corpora, as they are recorded beside the corpora.

Several server processes read and write them. The one that recorded an operation last holds it: the
records and the adapters of all others are refused from then on, as they are once it was cancelled,
or the adapter removed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from selection.access import OPERATOR, Principal
from selection.corpus.trained.training import AdapterTraining
from selection.library.library import Library
from serving.adaptation.stages import LibraryExecutor
from serving.corpus_training.operation import Status, TrainingOperation
from serving.corpus_training.stored import AdapterCall, calls_to
from serving.errors import MayflyError

P = ParamSpec("P")
Result = TypeVar("Result")


class OperationEndedError(MayflyError):
    """A training that was cancelled, or that another process does."""


class TrainingRecords:
    """The records as one server process reads and writes them.

    Methods raise MissingError if the principal does not see the vector store, and `write` raises
    ReadOnlyError if they do not own it.

    Args:
        library: calls the library of the corpora.
    """

    def __init__(self, library: LibraryExecutor) -> None:
        self._library, self._holder = library, uuid.uuid4().hex

    async def read(self, store: str, principal: Principal) -> TrainingOperation | None:
        """The last training of a vector store; None if it was never trained by a server."""
        call = calls_to(self._library, store, principal, reads=True)
        stored = await call(AdapterTraining.recorded)
        return None if stored is None else TrainingOperation.from_dict(stored)

    async def all(self) -> dict[str, dict[str, Any] | None]:
        """What is recorded of each vector store, as `StoreTrainings.recorded`."""
        return await self._library.call(_recorded)

    async def write(
        self, operation: TrainingOperation, principal: Principal = OPERATOR
    ) -> TrainingOperation:
        """Record an operation, whatever is recorded; this process holds it from now on."""
        held = replace(operation, holder=self._holder, renewed=time.time())
        call = calls_to(self._library, operation.store, principal)
        await call(AdapterTraining.record, held.as_dict())
        return held

    async def begin(
        self, operation: TrainingOperation, seen: TrainingOperation | None
    ) -> TrainingOperation | None:
        """As `write`, if what is recorded is still what was seen; None if it is not."""
        held = replace(operation, holder=self._holder, renewed=time.time())
        call = calls_to(self._library, operation.store, OPERATOR)
        return held if await call(_record_instead, seen, held.as_dict()) else None

    async def renew(self, operation: TrainingOperation) -> bool:
        """Record the progress or the outcome of an operation; False if this process does not hold
        it any more.
        """
        renewed = replace(operation, renewed=time.time()).as_dict()
        try:
            await self.calls_of(operation)(AdapterTraining.record, renewed)
        except OperationEndedError:
            return False
        return True

    def calls_of(self, operation: TrainingOperation) -> AdapterCall:
        """Calls of the adapter of an operation; each raises OperationEndedError if this process
        does not hold the operation any more.
        """
        to_store = calls_to(self._library, operation.store, OPERATOR)
        expected = {"created": operation.created, "holder": operation.holder}

        async def call(
            method: Callable[Concatenate[AdapterTraining, P], Result],
            /,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> Result:
            return await to_store(_if_held, expected, method, *args, **kwargs)

        return call


def _recorded(library: Library) -> dict[str, dict[str, Any] | None]:
    return library.trainings.recorded()


def _if_held(
    training: AdapterTraining,
    expected: Mapping[str, Any],
    method: Callable[Concatenate[AdapterTraining, P], Result],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Result:
    stored = training.recorded() or {}
    # The progress of one that has ended may arrive after its outcome.
    is_pending = stored.get("status") in (Status.QUEUED, Status.IN_PROGRESS)
    if not is_pending or not expected.items() <= stored.items():
        raise OperationEndedError("the training has ended, or another process does it")
    return method(training, *args, **kwargs)


def _record_instead(
    training: AdapterTraining, seen: TrainingOperation | None, record: Mapping[str, Any]
) -> bool:
    stored = training.recorded()
    if (None if stored is None else TrainingOperation.from_dict(stored)) != seen:
        return False
    training.record(record)
    return True
