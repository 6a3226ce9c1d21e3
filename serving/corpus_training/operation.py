"""TrainingOperation: a training of a vector store's adapter as a server reports it.

It is stored beside the corpus, so that any replica can report it, and go on after another one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from serving.corpus_training.values import TrainingOptions

# Seconds without a record of an operation until another process takes it over.
ABANDONED_SECONDS = 20.0


class Status(StrEnum):
    """The status of an operation."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class TrainingOperation:
    """A training of a vector store's adapter.

    Attributes:
        store: id of the vector store.
        created: when it was asked for, in seconds since 1970, UTC.
        renewed: when a server last recorded that it will be done or is being done.
        options: how the adapter is trained.
        status: its status.
        phase: what is being done; empty before it began.
        done, total: number of sequences taken, repeats counted, and at the end.
        seconds: duration of the training until now, without the time in the queue.
        error: why it failed.
        holder: identifies the process that does it.
    """

    store: str
    created: float
    renewed: float
    options: TrainingOptions
    status: Status = Status.QUEUED
    phase: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    error: str | None = None
    holder: str = ""

    @classmethod
    def new(cls, store: str, options: TrainingOptions) -> TrainingOperation:
        """One that is asked for now."""
        now = time.time()
        return cls(store, now, now, options)

    @property
    def is_pending(self) -> bool:
        """Whether it has not ended."""
        return self.status in (Status.QUEUED, Status.IN_PROGRESS)

    @property
    def is_under_way(self) -> bool:
        """Whether a server will do it or is doing it: it has lately recorded that."""
        return self.is_pending and time.time() - self.renewed < ABANDONED_SECONDS

    def is_recorded_by(self, record: TrainingOperation) -> bool:
        """Whether a record is of this operation, and says that it has not ended."""
        same = (record.created, record.holder) == (self.created, self.holder)
        return same and record.is_pending

    def as_dict(self) -> dict[str, Any]:
        """The operation for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainingOperation:
        """The inverse of `as_dict`."""
        options, status = TrainingOptions(**fields["options"]), Status(fields["status"])
        return cls(**{**fields, "options": options, "status": status})
