"""The values of a training: the request, the probe, the progress and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapters.adapter import Adapter
from adapters.errors import TrainingOptionError
from adapters.model.row import Row, check_spans
from adapters.model.row import Spans as Spans


class TrainingStop(StrEnum):
    """Why a training ended."""

    STEPS = "steps"
    """All steps were taken."""
    GAIN = "gain"
    """The probe gained too little."""
    SECONDS = "seconds"
    """Another step would have exceeded the time limit."""
    DIVERGED = "diverged"
    """A loss was not finite, or far worse than guessing."""
    OUT_OF_MEMORY = "out-of-memory"
    """A step needed more memory than available."""
    CANCELLED = "cancelled"
    """The request was cancelled."""


@dataclass(frozen=True)
class Probe:
    """A text that is not trained on, whose loss shows whether training helps.

    It is evaluated before the first step and after the last. With a gain it is also evaluated on
    the way, after every other sequence at first, then more rarely: training stops when the last
    evaluations show less than `gain` per cent of the first loss per sequence trained on, and the
    adapter of the best evaluation is returned (`adapters.early_stopping`). An evaluation costs a
    forward pass over the text.

    Attributes:
        tokens: At least two; of a text longer than the model's context, the end is used.
        gain: Per cent of the first loss per sequence; None to train to the end.

    Raises:
        TrainingOptionError: the gain is not positive and finite.
    """

    tokens: tuple[int, ...]
    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None and not 0 < self.gain < math.inf:
            raise TrainingOptionError(f"the gain is {self.gain}; it needs to be above 0")


@dataclass(frozen=True)
class TrainingState:
    """A training that can be continued as if it had never ended.

    Attributes:
        weights: The adapter, as `Adapter.weights`.
        moments: Adam's first and second moments of all parameters and, if the adapter is an average
            of weights, the last weights; float32, in the order of the weights.
        steps: Number of steps of Adam behind the moments.

    Raises:
        TrainingOptionError: a negative number of steps.
    """

    weights: bytes
    moments: bytes
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise TrainingOptionError(
                f"a training state has {self.steps} steps; it needs 0 or more"
            )


@dataclass(frozen=True)
class StartComparison:
    """Losses of the probe before the first step, in nats per token.

    Attributes:
        start_loss: Under the start of the request.
        fresh_loss: Under a fresh adapter, which is the base model.
    """

    start_loss: float
    fresh_loss: float

    @property
    def uses_start(self) -> bool:
        """Whether the training goes on from the start; from a fresh adapter otherwise."""
        return self.start_loss < self.fresh_loss


@dataclass(frozen=True)
class TrainingRequest:
    """What one adapter is trained on, and how; the same in this process and across processes.

    Attributes:
        sequences: Token ids in the order of their steps, at least two each and no more than the
            model's context.
        seed: Seed of a fresh adapter's first weights, below 2**64.
        seconds: Time limit from the submission; no step is started that would end later, by the
            step times measured so far. None for no limit.
        plan: One of `adapters.step_plan.PLANS`.
        start: Weights of an earlier adapter of the same trainer, to train further; None for a fresh
            adapter. Adam's moments start at zero either way, since each training is an adaptation
            of its own (paper section 2). A state continues an earlier training with its moments.
        start_if_better: Whether the start is used only if it lowers the probe's loss. Before the
            first step that loss is then measured without an adapter, too, which costs another
            forward pass. If the start does not lower it, training begins with a fresh adapter, at
            the learning rate without the factor. Where the seconds do not suffice for a probe
            beside the first step, nothing is compared, and the start is used.
        learning_rate: Adam learning rate; None for the trainer's.
        learning_rate_factor: Factor on either learning rate; None takes that of the trainer for a
            start that has learnt a corpus.
        probe: Text whose loss is measured and, with a gain, ends the training early.
        scored: For each sequence, the ranges of tokens whose loss counts, from token 1 on; None, or
            nothing for all sequences, scores all tokens but the first. The others are context: they
            take part in the forward pass, but have no loss.
        background: Gives way to all other requests: it takes a step, or evaluates its final
            adapter, only while no other request trains or waits.
        keep_state: Whether the result has the state, to continue from. The plan "reuse" saves no
            gradients in it: a continued training computes them anew.
        averaged_steps: Makes the adapter the running average of the weights after each step, in
            which a step counts a factor of e less after this number of further steps; 1 for the
            last weights. An average lacks most of the noise of single steps at a constant rate, as
            if the rate had decayed (Polyak averaging).

    Raises:
        TrainingOptionError: a seed of more than 64 bits, a learning rate or a factor that is not
            positive and finite, scored ranges that are empty, overlap or do not belong to the
            sequences, an average of no steps, a state to keep or an average of a training that
            returns its best adapter, or a start to compare without a probe or without a start.
    """

    sequences: Sequence[Sequence[int]]
    seed: int = 0
    seconds: float | None = None
    plan: str = "sequential"
    start: bytes | TrainingState | None = None
    start_if_better: bool = False
    learning_rate: float | None = None
    learning_rate_factor: float | None = 1.0
    probe: Probe | None = None
    scored: Sequence[Spans | None] = ()
    background: bool = False
    keep_state: bool = False
    averaged_steps: int = 1

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise TrainingOptionError(
                f"the learning rate is {self.learning_rate}; it needs to be above 0"
            )
        factor = self.learning_rate_factor
        if factor is not None and not 0 < factor < math.inf:
            raise TrainingOptionError(
                f"the factor on the learning rate is {factor}; it needs to be above 0"
            )
        if self.averaged_steps < 1:
            raise TrainingOptionError(
                f"an average of {self.averaged_steps} steps; it needs at least 1"
            )
        if (self.keep_state or self.is_averaged) and self.probe and self.probe.gain is not None:
            # The moments of the best evaluation are gone by then.
            raise TrainingOptionError(
                "a training that returns the adapter of its best evaluation has no state to keep, "
                "and no average: leave out the gain of its probe"
            )
        if self.start_if_better and (self.start is None or self.probe is None):
            raise TrainingOptionError(
                "a start can be compared with a fresh adapter only by the loss of a probe: give "
                "both a start and a probe"
            )
        if not 0 <= self.seed < 1 << 64:
            raise TrainingOptionError(
                f"the seed is {self.seed}; it needs to be a whole number of 64 bits, 0 or more"
            )
        if self.scored and len(self.scored) != len(self.sequences):
            raise TrainingOptionError(
                f"scored tokens are given for {len(self.scored)} sequences, and there are "
                f"{len(self.sequences)}: give them for each, or for none"
            )
        for sequence, spans in zip(self.sequences, self.scored, strict=False):
            if spans is not None:
                check_spans(spans, len(sequence))

    @property
    def is_averaged(self) -> bool:
        """Whether the adapter is an average of weights."""
        return self.averaged_steps > 1

    @property
    def rows(self) -> list[Row]:
        """The sequences with their scored tokens."""
        scored = self.scored or [None] * len(self.sequences)
        return [
            Row.of(sequence, spans) for sequence, spans in zip(self.sequences, scored, strict=True)
        ]


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training after a step.

    Attributes:
        steps: Number of steps taken.
        total_steps: Number of steps if nothing ends the training early.
        sequences_used: Number of sequences trained on, from the first on.
        loss: Mean loss in nats per scored token of this step's sequences, before the step.
        seconds: Seconds since the request arrived.
        seconds_left: Estimated seconds until the last step.
        slot: Slot of the adapter, for `Trainer.export`; valid only during the callback.
        probe_loss: Loss of the probe at its last evaluation, in nats per token; None without one.
    """

    steps: int
    total_steps: int
    sequences_used: int
    loss: float
    seconds: float
    seconds_left: float
    slot: int
    probe_loss: float | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training.

    Attributes:
        adapter: None if no step was taken, or if the adapter has diverged.
        losses: Mean loss in nats per scored token of each step's sequences, before that step.
        sequences_used: Number of sequences trained on, from the first on.
        stop: Why the training ended.
        seconds: Wall-clock seconds, waiting included.
        waited: Seconds before the first step started; equal to `seconds` if none did.
        probe_losses: Number of sequences trained on, and loss of the probe in nats per token, at
            each evaluation.
        adapter_sequences: Number of sequences that the adapter was trained on; less than
            `sequences_used` if an earlier adapter was the best.
        state: With an adapter, if the request keeps it: the state after the last step.
        comparison: Which start was used; None if nothing was compared.
    """

    adapter: Adapter | None
    losses: tuple[float, ...]
    sequences_used: int
    stop: TrainingStop
    seconds: float
    waited: float
    probe_losses: tuple[tuple[int, float], ...] = ()
    adapter_sequences: int = 0
    state: TrainingState | None = None
    comparison: StartComparison | None = None

    @property
    def before_and_after(self) -> tuple[float, float] | None:
        """Loss of the probe before the first step, and under the adapter; None if not measured."""
        losses = dict(self.probe_losses)
        if self.adapter_sequences == 0 or not {0, self.adapter_sequences} <= losses.keys():
            return None
        return losses[0], losses[self.adapter_sequences]
