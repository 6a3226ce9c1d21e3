"""CorpusTraining: trains the adapter of one corpus, from where an earlier run has stopped.

    plan -> for each part: choose the rate -> passes -> held-out documents -> save

A phase is taken in segments. Each is a background request to the trainer, and after each one the
adapter, its moments and the position are saved, so that a training that was killed goes on from
there. Deletes are looked for after each segment, too: a part that has learnt what was deleted since
begins again without it. Documents that were added since are left to the next training.

It does not know where the trainer and the corpus are (`checkpoint.CorpusSide`), nor what the end of
a phase decides (`course`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from adapters.training import TrainingProgress, TrainingRequest, TrainingResult, TrainingStop
from selection.errors import CorpusError
from serving.adaptation.stages import Trains
from serving.corpus_training.checkpoint import Checkpoint, CorpusSide
from serving.corpus_training.course import GoOn, Phase
from serving.corpus_training.values import (
    CorpusTrainingError,
    CorpusTrainingOutcome,
    CorpusTrainingProgress,
    End,
    TrainingOptions,
)

log = logging.getLogger(__name__)

# A segment has as many steps as take these seconds, by the last one, within these limits.
SEGMENT_SECONDS = 20.0
MIN_STEPS, MAX_STEPS = 16, 128
# The adapter is the running average of the weights of this number of steps. On held-out text it is
# better than the last weights at a constant rate (benchmarks/README.md).
AVERAGED_STEPS = 32


class CorpusTraining:
    """Trains the adapter of a corpus; `run` it once.

    Args:
        trainer: trains the adapter.
        corpus: the corpus.
        options: how it is trained.
        on_progress: called after each step.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        trainer: Trains,
        corpus: CorpusSide,
        options: TrainingOptions,
        on_progress: Callable[[CorpusTrainingProgress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._corpus, self._options = trainer, corpus, options
        self._on_progress, self._clock, self._started = on_progress, clock, clock()
        self._segment_steps = MIN_STEPS
        self._steps = self._restarts = 0
        self._is_over = False
        self._losses: tuple[float, ...] = ()

    async def run(self) -> CorpusTrainingOutcome:
        """Train until the adapter has learnt the corpus, or until the time is over.

        Raises:
            CorpusTrainingError: the training diverges, or needs more memory than there is.
            CorpusError: the corpus cannot be used, or was removed.
        """
        at = await self._corpus.resume()
        if at is None or (self._options.fresh and not at.fresh):
            at = await self._corpus.begin(self._options)
        end = End.UNCHANGED if at.is_finished else End.LEARNT
        while not at.is_finished:
            if at.position.done == len(at.phase_ids):
                at = await self._decide(at)
            elif self._is_over:
                return await self._end_early(at)
            else:
                at = await self._segment(at)
            self._losses = at.position.losses or self._losses
            if not at.is_finished and await self._corpus.has_deleted(at.needed):
                at = await self._begin_again(at)
            if not at.is_finished:
                await self._corpus.save_checkpoint(at)
        # What was deleted is forgotten, also where nothing was left to learn without it.
        await self._corpus.clear_checkpoint()
        await self._corpus.drop_invalid()
        return await self._outcome(end)

    async def _begin_again(self, at: Checkpoint) -> Checkpoint:
        """A new plan for what the corpus has now; parts that are finished stay."""
        self._restarts += 1
        fresh = at.fresh and at.number == 0
        return await self._corpus.begin(replace(self._options, fresh=fresh))

    async def _segment(self, at: Checkpoint) -> Checkpoint:
        """Train on the next sequences of the phase."""
        if at.state is None and at.part.start is not None:
            try:
                state, learnt = await self._corpus.earlier(at.part.start)
            # A document that it has learnt was deleted since the plan was made, or it is damaged.
            except CorpusError as problem:
                log.info("a part cannot be trained further and is planned anew: %s", problem)
                return await self._begin_again(at)
            at = replace(at, state=state, learnt=learnt)
        if at.course.chooses and not at.position.losses:
            at = at.judged(await self._held_out_loss(at))
        ids = at.phase_ids[at.position.done :][: self._segment_steps]
        found = await self._corpus.rows(ids)
        if not found:
            # All were deleted; without an adapter, a new plan loses nothing.
            return at.taken(ids, found) if at.state else await self._begin_again(at)
        result = await self._trainer.train(
            TrainingRequest(
                [row.tokens for row in found.values()],
                seconds=self._seconds_left,
                start=at.state,
                learning_rate_factor=at.position.rate,
                scored=[row.scored for row in found.values()],
                background=True,
                keep_state=True,
                averaged_steps=AVERAGED_STEPS,
            ),
            partial(self._report, at),
        )
        self._note_speed(result)
        match result.stop:
            case TrainingStop.OUT_OF_MEMORY:
                raise CorpusTrainingError(
                    "a training step needs more memory than there is: free some, or add the "
                    "documents again with a smaller --max-length"
                )
            case TrainingStop.DIVERGED if at.position.phase is Phase.RATE:
                # This rate loses against any other.
                return replace(
                    at, state=None, position=replace(at.position, done=len(at.phase_ids))
                )
            case TrainingStop.DIVERGED:
                raise _diverged()
            case TrainingStop.SECONDS:
                self._is_over = True
        if result.adapter is None:
            return at
        if result.sequences_used < len(found):
            ids = ids[: ids.index([*found][result.sequences_used])]
        numerator = result.adapter.scale_numerator
        return replace(at.taken(ids, found), state=result.state, scale_numerator=numerator)

    async def _decide(self, at: Checkpoint) -> Checkpoint:
        """End a phase; at the end of a part, save its adapter."""
        loss = None
        if at.course.is_judged(at.position):
            loss = await self._held_out_loss(at) if at.state else math.inf
        decision = at.course.after(at.position, loss)
        if decision.position is None:
            saved = await self._corpus.save(at)
            is_outdated = await self._corpus.has_deleted(at.all_learnt)
            return await self._begin_again(at) if is_outdated else at.next_part(saved)
        at = at.after(decision)
        if at.state is None and decision.adapter is not GoOn.START:
            raise _diverged()
        return at

    async def _end_early(self, at: Checkpoint) -> CorpusTrainingOutcome:
        """Let requests use what was learnt until now; the checkpoint stays.

        Where an adapter is trained from scratch, the one before it stays until the first part of
        this one is whole, or has learnt as much.
        """
        if at.position.phase is Phase.RATE and at.kept is not None:
            # That of the first trial, which has ended.
            at = replace(at, state=at.kept, position=replace(at.position, rate=at.rates[0]))
        is_from_scratch = at.number == 0 and at.plan.replaces_all(at.names)
        used = (await self._corpus.summary()).sequences if is_from_scratch else 0
        earlier_stays = len(at.all_learnt) < used
        if at.state is not None and not earlier_stays:
            await self._corpus.save(at)
        return replace(await self._outcome(End.SECONDS), earlier_stays=earlier_stays)

    async def _held_out_loss(self, at: Checkpoint) -> float:
        """Mean loss on the held-out documents, in nats per token; infinite if they are gone."""
        found = await self._corpus.rows(at.course.held_out)
        if not found:
            return math.inf
        weights = None if at.state is None else at.state.weights
        return await self._trainer.loss([*found.values()], weights)

    async def _outcome(self, end: End) -> CorpusTrainingOutcome:
        return CorpusTrainingOutcome(
            end,
            await self._corpus.summary(),
            self._steps,
            self._clock() - self._started,
            self._losses,
            self._restarts,
        )

    @property
    def _seconds_left(self) -> float | None:
        limit = self._options.seconds
        return None if limit is None else max(0.0, self._started + limit - self._clock())

    def _report(self, at: Checkpoint, step: TrainingProgress) -> None:
        done, total = at.count
        self._on_progress(
            CorpusTrainingProgress(
                at.position.phase,
                at.number + 1,
                len(at.plan.parts),
                done + step.sequences_used,
                total,
                step.loss,
                at.position.losses,
            )
        )

    def _note_speed(self, result: TrainingResult) -> None:
        """Count the steps, and let the next segment take SEGMENT_SECONDS."""
        steps = len(result.losses)
        self._steps += steps
        if steps:
            fitting = int(SEGMENT_SECONDS * steps / max(result.seconds - result.waited, 1e-3))
            self._segment_steps = min(max(fitting, MIN_STEPS), MAX_STEPS)


def _diverged() -> CorpusTrainingError:
    return CorpusTrainingError(
        "the training diverges: train anew (`fresh`) with a lower --learning-rate (of the server, "
        "or of `mayfly corpus train`)"
    )
