"""The trainer under load: concurrent requests, deadlines, and memory over thousands of adaptations.

Whole requests with the trainer's own defaults, nearly all on the bundled model. Lateness is in
steps: seconds past the deadline over the time of the step in progress at the deadline, or over the
median of the last steps if that is longer. Sequences are random.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import psutil

from adapters import Trainer, TrainerConfig, TrainingProgress, TrainingRequest, TrainingResult
from benchmarks.harness.measures import spread
from benchmarks.harness.provenance import ROOT
from benchmarks.training.peft_loop import Sequences, Subject, draw_sequences, folder_of

_NANO = str(ROOT / "deploy" / "nano")
_SHARE_WITHOUT_DEADLINE = 0.25
_DEADLINE_SECONDS = (0.02, 3.0)  # least and most, drawn log-uniformly
_OVERLOAD = 1.2  # times the trainer's capacity
# Reports of one batch's steps follow each other within this time.
_SAME_BATCH_SECONDS = 1e-3
_RECENT_STEPS = 9
_WARM_UP = 200  # adaptations


class StepTimer:
    """Times the trainer's steps, from the reports of all requests' steps."""

    def __init__(self) -> None:
        self._last_step = -math.inf
        self._steps: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._ends: deque[float] = deque(maxlen=_RECENT_STEPS)
        self.all_steps: list[float] = []

    def record_step(self, now: float) -> None:
        """Record that some request has taken a step."""
        step = now - self._last_step
        self._last_step = now
        if _SAME_BATCH_SECONDS < step < math.inf:
            self._ends.append(now)
            self._steps.append(step)
            self.all_steps.append(step)

    @property
    def step_seconds(self) -> float:
        """Median time of recent steps; NaN before the first."""
        return statistics.median(self._steps) if self._steps else math.nan

    def step_at(self, moment: float, arrived: float, now: float) -> float:
        """Time of the step in progress at a moment, at least the median of recent steps.

        Args:
            moment: when the step was in progress.
            arrived: when the request arrived; an earlier start of the step does not count.
            now: end of a step that is still in progress.
        """
        before = [end for end in self._ends if end <= moment]
        after = [end for end in self._ends if end > moment]
        step_seconds_then = (
            (after[0] if after else now) - max(before[-1], arrived) if before else 0.0
        )
        return max(step_seconds_then, self.step_seconds)


def latency(
    subject: Subject, concurrencies: tuple[int, ...], requests: int, steps: int
) -> dict[str, Any]:
    """Seconds of a request, by number of clients of a closed loop."""
    with folder_of(subject) as folder:
        trainer = Trainer(TrainerConfig(folder))
    sequences = draw_sequences(steps, subject.tokens, trainer.base.vocabulary)

    def train_once(seed: int) -> float:
        started = time.perf_counter()
        training = trainer.train(TrainingRequest(sequences, seed=seed))
        assert training.stop == "steps", training.stop
        return time.perf_counter() - started

    result = {}
    for clients in concurrencies:
        count = max(requests, 2 * clients)
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = list(pool.map(train_once, range(count)))
        tokens_per_second = count * steps * subject.tokens / (time.perf_counter() - started)
        p50, p99 = map(float, np.quantile(seconds, [0.5, 0.99]))
        result[str(clients)] = {
            "requests": count,
            "p50_seconds": p50,
            "p99_seconds": p99,
            "tokens_per_second": tokens_per_second,
        }
    return {"steps": steps, "sequence_tokens": subject.tokens, "by_concurrency": result}


def deadlines(requests: int) -> dict[str, Any]:
    """Lateness of requests with random deadlines, at more than the trainer's capacity."""
    trainer, clock, generator = Trainer(TrainerConfig(_NANO)), StepTimer(), np.random.default_rng(0)
    vocabulary = trainer.base.vocabulary
    # Deadline, time of the step at the deadline, and result of each request, in seconds.
    outcomes: list[tuple[float, float, TrainingResult]] = []
    finished = threading.Semaphore(0)

    def draw_request() -> Sequences:
        sequences = draw_sequences(int(generator.integers(3, 20)), 64, vocabulary)
        return [sequence[: int(generator.integers(16, 65))] for sequence in sequences]

    def record_step(_progress: TrainingProgress) -> None:
        clock.record_step(time.perf_counter())

    def record_outcome(deadline_seconds: float, future: Future[TrainingResult]) -> None:
        if future.exception() is None:
            now, training = time.perf_counter(), future.result()
            arrived = now - training.seconds
            outcomes.append(
                (
                    deadline_seconds,
                    clock.step_at(arrived + deadline_seconds, arrived, now),
                    training,
                )
            )
        finished.release()

    started, calibration_requests = time.perf_counter(), 2 * trainer.config.slots
    for pending in [
        trainer.submit(TrainingRequest(draw_request()), on_step=record_step)
        for _ in range(calibration_requests)
    ]:
        pending.result()
    mean_gap = (time.perf_counter() - started) / calibration_requests / _OVERLOAD

    min_seconds, max_seconds = _DEADLINE_SECONDS
    for number in range(requests):
        seconds = math.exp(generator.uniform(math.log(min_seconds), math.log(max_seconds)))
        if generator.random() < _SHARE_WITHOUT_DEADLINE:
            seconds = math.inf
        submitted = trainer.submit(
            TrainingRequest(draw_request(), seed=number, seconds=seconds), on_step=record_step
        )
        submitted.add_done_callback(partial(record_outcome, seconds))
        time.sleep(generator.exponential(mean_gap))
    for _ in range(requests):
        finished.acquire()

    overruns = [
        (t.seconds - deadline_seconds, (t.seconds - deadline_seconds) / step)
        for deadline_seconds, step, t in outcomes
        if math.isfinite(deadline_seconds)
    ]
    overrun_steps = [steps for _, steps in overruns]
    median_step = statistics.median(clock.all_steps)
    return {
        "requests": requests,
        "failed": requests - len(outcomes),
        "with_deadline": len(overruns),
        "arrivals_per_second": 1 / mean_gap,
        "step_seconds": spread(clock.all_steps),
        "largest_overrun_steps": max(0.0, *overrun_steps),
        "p99_overrun_steps": max(0.0, float(np.quantile(overrun_steps, 0.99))),
        "overran_share": sum(steps > 0 for steps in overrun_steps) / len(overruns),
        "overran_by_more_than_a_step": sum(steps > 1 for steps in overrun_steps),
        "largest_overrun_median_steps": max(
            0.0, *(seconds / median_step for seconds, _ in overruns)
        ),
        "largest_overrun_seconds": max(0.0, *(seconds for seconds, _ in overruns)),
        "with_adapter": sum(training.adapter is not None for _, _, training in outcomes),
        "with_deadline_and_adapter": sum(
            t.adapter is not None
            for deadline_seconds, _, t in outcomes
            if math.isfinite(deadline_seconds)
        ),
        "ended_by": dict(Counter(training.stop for _, _, training in outcomes)),
    }


