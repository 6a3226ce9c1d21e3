"""CorpusTrainings: the trainings of a server's corpora, as many at once as there are trainers.

Each is an operation that is recorded beside its corpus: what a process leaves behind is taken over
by the next one, and goes on from its checkpoint. With `keeps_fresh`, corpora that have changed are
trained without being asked. Requests have priority: while some are under way, the trainer begins no
step of a training (`priority`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from selection.access import OPERATOR, Principal
from selection.config import AdapterShape
from selection.corpus.trained.manifest import AdapterStatus
from selection.corpus.trained.training import AdapterTraining
from selection.errors import (
    CorpusError,
    CorpusNotFoundError,
    CorpusUnavailableError,
    LibraryError,
    MissingError,
)
from selection.library.library import Library
from serving.adaptation.stages import LibraryExecutor
from serving.corpus_training.operation import Status, TrainingOperation
from serving.corpus_training.priority import RequestPriority
from serving.corpus_training.records import OperationEndedError, TrainingRecords
from serving.corpus_training.repeated import repeat, until_done
from serving.corpus_training.scan import CorpusScan
from serving.corpus_training.stored import (
    CorpusTrainer,
    Recipe,
    StoredCorpus,
    calls_to,
    check_free,
)
from serving.corpus_training.training import CorpusTraining
from serving.corpus_training.values import CorpusTrainingProgress, TrainingOptions
from serving.errors import USER_ERRORS
from serving.observability.logs import log_failure

log = logging.getLogger(__name__)

# Seconds between two records of an operation.
RECORD_SECONDS = 3.0
# Seconds between two looks for operations to take over, and for corpora that have changed. These
# are trained once they are the same in two looks.
LOOK_SECONDS = 30.0


class CorpusTrainings:
    """The trainings of one server process; belongs to one event loop.

    Args:
        trainer: the trainer.
        library: calls the library of the corpora.
        shape: what the trainer trains for.
        is_busy: whether requests are under way.
        keeps_fresh: whether corpora that have changed are trained without being asked.

    Attributes:
        priority: the priority of requests over these trainings.
    """

    def __init__(
        self,
        trainer: CorpusTrainer,
        library: LibraryExecutor,
        shape: AdapterShape,
        is_busy: Callable[[], bool],
        *,
        keeps_fresh: bool = False,
    ) -> None:
        self._trainer, self._library, self._shape = trainer, library, shape
        self._records = TrainingRecords(library)
        self._scan = CorpusScan(library, self._records, shape, keeps_fresh=keeps_fresh)
        self.priority = RequestPriority(
            trainer, lambda: self.is_running or self._scan.sees_other_trainings, is_busy
        )
        # Operations of this process that have not ended, in the order in which they are done.
        self._pending: dict[str, TrainingOperation] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        # Whether `_pending` or `_running` have changed.
        self._changed = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Whether a corpus is being trained."""
        return bool(self._running)

    async def run(self) -> None:
        """Train what is asked for, and what other processes have left, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._train_all())
            tasks.create_task(self.priority.work())
            tasks.create_task(repeat(self._record_all, RECORD_SECONDS))
            tasks.create_task(repeat(self._look, LOOK_SECONDS))

    async def train(
        self, store: str, options: TrainingOptions, principal: Principal
    ) -> TrainingOperation:
        """Start or resume the training of a vector store's adapter, unless it is under way.

        Raises:
            MissingError, ReadOnlyError: the principal does not see or own the vector store.
            LibraryError: it is of another embedder or tokenizer, or empty.
        """
        info = await self._library.call(Library.store, store, principal=principal)
        owned = calls_to(self._library, store, principal)
        status = await owned(AdapterTraining.status, self._shape)
        if info.mismatch is not None:
            raise LibraryError(info.mismatch)
        if not status.learnt + status.not_learnt:
            raise LibraryError(f"vector store {store!r} has nothing to learn: attach files first")
        stored = await self.operation(info.id, principal)
        is_own = stored is not None and stored.is_pending and self._has(info.id)
        if stored is not None and (is_own or stored.is_under_way):
            return stored
        # What another process has cancelled meanwhile.
        await self._drop(info.id)
        self._scan.note_training(info.id, status)
        held = await self._records.write(TrainingOperation.new(info.id, options))
        self._add(held)
        return held

    async def status(self, store: str, principal: Principal) -> AdapterStatus:
        """The status of a vector store's adapter.

        Raises:
            MissingError: the principal does not see the vector store.
        """
        call = calls_to(self._library, store, principal, reads=True)
        return await call(AdapterTraining.status, self._shape)

    async def operation(self, store: str, principal: Principal) -> TrainingOperation | None:
        """The last training of a vector store; None if it was never trained by a server.

        Raises:
            MissingError: the principal does not see the vector store.
        """
        stored = await self._records.read(store, principal)
        own = None if stored is None else self._pending.get(stored.store)
        return own if own and stored and own.is_recorded_by(stored) else stored

    async def cancel(self, store: str, principal: Principal) -> TrainingOperation:
        """End the training of a vector store; the next one goes on from its checkpoint.

        Raises:
            MissingError: it is not in training; or as `train`.
        """
        operation = await self.operation(store, principal)
        if operation is None or not operation.is_pending:
            raise MissingError(f"the adapter of vector store {store!r} is not in training")
        # Only its owner may cancel it.
        await calls_to(self._library, store, principal)(AdapterTraining.recorded)
        await self._drop(operation.store)
        await self._note_state(operation.store)
        # Another process that is training it finds this when it next calls the corpus.
        return await self._records.write(replace(operation, status=Status.CANCELLED), principal)

    async def remove(self, store: str, principal: Principal) -> str:
        """Delete the adapter of a vector store, and end its training; returns the store's id.

        Raises:
            MissingError: it has none, and was never trained by a server; or as `train`.
            LibraryError: a command is training it.
        """
        operation = await self.operation(store, principal)
        if operation is not None and operation.is_pending:
            await self.cancel(store, principal)
        try:
            identity = await self._library.call(check_free, store, principal)
        except CorpusUnavailableError:
            raise
        except CorpusError as problem:
            # A command is training it.
            raise LibraryError(str(problem)) from problem
        if operation is None and (await self.status(store, principal)).info is None:
            raise MissingError(f"vector store {store!r} has no adapter")
        call = calls_to(self._library, store, principal)
        await call(AdapterTraining.remove)
        await call(AdapterTraining.record, None)
        return identity

    async def _note_state(self, store: str) -> None:
        """Note what an ended training has left, so that it is not begun again for the same."""
        try:
            self._scan.note_training(store, await self.status(store, OPERATOR))
        except MissingError:
            # The vector store was deleted.
            return
        except Exception as problem:
            log_failure(log, f"cannot read the adapter of vector store {store}", problem)

    def _add(self, operation: TrainingOperation) -> None:
        self._pending[operation.store] = operation
        self._changed.set()

    def _has(self, store: str) -> bool:
        """Whether this process does an operation, until its outcome is recorded."""
        return store in self._running or store in self._pending

    async def _drop(self, store: str) -> None:
        """Forget an operation; if it is running, wait until it has ended."""
        self._pending.pop(store, None)
        if (running := self._running.get(store)) is not None:
            running.cancel()
            await asyncio.wait([running])

    async def _train_all(self) -> None:
        try:
            while True:
                self._changed.clear()
                # One that waits may have been cancelled while the trainers were counted.
                if self._waiting and await self._is_trainer_free() and self._waiting:
                    store = self._waiting[0]
                    work = self._train(store, self._pending[store].created)
                    running = asyncio.create_task(work, name=store)
                    self._running[store] = running
                    running.add_done_callback(self._note_end)
                else:
                    await self._changed.wait()
        finally:
            for running in (left := [*self._running.values()]):
                running.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    @property
    def _waiting(self) -> list[str]:
        return [store for store in self._pending if store not in self._running]

    async def _is_trainer_free(self) -> bool:
        if not self._running:
            return True
        try:
            return len(self._running) < await self._trainer.count()
        except Exception as problem:
            log_failure(log, "cannot count the trainers", problem)
            return False

    def _note_end(self, running: asyncio.Task[None]) -> None:
        store = running.get_name()
        del self._running[store]
        self._changed.set()
        # The outcome could not be recorded.
        if not running.cancelled() and (problem := running.exception()) is not None:
            what = f"the training of vector store {store} has ended without a record"
            log_failure(log, what, problem)

    async def _train(self, store: str, created: float) -> None:
        """Train a corpus and record the outcome; cancelled by `_drop`, or when the process ends."""

        def done() -> int:
            operation = self._pending.get(store)
            return operation.done if operation else 0

        error: str | None
        try:
            what = f"the training of vector store {store}"
            await until_done(partial(self._train_once, store), done, what)
            status, error = Status.COMPLETED, None
        except (MissingError, CorpusNotFoundError, OperationEndedError):
            # The vector store was deleted, or another process has ended or taken over the training.
            self._take(store, created)
            return
        except USER_ERRORS as problem:
            status, error = Status.FAILED, str(problem)
        except Exception:
            log.exception("the training of vector store %s failed", store)
            status, error = Status.FAILED, "the server failed to train it; its log says why"
        if (operation := self._take(store, created)) is None:
            return
        if error is not None:
            await self._note_state(store)
        with contextlib.suppress(MissingError):
            await self._records.renew(replace(operation, status=status, error=error))

    def _take(self, store: str, created: float) -> TrainingOperation | None:
        """Forget an operation, unless another one of its store has taken its place."""
        operation = self._pending.get(store)
        if operation is None or operation.created != created:
            return None
        return self._pending.pop(store)

    async def _train_once(self, store: str) -> None:
        operation = replace(self._pending[store], status=Status.IN_PROGRESS)
        self._pending[store] = operation
        begun = time.monotonic() - operation.seconds

        def note(progress: CorpusTrainingProgress) -> None:
            if store not in self._pending:
                return
            self._pending[store] = replace(
                self._pending[store],
                phase=progress.phase,
                done=progress.done,
                total=progress.total,
                seconds=time.monotonic() - begun,
            )

        await self._library.call(check_free, store, OPERATOR)
        recipe = await Recipe.of(self._shape, self._trainer)
        corpus = StoredCorpus(self._records.calls_of(operation), recipe)
        options = operation.options
        if options.seconds is not None:
            # Those of earlier attempts, and of other processes, count.
            left = max(0.0, options.seconds - operation.seconds)
            options = replace(options, seconds=left)
        await CorpusTraining(self._trainer, corpus, options, note).run()

    async def _record_all(self) -> None:
        """Record the operations of this process, and end those that another one has cancelled or
        taken over, or whose adapter it has removed.
        """
        for store in [*self._pending]:
            # Others may have ended while one was recorded.
            if (operation := self._pending.get(store)) is None:
                continue
            try:
                if await self._records.renew(operation):
                    continue
            except MissingError:
                pass
            except Exception as problem:
                log_failure(log, f"cannot record the training of vector store {store}", problem)
                continue
            now = self._pending.get(store)
            if now is not None and now.created == operation.created:
                await self._drop(store)
                await self._note_state(store)

    async def _look(self) -> None:
        """Take over abandoned operations, and train corpora that have changed."""
        for operation in await self._scan.run(self._has):
            self._add(operation)
