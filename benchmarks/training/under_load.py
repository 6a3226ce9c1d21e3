"""The trainer under load: how long requests take in company, whether they end in time, and what
thousands leave behind.

The part of `benchmarks/training/main.py` about whole requests, with the trainer's own defaults, nearly
all of it on the bundled model. How late a request is, is told in steps: seconds past what it asked,
over the time of the step that was being taken at its deadline, and over the median of the last few
where that is longer. Sequences are random.
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
from benchmarks.harness.provenance import ROOT
from benchmarks.training.peft_loop import Sequences, Subject, draw, folder_of, spread

_NANO = str(ROOT / "deploy" / "nano")
_SHARE_WITHOUT_DEADLINE = 0.25
_DEADLINE_SECONDS = (0.02, 3.0)  # least and most, drawn evenly on a logarithmic scale
_LOAD = 1.2  # times what the trainer can do
# Seconds: those who took a step together are told of it sooner than this one after another.
_SAME_BATCH = 1e-3
_RECENT = 9  # steps
_WARM = 200  # adaptations


class Clock:
    """How long steps take of late; hears of every step of every request, in the trainer's thread."""

    def __init__(self) -> None:
        self._told = -math.inf
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._ends: deque[float] = deque(maxlen=_RECENT)
        self.all: list[float] = []

    def hear(self, now: float) -> None:
        """Some request's step was taken."""
        step = now - self._told
        self._told = now
        if _SAME_BATCH < step < math.inf:
            self._ends.append(now)
            self._steps.append(step)
            self.all.append(step)

    @property
    def step_seconds(self) -> float:
        """Median of the latest; NaN before there are any."""
        return statistics.median(self._steps) if self._steps else math.nan

    def step_at(self, moment: float, came: float, now: float) -> float:
        """How long the step took that was under way then, from when somebody came, till now; the
        median if more.
        """
        before = [end for end in self._ends if end <= moment]
        after = [end for end in self._ends if end > moment]
        taken = (after[0] if after else now) - max(before[-1], came) if before else 0.0
        return max(taken, self.step_seconds)


def latency(
    subject: Subject, concurrencies: tuple[int, ...], requests: int, steps: int
) -> dict[str, Any]:
    """By number of clients, each of which asks again as soon as it is served: seconds of a request."""
    with folder_of(subject) as folder:
        trainer = Trainer(TrainerConfig(folder))
    sequences = draw(steps, subject.tokens, trainer.base.vocabulary)

    def ask(seed: int) -> float:
        begun = time.perf_counter()
        training = trainer.train(TrainingRequest(sequences, seed=seed))
        assert training.stop == "steps", training.stop
        return time.perf_counter() - begun

    found = {}
    for clients in concurrencies:
        count = max(requests, 2 * clients)
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = list(pool.map(ask, range(count)))
        speed = count * steps * subject.tokens / (time.perf_counter() - begun)
        p50, p99 = map(float, np.quantile(seconds, [0.5, 0.99]))
        found[str(clients)] = {
            "requests": count,
            "p50_seconds": p50,
            "p99_seconds": p99,
            "tokens_per_second": speed,
        }
    return {"steps": steps, "sequence_tokens": subject.tokens, "by_concurrency": found}


def deadlines(requests: int) -> dict[str, Any]:
    """Requests with random deadlines, more than the trainer can serve in full: how late each was."""
    trainer, clock, generator = Trainer(TrainerConfig(_NANO)), Clock(), np.random.default_rng(0)
    vocabulary = trainer.base.vocabulary
    # Seconds asked, of the step at its deadline, what became of it.
    outcomes: list[tuple[float, float, TrainingResult]] = []
    everyone = threading.Semaphore(0)

    def drawn() -> Sequences:
        sequences = draw(int(generator.integers(3, 20)), 64, vocabulary)
        return [sequence[: int(generator.integers(16, 65))] for sequence in sequences]

    def hear(_progress: TrainingProgress) -> None:
        clock.hear(time.perf_counter())

    def ended(asked: float, done: Future[TrainingResult]) -> None:
        if done.exception() is None:
            now, training = time.perf_counter(), done.result()
            came = now - training.seconds
            outcomes.append((asked, clock.step_at(came + asked, came, now), training))
        everyone.release()

    begun, trial = time.perf_counter(), 2 * trainer.config.slots
    for pending in [trainer.submit(TrainingRequest(drawn()), on_step=hear) for _ in range(trial)]:
        pending.result()
    mean_gap = (time.perf_counter() - begun) / trial / _LOAD

    least, most = _DEADLINE_SECONDS
    for number in range(requests):
        seconds = math.exp(generator.uniform(math.log(least), math.log(most)))
        if generator.random() < _SHARE_WITHOUT_DEADLINE:
            seconds = math.inf
        submitted = trainer.submit(
            TrainingRequest(drawn(), seed=number, seconds=seconds), on_step=hear
        )
        submitted.add_done_callback(partial(ended, seconds))
        time.sleep(generator.exponential(mean_gap))
    for _ in range(requests):
        everyone.acquire()

    late = [
        (t.seconds - asked, (t.seconds - asked) / step)
        for asked, step, t in outcomes
        if math.isfinite(asked)
    ]
    steps_late = [steps for _, steps in late]
    median_step = statistics.median(clock.all)
    return {
        "requests": requests,
        "failed": requests - len(outcomes),
        "with_deadline": len(late),
        "arrivals_per_second": 1 / mean_gap,
        "step_seconds": spread(clock.all),
        "largest_overrun_steps": max(0.0, *steps_late),
        "p99_overrun_steps": max(0.0, float(np.quantile(steps_late, 0.99))),
        "overran_share": sum(steps > 0 for steps in steps_late) / len(late),
        "overran_by_more_than_a_step": sum(steps > 1 for steps in steps_late),
        "largest_overrun_median_steps": max(0.0, *(seconds / median_step for seconds, _ in late)),
        "largest_overrun_seconds": max(0.0, *(seconds for seconds, _ in late)),
        "with_adapter": sum(training.adapter is not None for _, _, training in outcomes),
        "with_deadline_and_adapter": sum(
            t.adapter is not None for asked, _, t in outcomes if math.isfinite(asked)
        ),
        "ended_by": dict(Counter(training.stop for _, _, training in outcomes)),
    }


def endurance(adaptations: int) -> dict[str, Any]:
    """One after another: how memory and the time of a step grow."""
    trainer, process = Trainer(TrainerConfig(_NANO)), psutil.Process()
    sequences = draw(50, 64, trainer.base.vocabulary)
    requests = [
        [sequence[: 16 + (7 * n) % 33] for sequence in sequences[n : n + 3]] for n in range(40)
    ]
    step_seconds, resident = [], []
    for number in range(adaptations):
        training = trainer.train(TrainingRequest(requests[number % len(requests)], seed=number))
        assert training.stop == "steps", training.stop
        step_seconds.append(training.seconds / len(training.losses))
        resident.append(process.memory_info().rss)
    tenth, warm = max(adaptations // 10, 1), min(_WARM, adaptations // 2)
    first, last = statistics.median(step_seconds[:tenth]), statistics.median(step_seconds[-tenth:])
    return {
        "adaptations": adaptations,
        "warm_adaptations": warm,
        "resident_bytes": {
            "warm": resident[warm],
            "most": max(resident[warm:]),
            "last": resident[-1],
        },
        "rss_growth": resident[-1] / resident[warm] - 1,
        "step_seconds": {"first_tenth": first, "last_tenth": last},
        "step_time_growth": last / first - 1,
    }
