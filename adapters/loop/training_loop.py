"""TrainingLoop: the thread that trains the adapters of many requests, step by step.

Each step is one batch: the next sequences of several requests, each with its own adapter, Adam
moments and order. Requests join and leave between steps. An error in one request's step or final
evaluation ends that request alone. While all requests give way, the thread sleeps.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence

import torch

from adapters.adapter import Adapter
from adapters.config import TrainerConfig
from adapters.core_share import CoreShare
from adapters.loop.evaluation import Evaluator
from adapters.loop.gradients import gradients
from adapters.loop.job import Job
from adapters.loop.model_lock import ModelLock
from adapters.loop.scheduler import Scheduler
from adapters.model.activation_memory import ActivationMemory, IdleTrim
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.step_time import TrainingTimes
from adapters.training import TrainingState, TrainingStop

# A cancelled request that gives way is noticed within these seconds: an event wakes nobody up.
_CANCEL_SECONDS = 0.1
# Seconds of waiting for the model after which a step may no longer end in time.
_LATE_SECONDS = 0.25
# Messages of torch and oneDNN for failed allocations, which are plain RuntimeErrors on a CPU.
_ALLOCATION_ERRORS = ("can't allocate memory", "could not create a primitive")


class TrainingLoop:
    """Trains submitted jobs in a thread that ends when no job is left.

    Args:
        config: How adapters are trained.
        base: The base model; its target projections are replaced.
        scale: Factor of B A.
        learning_rate: Adam learning rate of requests without their own.
        clock: Seconds, for deadlines and step times.
        cores: As for `Trainer`.

    Attributes:
        bank: The LoRA slots: `config.slots` for training and one scratch slot.
        scratch_slot: The scratch slot, for adapters that are only evaluated.
        memory: Activation memory of a step.
        times: Predicted times of steps and evaluations.
        model_lock: Held while the model computes.
        is_running: Whether a thread is training.
        gives_way: Whether that thread waits because all requests give way.
        idle_trim: Returns memory to the system, scheduled when no job is left.
    """

    def __init__(
        self,
        config: TrainerConfig,
        base: BaseModel,
        scale: float,
        learning_rate: float,
        clock: Callable[[], float],
        cores: CoreShare | None = None,
    ) -> None:
        self._config, self._base, self._clock = config, base, clock
        self._scale, self._learning_rate = scale, learning_rate
        self.scratch_slot = config.slots
        self.bank = LoraBank(base.model, config.rank, scale, config.targets, config.slots + 1)
        self.times = TrainingTimes()
        self._evaluator = Evaluator(base, self.bank, self.scratch_slot, self.times, clock)
        with self.bank.bind([0]):
            self.memory = ActivationMemory(base, config.memory_bytes)
        tokens = config.batch_tokens or (2048 if base.device == "cpu" else 16384)
        self._scheduler = Scheduler(config.slots, tokens, self.times, self.memory.fits)
        # Held to use the scheduler; notified when a job comes or goes.
        self._jobs_changed = threading.Condition(threading.Lock())
        self.model_lock = ModelLock(cores if base.device == "cpu" else None)
        self.is_running = self.gives_way = self._is_late = False
        self.idle_trim = IdleTrim(self._release_slots)

    def submit(self, job: Job) -> None:
        """Train a job, in a new thread if none is running."""
        with self._jobs_changed:
            self.idle_trim.cancel()
            # A daemon thread would abort the process if Python ended during a computation.
            if not self.is_running:
                threading.Thread(target=self._run, name="mayfly-trainer").start()
                self.is_running = True
            self._scheduler.add(job)
            self._jobs_changed.notify_all()

    def give_way(self, seconds: float) -> None:
        """Let nothing in the background compute within `seconds` seconds from now."""
        with self._jobs_changed:
            self._scheduler.give_way_until(self._clock() + seconds)

    def wait_for_background(self, cancelled: threading.Event) -> None:
        """Wait until the background may compute, or `cancelled` is set."""
        with self._jobs_changed:
            while not cancelled.is_set() and self._background_wait() > 0:
                self._jobs_changed.wait(self._background_wait())

    def _background_wait(self) -> float:
        """Seconds until it may be time for the background, or that it is cancelled."""
        return min(self._scheduler.background_wait(self._clock()), _CANCEL_SECONDS)

    def _release_slots(self) -> None:
        """Return the memory of all slots, unless a job has come in the meantime."""
        # In this order: jobs must not wait until what computes has ended.
        with self.model_lock, self._jobs_changed:
            # A GPU's memory stays with this process.
            if not self.is_running and self._base.device == "cpu":
                self.bank.release()

    def _run(self) -> None:
        while True:
            try:
                if not self._iterate():
                    return
            # An error of no single job ends all jobs, which would otherwise wait for ever.
            except Exception as problem:
                with self._jobs_changed:
                    jobs = self._scheduler.clear()
                # Not under the lock: a job's callback may submit another job.
                for job in jobs:
                    job.done.set_exception(problem)

    def _iterate(self) -> bool:
        """Admit, preempt and finish jobs, or take a step of the others, or wait if they give way.

        Returns:
            Whether there were any jobs.
        """
        with self._jobs_changed:
            preempted, admitted = self._scheduler.preempt(), self._scheduler.admit()
            now = self._clock()
            finished = self._scheduler.finished(now)
            already_finished = {job for job, _ in finished}
            finished += [
                (job, TrainingStop.OUT_OF_MEMORY)
                for job in admitted
                if job not in already_finished
                and not all(self.memory.fits_checkpointed(*size) for size in job.step_sizes)
            ]
            batch = [] if finished else self._scheduler.batch(now)
            is_idle = not finished and not batch
            self.gives_way = is_idle and len(self._scheduler) > 0
            if self.gives_way and not admitted:
                self._jobs_changed.wait(self._background_wait())
                return True
            if is_idle and not self.gives_way:
                self.is_running = False
                self.idle_trim.schedule()
                return False
        with self.model_lock:
            for job, slot in preempted:
                job.preempted_state = self.bank.state(slot)
            for job in admitted:
                self._fill_slot(job)
            self._finish([(job, stop) for job, stop in finished if job.preempted_state is None])
            for job, stop in finished:
                if job.preempted_state is not None:
                    self.bank.set_state(self.scratch_slot, job.preempted_state)
                    self._finish([(job, stop)])
            # After a long wait for the model, whether a step ends in time is decided anew, once.
            self._is_late = not self._is_late and self._clock() - now >= _LATE_SECONDS
            if batch and not self._is_late:
                self._step(batch)
        return True

    def _fill_slot(self, job: Job) -> None:
        """Put the adapter that an admitted job continues with into its slot."""
        if job.preempted_state is not None:
            self.bank.set_state(job.assigned_slot, job.preempted_state)
            job.preempted_state = None
            return
        start = job.request.start
        if isinstance(start, TrainingState):
            self.bank.load(job.assigned_slot, start.weights)
        elif start is not None:
            self.bank.load(job.assigned_slot, start)
        else:
            self.bank.reset(job.assigned_slot, job.request.seed)
        if job.request.is_averaged:
            self.bank.snapshot(job.assigned_slot)
        if isinstance(start, TrainingState):
            self.bank.load_moments(job.assigned_slot, start.moments, start.steps)

    def _step(self, jobs: Sequence[Job]) -> None:
        """Take one step of each job, with due probe evaluations before and after it.

        If the batch raises, each job takes its step alone, so that only the failing ones end.
        """
        now = self._clock()
        for job in jobs:
            job.started = min(job.started, now)
        if not (jobs := self._evaluate_probes(jobs)):
            return
        computing = sorted((job for job in jobs if job.rows), key=lambda job: job.assigned_slot)
        lengths = [len(row) for job in computing for row in job.rows]
        started = self._clock()
        try:
            computed = gradients(self._base, self.bank, self.memory, computing)
        except Exception as problem:
            if len(jobs) > 1:
                for job in jobs:
                    self._step([job])
            else:
                self._fail(jobs[0], problem)
            return
        taken = [
            job
            for job in jobs
            if self._apply(job, computed.get(job) or job.saved_gradients[job.step.gradient_of or 0])
        ]
        seconds = self._clock() - started
        self.times.step.observe(len(lengths) * max(lengths, default=0), seconds)
        for job in self._evaluate_probes(taken):
            self._report_progress(job)

    def _evaluate_probes(self, jobs: Sequence[Job]) -> list[Job]:
        """Evaluate the probes that are due.

        Returns:
            The jobs that have not ended by it.
        """
        if not (due := [job for job in jobs if job.probe_due]):
            return list(jobs)
        try:
            diverged = self._evaluator.evaluate_probes(due)
        except Exception as problem:
            if len(jobs) > 1:
                return [job for each in jobs for job in self._evaluate_probes([each])]
            self._fail(jobs[0], problem)
            return []
        for job in diverged:
            self._finish([(job, TrainingStop.DIVERGED)])
        return [job for job in jobs if job not in diverged]

    def _apply(self, job: Job, computed: tuple[torch.Tensor, float]) -> bool:
        """Take a step of Adam with a gradient, or end the job if the loss is unsound.

        Returns:
            Whether the step was taken.
        """
        gradient_P, loss = computed
        if not self._evaluator.is_sound(loss):
            self._finish([(job, TrainingStop.DIVERGED)])
            return False
        learning_rate = job.request.learning_rate or self._learning_rate
        self.bank.step(job.assigned_slot, gradient_P, learning_rate * job.learning_rate_factor)
        if job.request.is_averaged:
            self.bank.average(job.assigned_slot, job.request.averaged_steps)
        if job.step.gradient_is_kept:
            job.saved_gradients[job.step.sequences[0]] = gradient_P.clone(), loss
        job.sequences_used += len(job.step.sequences)
        job.losses.append(loss)
        return True

    def _report_progress(self, job: Job) -> None:
        if job.on_step is None:
            return
        try:
            job.on_step(job.progress(self._clock()))
        # Even sys.exit() in a callback must not end the thread that trains other requests.
        except BaseException as problem:
            self._fail(job, problem)

    def _finish(self, finished: Sequence[tuple[Job, TrainingStop]]) -> None:
        """End jobs: evaluate and export their adapters, free their slots, set their results."""
        started = self._clock()
        learnt = [job for job, stop in finished if job.losses and stop != TrainingStop.CANCELLED]
        rows = [row for job in learnt for row in job.final_rows]
        selected: dict[Job, tuple[int, int]] = {}
        if learnt:
            try:
                selected = self._evaluator.select_weights(learnt)
            except Exception as problem:
                for job, stop in finished:
                    if len(finished) > 1:
                        self._finish([(job, stop)])
                    else:
                        self._fail_without_adapter(job, problem)
                return
        for job, stop in finished:
            if stop == TrainingStop.SECONDS and not job.losses and started < job.deadline:
                self.times.doubt()
            if job in learnt and job not in selected:
                job.losses, job.sequences_used, stop = [], 0, TrainingStop.DIVERGED
            try:
                sequences, steps = selected.get(job, (0, 0))
                adapter = self._export(job, steps) if steps else None
                state = self._state(job, adapter)
                result = job.result(adapter, stop, self._clock(), sequences, state)
            except Exception as problem:
                self._fail_without_adapter(job, problem)
                continue
            self._remove(job)
            job.done.set_result(result)
        if rows:
            seconds = self._clock() - started
            self.times.final.observe(len(rows) * max(map(len, rows)), seconds)

    def _fail_without_adapter(self, job: Job, problem: BaseException) -> None:
        """End a job whose final evaluation or export raised."""
        job.losses, job.sequences_used = [], 0
        self._fail(job, problem)

    def _fail(self, job: Job, problem: BaseException) -> None:
        """End a job that raised: with the adapter so far if memory ran out, else with the error."""
        if isinstance(problem, torch.OutOfMemoryError | MemoryError) or any(
            message in str(problem) for message in _ALLOCATION_ERRORS
        ):
            if self._base.device != "cpu":
                torch.cuda.empty_cache()
            self._finish([(job, TrainingStop.OUT_OF_MEMORY)])
            return
        self._remove(job)
        job.done.set_exception(problem)

    def _remove(self, job: Job) -> None:
        with self._jobs_changed:
            self._scheduler.remove(job)
            self._jobs_changed.notify_all()

    def _export(self, job: Job, steps: int) -> Adapter:
        """The adapter in a job's slot, which `steps` steps have made."""
        return Adapter(
            name=f"mayfly-{uuid.uuid4().hex}",
            base_model=self._config.model,
            rank=self._config.rank,
            scale_numerator=self._scale * self._config.rank,
            targets=self._config.targets,
            weights=self.bank.export(self._evaluator.slot(job), averaged=job.request.is_averaged),
            losses=tuple(job.losses[:steps]),
        )

    def _state(self, job: Job, adapter: Adapter | None) -> TrainingState | None:
        """The state of a job that keeps it, beside its exported adapter."""
        if adapter is None or not job.request.keep_state:
            return None
        slot, averaged = self._evaluator.slot(job), job.request.is_averaged
        return TrainingState(adapter.weights, *self.bank.export_moments(slot, averaged=averaged))
