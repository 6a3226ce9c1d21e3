"""Trainer: token sequences in, a LoRA adapter out, for many requests at once and never later than
asked.

The base model is loaded once and stays; every request has a slot of the bank of LoRA adapters on
it. A thread takes step after step for whoever is there: the next sequences of several requests in
one batch, each with its own adapter, its own moments of Adam, its own order. Requests join and
leave between steps, and what a request gets does not depend on its company. Adam with a constant
learning rate, no weight decay, moments that start at zero (paper section 2: a single gradient step
on each selected sequence), with a fresh adapter or from where an earlier one ended. Seeded: the
same sequences and seed give the same adapter.

Whatever goes wrong with one request (a loss that is not finite, memory that does not suffice) ends
that request's training alone. The trainer knows nothing of prompts, corpora or HTTP.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from adapters.adapter import Adapter
from adapters.config import LLAMA_TARGETS as LLAMA_TARGETS
from adapters.config import SMALL_MODEL as SMALL_MODEL
from adapters.config import TrainerConfig as TrainerConfig
from adapters.evaluation import Evaluation
from adapters.gradients import gradients
from adapters.model.activation_memory import ActivationMemory, IdleTrim
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.scheduler import Job, Scheduler, Times
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult, TrainingStop
from adapters.warm_up import warm_up

__all__ = ["LLAMA_TARGETS", "SMALL_MODEL", "Trainer", "TrainerConfig"]

# With nobody there, after which memory is given back: a busy trainer would want it again at once.
IDLE_SECONDS = 5.0
# Of torch, and of oneDNN.
_NO_ROOM = ("can't allocate memory", "could not create a primitive")


class Trainer:
    """A resident base model that trains adapters for whoever asks, from any thread."""

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config
        self._arrivals = threading.Lock()  # guards the schedule
        self._stepping = threading.RLock()  # guards the model
        self._is_working = False  # whether there is a thread that takes steps
        self._rest = IdleTrim()
        # In a thread that ends: OpenMP keeps a team for each thread that has computed, and where
        # teams have more threads than there are cores it lets none spin. With a team left behind a
        # small step took 1.6 times as long.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._load).result()
        self.warm_up()

    def _load(self) -> None:
        config = self.config
        self.base = BaseModel(config.model, config.device, config.precision)
        scale, rate = (16.0, 6e-4) if self.base.parameters < SMALL_MODEL else (1.0, 5e-4)
        self.scale = scale if config.scale is None else config.scale
        self.learning_rate = rate if config.learning_rate is None else config.learning_rate
        self._guest = config.slots  # one slot more than train
        self._bank = LoraBank(
            self.base.model, config.rank, self.scale, config.targets, config.slots + 1
        )
        self._times = Times()
        self._evaluation = Evaluation(self.base, self._bank, self._guest, self._times)
        with self._bank.bind([0]):
            self._memory = ActivationMemory(self.base, config.memory_bytes)
        tokens = config.batch_tokens or (2048 if self.base.device == "cpu" else 16384)
        self._schedule = Scheduler(config.slots, tokens, self._times, self._memory.holds)

    def train(
        self,
        request: TrainingRequest,
        *,
        cancelled: threading.Event | None = None,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> TrainingResult:
        """As `submit`, waiting for the end."""
        cancelled = cancelled or threading.Event()
        done = self.submit(request, cancelled=cancelled, on_step=on_step)
        try:
            return done.result()
        except KeyboardInterrupt:
            cancelled.set()
            raise

    def submit(
        self,
        request: TrainingRequest,
        *,
        cancelled: threading.Event | None = None,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> Future[TrainingResult]:
        """Train an adapter, together with whatever else is training.

        Args:
            request: the sequences and how to train on them; of a probe longer than the model's
                context, the end is used.
            cancelled: read before every step; once it is set the training ends without an adapter.
            on_step: called after each step, in the trainer's thread.

        Raises:
            TrainingOptionError: a sequence of fewer than two tokens, longer than the context, or
                with tokens outside the vocabulary; an unknown plan; a start of another model, rank
                or choice of projections.
        """
        probe = request.probe
        if probe is not None:
            probe = replace(probe, tokens=probe.tokens[-self.base.context :])
            request = replace(request, probe=probe)
        for sequence in [*request.sequences, *([probe.tokens] if probe else [])]:
            self.base.check(sequence)
        if request.start is not None:
            self._bank.check(request.start)
        job = Job(request, time.perf_counter(), cancelled, on_step)
        # From here on it is `cancelled` that ends it, not the future.
        job.done.set_running_or_notify_cancel()
        with self._arrivals:
            self._rest.end()
            # Not a daemon: Python ending under its computation would abort.
            if not self._is_working:
                threading.Thread(target=self._work, name="mayfly-trainer").start()
                self._is_working = True
            self._schedule.add(job)
        return job.done

    def export(self, slot: int) -> bytes:
        """The weights so far of the adapter that `on_step` tells of, as a safetensors file; only
        while it tells.
        """
        return self._bank.export(slot)

    def kept_bytes(self, tokens: int) -> int:
        """What a sequence of so many tokens keeps for its backward while it is trained."""
        return self._memory.row(tokens)

    @torch.no_grad()
    def nats(self, tokens: Sequence[int], start: int, weights: bytes | None = None) -> float:
        """Negative log-likelihood, in nats, of tokens[start:] given those before, in the trainer's
        precision.

        Args:
            tokens: of the text.
            start: where it begins to count, 1 or more.
            weights: of the adapter that speaks, as exported by such a trainer; None for the base
                model.

        Raises:
            ValueError: nothing to score, or weights of another model, rank or choice of
                projections.
        """
        if not 1 <= start < len(tokens):
            raise ValueError(f"of {len(tokens)} tokens those from {start} on cannot be scored")
        with self._stepping:
            if weights is None:
                mean = self.base.losses([tokens], start)
            else:
                self._bank.load(self._guest, weights)
                with self._bank.bind([self._guest]):
                    mean = self.base.losses([tokens], start)
        return float(mean) * (len(tokens) - start)

    def _work(self) -> None:
        """Turn after turn, until nobody is left."""
        while True:
            try:
                if not self._turn():
                    return
            # Of nobody alone; and without this thread all would wait for ever.
            except Exception as problem:
                with self._arrivals:
                    jobs = self._schedule.clear()
                for job in jobs:  # not under the lock: whoever is told may submit the next
                    job.done.set_exception(problem)

    def _turn(self) -> bool:
        """Who comes, who goes, and a step of the others; whether there was anybody."""
        with self._arrivals:
            displaced, admitted = self._schedule.displace(), self._schedule.admit()
            now = time.perf_counter()
            ended = self._schedule.ended(now)
            told = {job for job, _ in ended}
            large = (
                job for job in admitted if not all(self._memory.fits(*size) for size in job.sizes)
            )
            ended += [(job, TrainingStop.OUT_OF_MEMORY) for job in large if job not in told]
            batch = [] if ended else self._schedule.batch(now)
            if not ended and not batch:
                self._is_working = False
                self._rest.begin(IDLE_SECONDS)
                return False
        with self._stepping:
            for job, slot in displaced:
                job.parked = self._bank.take(slot)
            for job in admitted:
                if job.parked is not None:
                    self._bank.put(job.place, job.parked)
                    job.parked = None
                elif job.request.start is not None:
                    self._bank.load(job.place, job.request.start)
                else:
                    self._bank.reset(job.place, job.request.seed)
            self._end([(job, stop) for job, stop in ended if job.parked is None])
            for job, stop in ended:
                if job.parked is not None:
                    self._bank.put(self._guest, job.parked)
                    self._end([(job, stop)])
            if batch:
                self._step(batch)
        return True

    def _step(self, jobs: Sequence[Job]) -> None:
        """One step of each. What one job's rows cannot do is that job's end; the others' are
        computed without it.
        """
        now = time.perf_counter()
        for job in jobs:
            job.began = min(job.began, now)
        if not (jobs := self._look(jobs)):
            return
        computing = sorted((job for job in jobs if job.rows), key=lambda job: job.place)
        lengths = [len(row) for job in computing for row in job.rows]
        begun = time.perf_counter()
        try:
            computed = gradients(self.base, self._bank, self._memory, computing)
        except Exception as problem:
            if len(jobs) > 1:
                for job in jobs:
                    self._step([job])
            else:
                self._fail(jobs[0], problem)
            return
        taken = [j for j in jobs if self._learn(j, computed.get(j) or j.kept[j.step.reused or 0])]
        self._times.step.observe(
            len(lengths) * max(lengths, default=0), time.perf_counter() - begun
        )
        for job in self._look(taken):
            self._tell(job)

    def _look(self, jobs: Sequence[Job]) -> list[Job]:
        """Score what is watched of those that are due; all but those that ended by it."""
        if not (due := [job for job in jobs if job.is_due]):
            return list(jobs)
        try:
            unsound = self._evaluation.look(due)
        except Exception as problem:
            if len(jobs) > 1:
                return [job for each in jobs for job in self._look([each])]
            self._fail(jobs[0], problem)
            return []
        for job in unsound:
            self._end([(job, TrainingStop.DIVERGED)])
        return [job for job in jobs if job not in unsound]

    def _learn(self, job: Job, computed: tuple[torch.Tensor, float]) -> bool:
        """Take the step, or end the job if there is nothing sound to learn from."""
        gradient_P, loss = computed
        if not self._evaluation.is_sound(loss):
            self._end([(job, TrainingStop.DIVERGED)])
            return False
        rate = job.request.learning_rate or self.learning_rate
        self._bank.learn(job.place, gradient_P, rate)
        if job.step.kept:
            job.kept[job.step.sequences[0]] = gradient_P.clone(), loss
        job.used += len(job.step.sequences)
        job.losses.append(loss)
        return True

    def _tell(self, job: Job) -> None:
        if job.on_step is None:
            return
        try:
            job.on_step(job.progress(time.perf_counter()))
        # Sys.exit() there must not end the thread that others wait for.
        except BaseException as problem:
            self._fail(job, problem)

    def _end(self, ended: Sequence[tuple[Job, TrainingStop]]) -> None:
        """Hand over what these jobs have trained; they leave."""
        begun = time.perf_counter()
        learnt = [job for job, stop in ended if job.losses and stop != TrainingStop.CANCELLED]
        rows = [row for job in learnt for row in job.closing]
        settled: dict[Job, tuple[int, int]] = {}
        if learnt:
            try:
                settled = self._evaluation.settle(learnt)
            except Exception as problem:
                for job, stop in ended:
                    if len(ended) > 1:
                        self._end([(job, stop)])
                    else:
                        job.losses, job.used = [], 0
                        self._fail(job, problem)
                return
        for job, stop in ended:
            if stop == TrainingStop.SECONDS and not job.losses and begun < job.deadline:
                self._times.doubt()
            if job in learnt and job not in settled:
                job.losses, job.used, stop = [], 0, TrainingStop.DIVERGED
            try:
                kept, steps = settled.get(job, (0, 0))
                adapter = self._adapter(job, steps) if steps else None
                training = job.training(adapter, stop, time.perf_counter(), kept)
            except Exception as problem:
                job.losses, job.used = [], 0
                self._fail(job, problem)
                continue
            self._leave(job)
            job.done.set_result(training)
        if rows:
            self._times.ending.observe(len(rows) * max(map(len, rows)), time.perf_counter() - begun)

    def _fail(self, job: Job, problem: BaseException) -> None:
        """End a job whose step or ending raised."""
        if isinstance(problem, torch.OutOfMemoryError | MemoryError) or any(
            each in str(problem) for each in _NO_ROOM
        ):
            if self.base.device != "cpu":
                torch.cuda.empty_cache()
            self._end([(job, TrainingStop.OUT_OF_MEMORY)])
            return
        self._leave(job)
        job.done.set_exception(problem)

    def _leave(self, job: Job) -> None:
        with self._arrivals:
            self._schedule.leave(job)

    def _adapter(self, job: Job, steps: int) -> Adapter:
        """What lies in its slot, which that many steps have made."""
        return Adapter(
            name=f"mayfly-{uuid.uuid4().hex}",
            base_model=self.config.model,
            rank=self.config.rank,
            scale_numerator=self.scale * self.config.rank,
            targets=self.config.targets,
            weights=self._bank.export(self._evaluation.slot(job)),
            losses=tuple(job.losses[:steps]),
        )

    def warm_up(self) -> None:
        """As `adapters.warm_up`, unless requests train: then there is nothing to warm up."""
        if not self._is_working:
            warm_up(self)

    def forget_times(self) -> None:
        """Expect nothing of how long steps take until it is measured again."""
        with self._stepping:
            self._times.forget()
