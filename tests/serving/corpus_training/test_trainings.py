"""The trainings of a server: one after the other, cancelled, taken over, and kept fresh."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from adapters.training import TrainingRequest, TrainingResult
from selection.access import OPERATOR, Principal
from selection.config import AdapterShape
from selection.corpus.corpus import Corpus
from selection.corpus.trained.manifest import AdapterSettings, AdapterStatus, TrainedPart
from selection.corpus.trained.training import AdapterTraining
from selection.errors import (
    CorpusError,
    CorpusUnavailableError,
    LibraryError,
    MissingError,
    ReadOnlyError,
)
from selection.library.library import Library
from serving.calls import SerialExecutor
from serving.corpus_training import operation as operation_module
from serving.corpus_training import repeated
from serving.corpus_training import trainings as trainings_module
from serving.corpus_training.operation import ABANDONED_SECONDS, Status, TrainingOperation
from serving.corpus_training.records import TrainingRecords
from serving.corpus_training.trainings import CorpusTrainings
from serving.corpus_training.values import TrainingOptions
from serving.errors import StageFailedError
from serving.workers.stages import TrainerWorker
from tests.serving.corpus_training.conftest import (
    DOCUMENTS,
    SEQUENCES,
    AddDocuments,
    PausableTrainer,
    Serve,
    until,
)

_ONE_PASS = TrainingOptions(passes=1)


async def ended(trainings: CorpusTrainings, store: str = "ships") -> TrainingOperation:
    """The last training of a vector store, once it has ended."""

    async def has_ended() -> bool:
        operation = await trainings.operation(store, OPERATOR)
        return operation is not None and not operation.is_pending

    await until(has_ended)
    operation = await trainings.operation(store, OPERATOR)
    assert operation is not None
    return operation


async def test_a_training_is_queued_and_completes(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, shape: AdapterShape
) -> None:
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        queued = await trainings.train("ships", _ONE_PASS, OPERATOR)
        again = await trainings.train("ships", _ONE_PASS, OPERATOR)
        paused.running.set()
        completed = await ended(trainings)

    assert (queued.status, again.created) == (Status.QUEUED, queued.created)
    assert (completed.status, completed.error) == (Status.COMPLETED, None)
    assert completed.done == completed.total > DOCUMENTS * SEQUENCES
    assert corpus.training.status(shape).reason is None


@pytest.mark.usefixtures("boats")
async def test_trainings_are_done_one_after_the_other(
    serving: Serve,
    trainer: TrainerWorker,
) -> None:
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await trainings.train("boats", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        waiting = await trainings.operation("boats", OPERATOR)
        cancelled = await trainings.cancel("ships", OPERATOR)
        paused.running.set()
        completed = await ended(trainings, "boats")

    assert waiting is not None
    assert waiting.status is Status.QUEUED
    assert cancelled.status is Status.CANCELLED
    assert completed.status is Status.COMPLETED


@pytest.mark.usefixtures("boats")
async def test_several_trainers_train_as_many_corpora_at_once(
    serving: Serve, trainer: TrainerWorker, library: SerialExecutor[Library], corpus: Corpus
) -> None:
    empty = await library.call(Library.create_store, "empty")

    async def are_waiting() -> bool:
        return paused.held == 2

    paused = PausableTrainer(trainer, number=2)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await trainings.train("boats", _ONE_PASS, OPERATOR)
        await until(are_waiting)
        # A third one waits until one of them has ended.
        trainings._add(await trainings._records.write(TrainingOperation.new(empty.id, _ONE_PASS)))
        await asyncio.sleep(0.1)
        third = await trainings.operation("empty", OPERATOR)
        cancelled = await trainings.cancel("ships", OPERATOR)
        ended_third = await ended(trainings, "empty")
        paused.running.set()
        completed = await ended(trainings, "boats")

    assert third is not None
    assert third.status is Status.QUEUED
    assert not ended_third.is_pending
    assert cancelled.status is Status.CANCELLED
    assert completed.status is Status.COMPLETED


@pytest.mark.usefixtures("boats")
async def test_trainers_that_cannot_be_counted_train_one_corpus_after_the_other(
    serving: Serve, trainer: TrainerWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> int:
        raise RuntimeError("no replica answers")

    paused = PausableTrainer(trainer)
    monkeypatch.setattr(paused, "count", fail)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await trainings.train("boats", _ONE_PASS, OPERATOR)
        paused.running.set()
        completed = [await ended(trainings, store) for store in ("ships", "boats")]

    assert [each.status for each in completed] == [Status.COMPLETED] * 2


async def test_a_cancelled_training_goes_on_from_its_checkpoint(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus
) -> None:
    paused = PausableTrainer(trainer, free=3)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        await trainings.cancel("ships", OPERATOR)
        checkpoint = corpus.training.load_checkpoint()
        paused.running.set()
        with corpus.training.lock():
            pass
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        completed = await ended(trainings)

    assert checkpoint is not None
    assert completed.status is Status.COMPLETED
    assert corpus.training.load_checkpoint() is None


async def test_another_process_takes_over_and_cancels(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, free = PausableTrainer(trainer, free=3), PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
    left = corpus.training.recorded()
    monkeypatch.setattr(operation_module, "ABANDONED_SECONDS", 0.0)
    async with serving(free) as successor:
        await free.waiting.wait()
        # As a request to a replica that is not training it.
        record = corpus.training.recorded()
        assert record is not None
        corpus.training.record({**record, "status": Status.CANCELLED})
        cancelled = await ended(successor)
        free.running.set()
        await successor.train("ships", _ONE_PASS, OPERATOR)
        completed = await ended(successor)

    assert left is not None
    assert left["status"] in (Status.QUEUED, Status.IN_PROGRESS)
    assert cancelled.status is Status.CANCELLED
    assert completed.status is Status.COMPLETED


async def test_what_another_process_has_cancelled_can_be_asked_for_again_at_once(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings_module, "RECORD_SECONDS", 3600.0)
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        first = await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        record = corpus.training.recorded()
        assert record is not None
        corpus.training.record({**record, "status": Status.CANCELLED})
        seen = await trainings.operation("ships", OPERATOR)
        again = await trainings.train("ships", _ONE_PASS, OPERATOR)
        paused.running.set()
        completed = await ended(trainings)

    assert seen is not None
    assert seen.status is Status.CANCELLED
    assert again.created != first.created
    assert (completed.created, completed.status) == (again.created, Status.COMPLETED)


async def test_a_training_that_was_replaced_does_not_end_the_one_in_its_place(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RECORD_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(trainings_module, name, 3600.0)
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings, asyncio.timeout(60):
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        # Of two requests at the same time, each finds nothing that is under way.
        other = TrainingOperation.new(corpus.meta()["id"], _ONE_PASS)
        trainings._add(await trainings._records.write(other))
        paused.running.set()
        completed = await ended(trainings)

    assert (completed.created, completed.status) == (other.created, Status.COMPLETED)


class EndingLibrary:
    """Calls a library until its process ends."""

    def __init__(self, library: SerialExecutor[Library]) -> None:
        self._library, self.has_ended = library, False

    async def call(self, method: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.has_ended:
            raise StageFailedError("the selector has ended; a new one is started")
        return await self._library.call(method, *args, **kwargs)


async def test_a_server_that_ends_prints_no_stack(
    library: SerialExecutor[Library],
    trainer: TrainerWorker,
    shape: AdapterShape,
    corpus: Corpus,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainings_module, "RECORD_SECONDS", 0.01)
    ending, paused = EndingLibrary(library), PausableTrainer(trainer)
    trainings = CorpusTrainings(paused, ending, shape, lambda: False)
    running = asyncio.create_task(trainings.run())
    await trainings.train("ships", _ONE_PASS, OPERATOR)
    await paused.waiting.wait()

    ending.has_ended = True

    async def is_logged() -> bool:
        return bool(caplog.records)

    await until(is_logged)
    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()
    assert not trainings.is_running
    messages = {record.getMessage() for record in caplog.records}
    assert messages == {
        f"cannot record the training of vector store {corpus.meta()['id']}: the selector has "
        "ended; a new one is started"
    }
    assert not any(record.exc_info for record in caplog.records)


async def test_a_cancelled_training_stays_cancelled_while_its_progress_is_recorded(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings_module, "RECORD_SECONDS", 3600.0)
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        cancelling = asyncio.create_task(trainings.cancel("ships", OPERATOR))
        await asyncio.gather(cancelling, trainings._record_all())
        operation = await trainings.operation("ships", OPERATOR)

    assert operation is not None
    assert operation.status is Status.CANCELLED


@pytest.mark.usefixtures("boats")
async def test_cancelling_a_queued_training_does_not_disturb_the_one_before_it(
    serving: Serve,
    trainer: TrainerWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_ending, may_end = asyncio.Event(), asyncio.Event()
    renew = TrainingRecords.renew

    async def renew_slowly(records: TrainingRecords, operation: TrainingOperation) -> bool:
        if operation.status is Status.COMPLETED:
            is_ending.set()
            await may_end.wait()
        return await renew(records, operation)

    monkeypatch.setattr(TrainingRecords, "renew", renew_slowly)
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("boats", _ONE_PASS, OPERATOR)
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        paused.running.set()
        await is_ending.wait()
        await trainings.cancel("ships", OPERATOR)
        may_end.set()
        # Sooner than it would be taken over and done once more.
        async with asyncio.timeout(ABANDONED_SECONDS / 2):
            completed = await ended(trainings, "boats")

    assert completed.status is Status.COMPLETED


async def test_a_training_ends_when_another_process_removes_the_adapter(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus
) -> None:
    async def has_ended() -> bool:
        return not trainings.is_running

    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        corpus.training.remove()
        corpus.training.record(None)
        async with asyncio.timeout(30):
            await until(has_ended)
        operation = await trainings.operation("ships", OPERATOR)

    assert operation is None


@pytest.mark.parametrize("ends", ["removed", "taken over"])
async def test_what_another_process_has_ended_or_taken_over_saves_nothing(
    serving: Serve,
    library: SerialExecutor[Library],
    trainer: TrainerWorker,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:
    """Also before the process has read that, when it next records its progress."""

    async def has_ended() -> bool:
        return not trainings.is_running

    for name in ("RECORD_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(trainings_module, name, 3600.0)
    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        operation = await trainings.operation("ships", OPERATOR)
        assert operation is not None
        if ends == "removed":
            corpus.training.record(None)
        else:
            await TrainingRecords(library).write(operation)
        corpus.training.remove()
        before = corpus.training.recorded()
        paused.running.set()
        async with asyncio.timeout(30):
            await until(has_ended)

    assert corpus.training.load_checkpoint() is None
    assert corpus.training.status().info is None
    assert corpus.training.recorded() == before


class Restarting:
    """A trainer that fails again and again, after some calls that do not."""

    def __init__(self, trainer: TrainerWorker, between: int, problem: Exception) -> None:
        self.learning_rate, self.loss = trainer.learning_rate, trainer.loss
        self.corpus_rates, self.compare = trainer.corpus_rates, trainer.compare
        self.failures = 0
        self._trainer, self._problem = trainer, problem
        self._between = self._left = between

    async def train(self, request: TrainingRequest, on_step: Any = None) -> TrainingResult:
        if not self._left:
            self.failures, self._left = self.failures + 1, self._between
            raise self._problem
        self._left -= 1
        return await self._trainer.train(request, on_step)


@pytest.mark.parametrize(
    "problem",
    [StageFailedError("the trainer has ended"), CorpusUnavailableError("the database is away")],
)
@pytest.mark.parametrize(("between", "status"), [(1, Status.COMPLETED), (0, Status.FAILED)])
async def test_a_training_fails_only_if_it_gets_no_further(
    serving: Serve,
    trainer: TrainerWorker,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    between: int,
    status: Status,
    problem: Exception,
) -> None:
    monkeypatch.setattr(repeated, "RETRY_SECONDS", 0.01)
    restarting = Restarting(trainer, between, problem)
    async with serving(restarting) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        operation = await ended(trainings)

    assert operation.status is status
    assert restarting.failures > 3 if between else restarting.failures == 3


async def test_the_seconds_of_a_training_are_those_of_all_its_attempts(
    serving: Serve, trainer: TrainerWorker, library: SerialExecutor[Library], corpus: Corpus
) -> None:
    asked = TrainingOperation.new(corpus.meta()["id"], TrainingOptions(seconds=60.0))
    await TrainingRecords(library).write(replace(asked, seconds=60.0, renewed=0.0))
    record = corpus.training.recorded()
    assert record is not None
    corpus.training.record({**record, "renewed": 0.0})

    async with serving(trainer) as trainings:
        operation = await ended(trainings)

    assert operation.status is Status.COMPLETED
    assert corpus.training.status().not_learnt > DOCUMENTS * SEQUENCES / 2


@pytest.mark.usefixtures("boats")
async def test_a_problem_with_one_corpus_does_not_keep_others_from_training(
    serving: Serve,
    trainer: TrainerWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = AdapterTraining.status

    def status_of_one(training: AdapterTraining, *args: Any, **kwargs: Any) -> AdapterStatus:
        found = status(training, *args, **kwargs)
        if found.learnt + found.not_learnt == 2 * SEQUENCES:
            raise CorpusError("corpus 'boats' is damaged")
        return found

    monkeypatch.setattr(AdapterTraining, "status", status_of_one)
    async with serving(trainer, keeps_fresh=True) as trainings:
        completed = await ended(trainings)

    assert completed.status is Status.COMPLETED


async def test_a_deleted_vector_store_ends_its_training(
    serving: Serve,
    trainer: TrainerWorker,
    library: SerialExecutor[Library],
    corpus: Corpus,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def has_ended() -> bool:
        return not trainings.is_running

    paused = PausableTrainer(trainer)
    async with serving(paused) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        await library.call(Library.delete_store, "ships")
        await until(has_ended)
        with pytest.raises(MissingError):
            await trainings.operation("ships", OPERATOR)

    assert not corpus.folder.exists()
    assert not caplog.records


async def test_an_adapter_is_removed(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus
) -> None:
    paused = PausableTrainer(trainer)
    paused.running.set()
    async with serving(paused) as trainings:
        with pytest.raises(MissingError, match="has no adapter"):
            await trainings.remove("ships", OPERATOR)
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await ended(trainings)
        removed = await trainings.remove("ships", OPERATOR)
        operation = await trainings.operation("ships", OPERATOR)
        with corpus.training.lock():
            await trainings.train("ships", _ONE_PASS, OPERATOR)
            failed = await ended(trainings)
            with pytest.raises(LibraryError, match="another process"):
                await trainings.remove("ships", OPERATOR)

    assert failed.status is Status.FAILED
    assert "is being trained by another process" in str(failed.error)
    assert removed == corpus.meta()["id"]
    assert operation is None
    assert corpus.training.status().info is None


async def test_only_the_owner_trains_and_only_what_can_be_learnt(
    serving: Serve, trainer: TrainerWorker, library: SerialExecutor[Library], corpus: Corpus
) -> None:
    empty = await library.call(Library.create_store, "empty")
    reader = Principal("reader", frozenset({"ships"}))
    async with serving(PausableTrainer(trainer)) as trainings:
        with pytest.raises(ReadOnlyError):
            await trainings.train("ships", _ONE_PASS, reader)
        with pytest.raises(ReadOnlyError):
            await trainings.remove("ships", reader)
        status = await trainings.status("ships", reader)
        with pytest.raises(MissingError):
            await trainings.train("ships", _ONE_PASS, Principal("stranger", frozenset()))
        with pytest.raises(LibraryError, match="nothing to learn: attach files first"):
            await trainings.train(empty.id, _ONE_PASS, OPERATOR)
        with pytest.raises(MissingError, match="not in training"):
            await trainings.cancel("ships", OPERATOR)

    assert status.not_learnt == DOCUMENTS * SEQUENCES


async def test_corpora_are_kept_fresh(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, add: AddDocuments, shape: AdapterShape
) -> None:
    running = PausableTrainer(trainer)
    running.running.set()

    async def learnt(count: int) -> None:
        async def has_learnt() -> bool:
            return corpus.training.status(shape).learnt == count

        await until(has_learnt)

    async with serving(running, keeps_fresh=True):
        await learnt(DOCUMENTS * SEQUENCES)
        add(corpus, 99)
        await learnt((DOCUMENTS + 1) * SEQUENCES)
        corpus.delete("document 3")
        await learnt(DOCUMENTS * SEQUENCES)


async def test_an_adapter_of_another_model_is_not_fresh(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, shape: AdapterShape
) -> None:
    other = AdapterShape("another model", shape.rank, shape.targets)
    plan = corpus.training.plan(other)
    settings = AdapterSettings(other.model, other.rank, 1.0, other.targets, 1e-3, 1, plan.divided)
    learnt = (*plan.parts[0].ids, *plan.parts[0].held_out)
    corpus.training.save_part(settings, TrainedPart(b"weights", learnt, plan.snapshot))
    running = PausableTrainer(trainer)
    running.running.set()

    async def is_usable() -> bool:
        return corpus.training.status(shape).reason is None

    async with serving(running, keeps_fresh=True), asyncio.timeout(60):
        await until(is_usable)


@pytest.mark.parametrize("has_saved_a_part", [False, True])
async def test_a_training_that_was_cancelled_is_not_begun_again_for_the_same_documents(
    serving: Serve,
    trainer: TrainerWorker,
    corpus: Corpus,
    shape: AdapterShape,
    add: AddDocuments,
    monkeypatch: pytest.MonkeyPatch,
    has_saved_a_part: bool,
) -> None:
    monkeypatch.setattr(trainings_module, "LOOK_SECONDS", 3600.0)
    async with serving(PausableTrainer(trainer), keeps_fresh=True) as trainings:
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        if has_saved_a_part:
            plan = corpus.training.plan(shape)
            settings = AdapterSettings(
                shape.model, shape.rank, 1.0, shape.targets, 1e-3, 1, plan.divided
            )
            part = TrainedPart(b"weights", plan.parts[0].ids[:1], plan.snapshot)
            corpus.training.save_part(settings, part)
        cancelled = await trainings.cancel("ships", OPERATOR)
        for _ in range(3):
            await trainings._look()
        left = await trainings.operation("ships", OPERATOR)
        add(corpus, 99)
        for _ in range(2):
            await trainings._look()
        begun = await trainings.operation("ships", OPERATOR)

    assert left is not None
    assert (left.created, left.status) == (cancelled.created, Status.CANCELLED)
    assert begun is not None
    assert begun.is_pending


@pytest.mark.parametrize("busy", [False, True])
async def test_a_training_gives_way_to_requests(
    serving: Serve, trainer: TrainerWorker, corpus: Corpus, busy: bool
) -> None:
    paused = PausableTrainer(trainer)
    async with serving(paused, busy=busy) as trainings:
        trainings.priority.notice()
        await asyncio.sleep(0.05)
        idle = len(paused.give_way_calls)
        await trainings.train("ships", _ONE_PASS, OPERATOR)
        await paused.waiting.wait()
        trainings.priority.notice()
        await asyncio.sleep(0.05)

    assert idle == 0
    assert bool(paused.give_way_calls) is busy


async def test_the_training_of_another_process_gives_way_too(
    serving: Serve, trainer: TrainerWorker
) -> None:
    training, answering = PausableTrainer(trainer), PausableTrainer(trainer)
    async with serving(training) as first, serving(answering, busy=True) as second:
        await first.train("ships", _ONE_PASS, OPERATOR)
        await training.waiting.wait()
        async with asyncio.timeout(10):
            while not answering.give_way_calls:
                second.priority.notice()
                await asyncio.sleep(0.05)

    assert not training.give_way_calls
