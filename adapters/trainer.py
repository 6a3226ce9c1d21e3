"""Trainer: token sequences in, a LoRA adapter out, for many requests at once and within their time
limits.

The base model is loaded once and stays in memory; each request that trains has a slot in the bank
of LoRA adapters on it (`adapters.loop.training_loop`). A request's adapter does not depend on the
requests that train beside it. Each step is one step of Adam with a constant learning rate, no
weight decay and moments that start at zero (paper section 2: a single gradient step on each
selected sequence), on a fresh adapter or on an earlier one. Seeded: the same sequences and seed
give the same adapter.

An error in one request (a loss that is not finite, too little memory) ends that request's training
alone. The trainer is independent of prompts, corpora and HTTP.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch

from adapters.config import LLAMA_TARGETS as LLAMA_TARGETS
from adapters.config import TrainerConfig as TrainerConfig
from adapters.core_share import CoreShare
from adapters.errors import TrainingOptionError
from adapters.loop.job import Job
from adapters.loop.training_loop import TrainingLoop
from adapters.model.base_model import BaseModel
from adapters.model.row import Row, Spans, check_spans
from adapters.model_defaults import defaults_of
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult, TrainingState
from adapters.warm_up import warm_up

__all__ = ["LLAMA_TARGETS", "Trainer", "TrainerConfig"]


class Trainer:
    """A resident base model that trains adapters; thread-safe.

    Args:
        config: How adapters are trained.
        clock: Seconds, for deadlines and step times.
        cores: This process's share of a CPU's cores; None for a fixed number of threads.

    Attributes:
        config: The configuration.
        base: The base model.
        scale: Factor of B A.
        learning_rate: Adam learning rate of requests without their own.
        corpus_rates: Multiples of it that are tried on a corpus, the highest first.
        start_rate: Multiple of it at which trainings go on from what has learnt a corpus.
    """

    def __init__(
        self,
        config: TrainerConfig,
        clock: Callable[[], float] = time.perf_counter,
        cores: CoreShare | None = None,
    ) -> None:
        self.config = config
        self._clock, self._cores = clock, cores
        # Load in a thread that ends: OpenMP keeps a team of threads for every thread that has
        # computed, and lets none of them spin once teams have more threads than there are cores. A
        # leftover team made small steps 1.6 times as slow.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._load).result()
        # A server's other processes may be starting as well; it warms up again after that.
        warm_up(self, self._clock, max_rounds=1)

    def _load(self) -> None:
        config = self.config
        self.base = BaseModel(config.model, config.device, config.precision)
        size = defaults_of(self.base.parameters)
        self.scale = size.scale if config.scale is None else config.scale
        self.corpus_rates, self.start_rate = size.corpus_rates, size.start_rate
        rate = config.learning_rate
        self.learning_rate = size.learning_rate if rate is None else rate
        self._loop = TrainingLoop(
            config, self.base, self.scale, self.learning_rate, self._clock, self._cores
        )

    def train(
        self,
        request: TrainingRequest,
        *,
        cancelled: threading.Event | None = None,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> TrainingResult:
        """As `submit`, waiting for the result."""
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
        """Train an adapter, together with the requests that are already training.

        Args:
            request: The sequences and how to train on them; of a probe longer than the model's
                context, the end is used.
            cancelled: Read before every step; once it is set the training ends without an adapter.
            on_step: Called after each step, in the trainer's thread.

        Raises:
            TrainingOptionError: a sequence of fewer than two tokens, longer than the context, or
                with tokens outside the vocabulary; an unknown plan; a start of another model, rank
                or choice of projections.
        """
        probe = request.probe
        if probe is not None:
            probe = replace(probe, tokens=probe.tokens[-self.base.context :])
            request = replace(request, probe=probe)
        if request.learning_rate_factor is None:
            request = replace(request, learning_rate_factor=self.start_rate)
        for sequence in [*request.sequences, *([probe.tokens] if probe else [])]:
            self.base.check(sequence)
        if isinstance(request.start, TrainingState):
            self._loop.bank.check(request.start.weights, request.start.moments)
        elif request.start is not None:
            self._loop.bank.check(request.start)
        job = Job(request, self._clock(), cancelled, on_step)
        # From here on only `cancelled` ends it, not `Future.cancel`.
        job.done.set_running_or_notify_cancel()
        self._loop.submit(job)
        return job.done

    def give_way(self, seconds: float) -> None:
        """Start no step of a background request, and no row of `loss`, within `seconds` from now.

        Args:
            seconds: Seconds; a shorter time than is left of an earlier call changes nothing.
        """
        self._loop.give_way(seconds)

    @property
    def gives_way(self) -> bool:
        """Whether requests are training, and all of them give way."""
        return self._loop.gives_way

    def export(self, slot: int) -> bytes:
        """The current weights of an adapter in training, as a safetensors file.

        Args:
            slot: The slot that `on_step` reports; only valid during that callback.
        """
        return self._loop.bank.export(slot)

    def activation_bytes(self, tokens: int) -> int:
        """Bytes that a sequence of `tokens` tokens saves for backward."""
        return self._loop.memory.row_bytes(tokens)

    @torch.no_grad()
    def nats(
        self, tokens: Sequence[int], scored: int | Spans, weights: bytes | None = None
    ) -> float:
        """Negative log-likelihood of the scored tokens, in nats, in the trainer's precision.

        Args:
            tokens: The text.
            scored: The ranges of tokens to score, or the first of them if all that follow are
                scored; from token 1 on.
            weights: An adapter exported by a trainer of the same configuration; None for the base
                model.

        Raises:
            TrainingOptionError: no tokens to score, or ranges that overlap or exceed the text;
                weights of another model, rank or choice of projections.
        """
        row = _row(tokens, scored)
        with self._adapted(weights):
            return float(self.base.losses([row])) * row.scored_tokens

    def loss(
        self,
        rows: Sequence[Row],
        weights: bytes | None = None,
        cancelled: threading.Event | None = None,
    ) -> float:
        """Mean loss of rows in nats per scored token, measured in the background.

        It gives way as a background request does, so no request waits for more than one row.

        Args:
            rows: At least one.
            weights: As for `nats`.
            cancelled: Read before every row; once it is set the result is NaN.

        Raises:
            TrainingOptionError: no rows, or as for `submit` and `nats`.
        """
        if not rows:
            raise TrainingOptionError("there are no sequences to measure a loss on: give one")
        for row in rows:
            self.base.check(row.tokens)
        cancelled, nats = cancelled or threading.Event(), 0.0
        for row in rows:
            self._loop.wait_for_background(cancelled)
            if cancelled.is_set():
                return math.nan
            # In a thread that ends, as in `__init__`: this one may live on or wait.
            with ThreadPoolExecutor(1) as thread:
                nats += thread.submit(self.nats, row.tokens, row.scored, weights).result()
        return nats / sum(row.scored_tokens for row in rows)

    def compare(
        self,
        rows: Sequence[Row],
        adapters: Sequence[bytes | None],
        cancelled: threading.Event | None = None,
    ) -> tuple[tuple[float, ...], ...]:
        """Mean loss of each row under each adapter, in nats per scored token: a tuple of losses for
        each adapter, in order.

        It takes turns with the steps of training requests, one row at a time.

        Args:
            rows: Texts and their scored tokens.
            adapters: Weights, or None for the base model, as for `nats`.
            cancelled: Read before every row; once it is set, all further losses are NaN.

        Raises:
            TrainingOptionError: as for `submit` and `nats`.
        """
        for row in rows:
            self.base.check(row.tokens)

        def loss(row: Row, weights: bytes | None) -> float:
            if cancelled is not None and cancelled.is_set():
                return math.nan
            return self.nats(row.tokens, row.scored, weights) / row.scored_tokens

        # In a thread that ends, as in `__init__`: this one may live on or wait.
        with ThreadPoolExecutor(1) as thread:
            return tuple(
                tuple(thread.submit(loss, row, weights).result() for row in rows)
                for weights in adapters
            )

    def would_generate(
        self, tokens: Sequence[int], scored: int | Spans, weights: bytes | None = None
    ) -> bool:
        """Whether greedy decoding generates exactly the scored tokens, each after those before it.

        Arguments and errors as for `nats`.
        """
        row = _row(tokens, scored)
        with self._adapted(weights):
            return self.base.would_generate(row)

    @contextmanager
    def _adapted(self, weights: bytes | None) -> Iterator[None]:
        """Within the `with` block the base model has this adapter, and no request trains."""
        loop = self._loop
        try:
            with loop.model_lock:
                if weights is None:
                    yield
                else:
                    loop.bank.load(loop.scratch_slot, weights)
                    with loop.bank.bind([loop.scratch_slot]):
                        yield
        finally:
            # A training that runs does so at its own end.
            if not loop.is_running:
                loop.idle_trim.schedule()

    def warm_up(self) -> None:
        """As `adapters.warm_up`; does nothing while requests are training."""
        if not self._loop.is_running:
            warm_up(self, self._clock)

    def forget_times(self) -> None:
        """Drop all measured step times."""
        with self._loop.model_lock:
            self._loop.times.forget()


def _row(tokens: Sequence[int], scored: int | Spans) -> Row:
    row = Row.of(tokens, ((scored, len(tokens)),) if isinstance(scored, int) else scored)
    check_spans(row.scored, len(row))
    return row
