"""CorpusScan: looks through the vector stores for trainings, and begins those nobody else does.

These are the operations that another process has abandoned and, with `keeps_fresh`, trainings of
corpora that have changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from selection.access import OPERATOR
from selection.config import AdapterShape
from selection.corpus.trained.manifest import AdapterStatus
from selection.corpus.trained.training import AdapterTraining
from selection.errors import MissingError
from serving.adaptation.stages import LibraryExecutor
from serving.corpus_training.operation import Status, TrainingOperation
from serving.corpus_training.records import TrainingRecords
from serving.corpus_training.stored import calls_to
from serving.corpus_training.values import TrainingOptions
from serving.observability.logs import log_failure

log = logging.getLogger(__name__)


class CorpusScan:
    """Scans the vector stores for one server process.

    Args:
        library: calls the library of the corpora.
        records: the recorded operations.
        shape: what the trainer trains for.
        keeps_fresh: whether corpora that have changed are trained without being asked.

    Attributes:
        sees_other_trainings: whether another process was training a corpus at the last scan.
    """

    def __init__(
        self,
        library: LibraryExecutor,
        records: TrainingRecords,
        shape: AdapterShape,
        *,
        keeps_fresh: bool,
    ) -> None:
        self._library, self._records = library, records
        self._shape, self._keeps_fresh = shape, keeps_fresh
        self.sees_other_trainings = False
        # What of a corpus was not learnt at the last scan, and when it was last trained.
        self._seen: dict[str, object] = {}
        self._tried: dict[str, object] = {}

    def note_training(self, store: str, status: AdapterStatus) -> None:
        """Note that a vector store with this adapter is trained: if that is cancelled or fails, it
        is trained by itself only once it has changed.
        """
        self._tried[store] = status.left_to(self._shape)

    async def run(self, is_own: Callable[[str], bool]) -> list[TrainingOperation]:
        """Begin operations: they are recorded, and this process has to do them. A problem with one
        vector store is logged, and keeps no other one from being looked at.

        Args:
            is_own: whether this process has an operation of a vector store.
        """
        operations: list[TrainingOperation] = []
        sees_other_trainings = False
        for store, record in (await self._records.all()).items():
            try:
                stored = None if record is None else TrainingOperation.from_dict(record)
                if stored is None or not stored.is_pending:
                    if not self._keeps_fresh or not await self._has_settled(store):
                        continue
                    operation = TrainingOperation.new(store, TrainingOptions())
                elif is_own(store):
                    continue
                elif stored.is_under_way:
                    sees_other_trainings = True
                    continue
                else:
                    operation = replace(stored, status=Status.QUEUED)
                # Another process may have begun or ended it since it was read.
                if (held := await self._records.begin(operation, stored)) is not None:
                    operations.append(held)
            except MissingError:
                # It was deleted meanwhile.
                continue
            except Exception as problem:
                log_failure(log, f"cannot look after the training of vector store {store}", problem)
        self.sees_other_trainings = sees_other_trainings
        return operations

    async def _has_settled(self, store: str) -> bool:
        """Whether something of a vector store is to be learnt that was to be at the last scan."""
        call = calls_to(self._library, store, OPERATOR, reads=True)
        status = await call(AdapterTraining.status, self._shape)
        state = status.left_to(self._shape)
        is_settled, self._seen[store] = self._seen.get(store) == state, state
        if not any(state[1:]) or not is_settled or self._tried.get(store) == state:
            return False
        self.note_training(store, status)
        return True