def endurance(adaptations: int) -> dict[str, Any]:
    """Growth of memory and of the time of a step, over consecutive adaptations."""
    trainer, process = Trainer(TrainerConfig(_NANO)), psutil.Process()
    sequences = draw_sequences(50, 64, trainer.base.vocabulary)
    requests = [
        [sequence[: 16 + (7 * n) % 33] for sequence in sequences[n : n + 3]] for n in range(40)
    ]
    step_seconds, resident = [], []
    for number in range(adaptations):
        training = trainer.train(TrainingRequest(requests[number % len(requests)], seed=number))
        assert training.stop == "steps", training.stop
        step_seconds.append(training.seconds / len(training.losses))
        resident.append(process.memory_info().rss)
    tenth, warm_up = max(adaptations // 10, 1), min(_WARM_UP, adaptations // 2)
    first, last = statistics.median(step_seconds[:tenth]), statistics.median(step_seconds[-tenth:])
    return {
        "adaptations": adaptations,
        "warm_adaptations": warm_up,
        "resident_bytes": {
            "warm": resident[warm_up],
            "most": max(resident[warm_up:]),
            "last": resident[-1],
        },
        "rss_growth": resident[-1] / resident[warm_up] - 1,
        "step_seconds": {"first_tenth": first, "last_tenth": last},
        "step_time_growth": last / first - 1,
    }
