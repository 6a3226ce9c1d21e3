"""Records of trainings that are read and written at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from selection.access import OPERATOR
from selection.corpus.corpus import Corpus
from selection.library.library import Library
from serving.calls import SerialExecutor
from serving.corpus_training import operation as operation_module
from serving.corpus_training import trainings as trainings_module
from serving.corpus_training.operation import Status, TrainingOperation
from serving.corpus_training.records import TrainingRecords
from serving.corpus_training.values import TrainingOptions
from serving.workers.stages import TrainerWorker
from tests.serving.corpus_training.conftest import PausableTrainer, Serve, until

_ONE_PASS = TrainingOptions(passes=1)


async def test_an_operation_that_has_changed_since_it_was_read_is_not_taken_over(
    library: SerialExecutor[Library], corpus: Corpus
) -> None:
    first, second = TrainingRecords(library), TrainingRecords(library)
    store = corpus.meta()["id"]
    nothing = await first.begin(TrainingOperation.new(store, _ONE_PASS), None)
    seen = await first.read("ships", OPERATOR)
    assert seen is not None

    taken = await second.begin(replace(seen, status=Status.QUEUED), seen)
    late = await first.begin(replace(seen, status=Status.QUEUED), seen)
    anew = await first.begin(TrainingOperation.new(store, _ONE_PASS), None)

    assert nothing == seen
    assert taken is not None
    assert (late, anew) == (None, None)
    assert await first.read("ships", OPERATOR) == taken


async def test_progress_that_arrives_after_the_outcome_is_not_recorded(
    library: SerialExecutor[Library], corpus: Corpus
) -> None:
    records = TrainingRecords(library)
    begun = await records.write(TrainingOperation.new(corpus.meta()["id"], _ONE_PASS))

    ended = await records.renew(replace(begun, status=Status.COMPLETED))
    late = await records.renew(replace(begun, status=Status.IN_PROGRESS, done=1))

    left = await records.read("ships", OPERATOR)
    assert (ended, late) == (True, False)
    assert left is not None
    assert left.status is Status.COMPLETED


async def test_a_training_whose_outcome_is_being_recorded_is_not_begun_again(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its last record is so old that others may take it over."""
    monkeypatch.setattr(operation_module, "ABANDONED_SECONDS", 0.0)
    monkeypatch.setattr(trainings_module, "LOOK_SECONDS", 3600.0)
    renew, recorded = TrainingRecords.renew, asyncio.Event()

    async def look_before(records: TrainingRecords, operation: TrainingOperation) -> bool:
        if operation.status is Status.COMPLETED:
            await trainings._look()
        is_held = await renew(records, operation)
        if operation.status is Status.COMPLETED:
            recorded.set()
        return is_held

    monkeypatch.setattr(TrainingRecords, "renew", look_before)
    running = PausableTrainer(trainer)
    running.running.set()
    async with serving(running) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await recorded.wait()
        operation = await trainings.operation("ships", OPERATOR)

    assert operation is not None
    assert operation.status is Status.COMPLETED


@pytest.mark.usefixtures("boats")
async def test_the_progress_of_a_training_that_has_ended_is_not_recorded(
    serving: Serve, trainer: TrainerWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while the progress of another one is recorded."""
    monkeypatch.setattr(trainings_module, "RECORD_SECONDS", 3600.0)
    renew, running = TrainingRecords.renew, PausableTrainer(trainer)

    async def renew_slowly(records: TrainingRecords, operation: TrainingOperation) -> bool:
        if running.running.is_set():
            return await renew(records, operation)
        running.running.set()
        async with asyncio.timeout(60):
            await until(have_ended)
        return True

    async def have_ended() -> bool:
        return not trainings.is_running

    monkeypatch.setattr(TrainingRecords, "renew", renew_slowly)
    async with serving(running) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await trainings.train("boats", _ONE_PASS, OPERATOR)
        await running.waiting.wait()
        await trainings._record_all()
        boats = await trainings.operation("boats", OPERATOR)

    assert boats is not None
    assert boats.status is Status.COMPLETED
