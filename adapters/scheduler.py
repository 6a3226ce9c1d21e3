"""Schedule: which requests take their next step together.

Earliest deadline first. A request without a deadline gets one for the order's sake, PATIENCE
seconds after it came, so that nobody waits for ever behind newcomers in a hurry. Where slots are
few, a newcomer in a hurry takes that of the least urgent, who goes on later where it stopped. The
most urgent request is always in the batch; others join it in order of urgency as long as the batch
stays within its tokens and its memory, little of it is padding, and nobody's time runs out
meanwhile. A request that has taken no step yet gets its first one if such steps usually end in
time, later ones if they nearly always do. It decides by numbers alone: no tensors, no threads, no
clock of its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from adapters.adapter import Adapter
from adapters.early_stopping import FIRST_LOOK, EarlyStopping
from adapters.step_plan import Step, steps_of
from adapters.step_time import StepTime
from adapters.training import Probe, TrainingProgress, TrainingRequest, TrainingResult, TrainingStop

PATIENCE = 60.0  # seconds
_PADDING = 0.25  # the largest share of a batch
_ENDINGS = 2


@dataclass(eq=False)
class Job:
    """One request's training, under way.

    Attributes:
        request: what is trained on, and how.
        came: when it was submitted, in the schedule's seconds.
        cancelled: set once its result is no longer wanted.
        on_step: called after each step.
        done: receives the result.
        steps: the steps of the request's plan, in order.
        deadline: in the schedule's seconds; infinite for a request without a limit.
        probe: the request's, until its measurement alone would exceed the limit.
        stopping: the losses of the probe, and what follows from them.
        began: when its first step did, in the schedule's seconds; infinite before that.
        slot: its adapter's; None while it waits.
        losses: of the steps taken.
        used: how many sequences the steps taken have learnt from.
        kept: gradients that later steps take again, by position.
        parked: its adapter and moments, while it waits for a slot again.
    """

    request: TrainingRequest
    came: float
    cancelled: threading.Event | None = None
    on_step: Callable[[TrainingProgress], None] | None = None
    done: Future[TrainingResult] = field(default_factory=Future)
    began: float = math.inf
    slot: int | None = None
    losses: list[float] = field(default_factory=list)
    used: int = 0
    kept: dict[int, tuple[Any, float]] = field(default_factory=dict)
    parked: Any = None
    steps: Sequence[Step] = field(init=False)
    deadline: float = field(init=False)
    probe: Probe | None = field(init=False)
    stopping: EarlyStopping = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        self.steps = steps_of(request.plan, [tuple(sequence) for sequence in request.sequences])
        self.deadline = self.came + (math.inf if request.seconds is None else request.seconds)
        self.probe = request.probe
        self.stopping = EarlyStopping(request.probe.gain if request.probe else None)

    @property
    def sequences(self) -> Sequence[Sequence[int]]:
        """The request's."""
        return self.request.sequences

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Of its steps: how many sequences, and how long the longest of them is."""
        return {
            (len(step.sequences), max(len(self.sequences[i]) for i in step.sequences))
            for step in self.steps
        }

    @property
    def step(self) -> Step:
        """The next one."""
        return self.steps[len(self.losses)]

    @property
    def rows(self) -> list[Sequence[int]]:
        """What the next step computes; nothing where it takes an earlier gradient again."""
        return (
            []
            if self.step.reused is not None
            else [self.sequences[position] for position in self.step.sequences]
        )

    @property
    def is_due(self) -> bool:
        """Whether what is watched should be looked at before the next step."""
        return self.probe is not None and self.stopping.is_due(self.used)

    @property
    def is_unseen(self) -> bool:
        """Whether what is watched has not been looked at since the last step."""
        looks = self.stopping.looks
        return self.probe is not None and bool(looks) and looks[-1].used < self.used

    @property
    def looks(self) -> list[int]:
        """Tokens of each look that the next step brings with it, before it or after it."""
        if self.probe is None:
            return []
        after = self.used + len(self.step.sequences)
        due = self.stopping.is_due(after) if self.stopping.looks else after >= FIRST_LOOK
        return [len(self.probe.tokens)] * (self.is_due + (due and self.probe.gain is not None))

    @property
    def closing(self) -> list[Sequence[int]]:
        """What its ending scores: the sequence learnt last, and what is watched unless its last
        look told of this.
        """
        return [
            self.sequences[self.used - 1],
            *([self.probe.tokens] if self.probe and self.is_unseen else []),
        ]

    @property
    def ending(self) -> int:
        """Tokens that its ending may score, padding included."""
        lengths = [
            max(map(len, self.sequences), default=0),
            *([len(self.probe.tokens)] if self.probe else []),
        ]
        return len(lengths) * max(lengths)

    def progress(self, now: float) -> TrainingProgress:
        """How far it has come."""
        spent, steps, of = now - self.came, len(self.losses), len(self.steps)
        left = min(spent / steps * (of - steps), self.deadline - now)
        watched = self.stopping.looks[-1].loss if self.stopping.looks else None
        return TrainingProgress(
            steps, of, self.used, self.losses[-1], spent, max(left, 0.0), self.place, watched
        )

    def training(
        self, adapter: Adapter | None, stop: TrainingStop, now: float, kept: int = 0
    ) -> TrainingResult:
        """What became of it; `kept` as in `TrainingResult`."""
        waited = min(self.began, now) - self.came
        watched = tuple((look.used, look.loss) for look in self.stopping.looks)
        return TrainingResult(
            adapter, tuple(self.losses), self.used, stop, now - self.came, waited, watched, kept
        )

    @property
    def place(self) -> int:
        """Its slot, which it has as long as it trains."""
        assert self.slot is not None
        return self.slot

    @property
    def urgency(self) -> float:
        """By when it wants to be done: its deadline, or what stands for one."""
        return min(self.deadline, self.came + PATIENCE)


@dataclass(frozen=True)
class Times:
    """How long a step takes, a look at what is watched, and an ending, each by its tokens."""

    step: StepTime = field(default_factory=StepTime)
    look: StepTime = field(default_factory=StepTime)
    ending: StepTime = field(default_factory=StepTime)

    def forget(self) -> None:
        """Drop what was observed."""
        for each in (self.step, self.look, self.ending):
            each.forget()

    def doubt(self) -> None:
        """Somebody took no step because of what is expected here."""
        for each in (self.step, self.look, self.ending):
            each.doubt()


class Scheduler:
    """The requests that train, and those that wait for a slot."""

    def __init__(
        self,
        slots: int,
        most_tokens: int,
        times: Times,
        holds: Callable[[int, int], bool] = lambda rows, tokens: True,
    ) -> None:
        self._free = list(range(slots))
        self._waiting: list[Job] = []
        self._active: list[Job] = []
        self._most_tokens, self._times, self._holds = most_tokens, times, holds

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    def add(self, job: Job) -> None:
        """A request comes."""
        self._waiting.append(job)

    def displace(self) -> list[tuple[Job, int]]:
        """Who gives up a slot to somebody more urgent that waits, and which; they wait again."""
        displaced = []
        for job in sorted(self._waiting, key=lambda job: job.urgency)[len(self._free) :]:
            last = max(self._active, key=lambda job: job.urgency, default=None)
            if last is None or job.urgency >= last.urgency:
                break
            displaced.append((last, last.place))
            self.leave(last)
            self._waiting.append(last)
        return displaced

    def admit(self) -> list[Job]:
        """Give free slots to the most urgent that wait; those that got one."""
        self._waiting.sort(key=lambda job: job.urgency)
        admitted = self._waiting[: len(self._free)]
        del self._waiting[: len(admitted)]
        for job in admitted:
            job.slot = self._free.pop(0)
        self._active += admitted
        return admitted

    def leave(self, job: Job) -> None:
        """A request ends; its slot is free again."""
        if job.slot is None:
            self._waiting.remove(job)
        else:
            self._active.remove(job)
            self._free = sorted([*self._free, job.slot])
            job.slot = None

    def clear(self) -> list[Job]:
        """All leave; who they were."""
        jobs = [*self._active, *self._waiting]
        for job in jobs:
            self.leave(job)
        return jobs

    def ended(self, now: float) -> list[tuple[Job, TrainingStop]]:
        """Requests that take no further step, each with the reason.

        A few at a time, those first whose deadline is: whoever comes after them must wait for their
        endings.
        """
        found = []
        for job in [*self._active, *self._waiting]:
            if job.cancelled is not None and job.cancelled.is_set():
                found.append((job, TrainingStop.CANCELLED))
            elif len(job.losses) == len(job.steps):
                found.append((job, TrainingStop.STEPS))
            elif job.stopping.has_stalled:
                found.append((job, TrainingStop.GAIN))
            elif self._is_late(job, now):
                found.append((job, TrainingStop.SECONDS))
        return sorted(found, key=lambda pair: pair[0].deadline)[:_ENDINGS]

    def batch(self, now: float) -> list[Job]:
        """Who takes a step now."""
        chosen: list[Job] = []
        # Nobody's time may run out while others' rows are computed: not of those in the batch, nor
        # of those left out.
        first = min((job.deadline for job in [*self._active, *self._waiting]), default=math.inf)
        for job in sorted(self._active, key=lambda job: job.urgency):
            wider = [*chosen, job]
            if not chosen or (self._fits(wider) and now + self._seconds(wider) <= first):
                chosen = wider
        return chosen

    def _fits(self, jobs: Sequence[Job]) -> bool:
        rows = [len(row) for job in jobs for row in job.rows]
        longest = max(rows, default=0)
        padded = len(rows) * longest
        little_padding = padded - sum(rows) <= _PADDING * padded
        return padded <= self._most_tokens and little_padding and self._holds(len(rows), longest)

    def _is_late(self, job: Job, now: float) -> bool:
        """Whether it has no time for another step. What is watched is left alone where only a look
        is too much.
        """
        if job.losses:
            return now + self._seconds([job]) > job.deadline
        if now + self._seconds([job], StepTime.typical) > job.deadline and not job.stopping.looks:
            job.probe = None
        return now + self._seconds([job], StepTime.typical) > job.deadline

    def _seconds(
        self, jobs: Sequence[Job], of: Callable[[StepTime, int], float] = StepTime.expect
    ) -> float:
        """How long a step of these takes with its looks, and then the ending of one of them, which
        must be in time.
        """
        rows = [len(row) for job in jobs for row in job.rows]
        looks = [tokens for job in jobs for tokens in job.looks]
        seconds = of(self._times.step, len(rows) * max(rows, default=0))
        if looks:
            seconds += of(self._times.look, len(looks) * max(looks))
        return seconds + of(self._times.ending, max(job.ending for job in jobs))
