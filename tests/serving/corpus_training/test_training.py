"""The training of a corpus's adapter, with a real trainer and a real corpus: what is learnt, and
what an interruption, an addition and a deletion do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.model_defaults import CORPUS_SCALING
from adapters.training import TrainingRequest, TrainingResult, TrainingStop
from selection.config import AdapterShape
from selection.corpus.corpus import Corpus
from selection.corpus.trained import division
from serving.corpus_training import course
from serving.corpus_training.checkpoint import Checkpoint
from serving.corpus_training.stored import Recipe, StoredCorpus, calls_here
from serving.corpus_training.training import CorpusTraining
from serving.corpus_training.values import (
    CorpusTrainingError,
    CorpusTrainingOutcome,
    CorpusTrainingProgress,
    End,
    TrainingOptions,
)
from serving.workers.stages import TrainerWorker
from tests.serving.corpus_training.conftest import DOCUMENTS, SEQUENCES, AddDocuments

_ONE_PASS = TrainingOptions(passes=1)


class Killed(BaseException):
    """Ends a training as a kill does: nothing runs after it."""


class Observed(StoredCorpus):
    """A corpus side that tells of each checkpoint."""

    def __init__(
        self, corpus: Corpus, recipe: Recipe, on_checkpoint: Callable[[Checkpoint], None]
    ) -> None:
        super().__init__(calls_here(corpus.training), recipe)
        self._on_checkpoint = on_checkpoint

    async def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        await super().save_checkpoint(checkpoint)
        self._on_checkpoint(checkpoint)


Train = Callable[..., Any]


@pytest.fixture
def train(trainer: TrainerWorker, shape: AdapterShape, monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.setattr(course, "TRIAL_SEQUENCES", 2 * SEQUENCES)

    async def train(
        corpus: Corpus,
        options: TrainingOptions = _ONE_PASS,
        on_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
        on_progress: Callable[[CorpusTrainingProgress], None] = lambda progress: None,
        by: Any = None,
    ) -> CorpusTrainingOutcome:
        recipe = await Recipe.of(shape, trainer)
        side = Observed(corpus, recipe, on_checkpoint)
        return await CorpusTraining(by or trainer, side, options, on_progress).run()

    return train


def copied(corpus: Corpus, name: str) -> Corpus:
    """A copy of a corpus as it is on disk now, which a killed process leaves behind."""
    root = corpus.folder.parent
    shutil.copytree(corpus.folder, root / name)
    return Corpus.open(root, name)


def weights(corpus: Corpus) -> list[bytes]:
    """The weights of all parts of a corpus's adapter."""
    info = corpus.training.status().info
    return [] if info is None else [corpus.training.part(part.name).weights for part in info.parts]


async def test_an_adapter_learns_the_corpus(
    corpus: Corpus, train: Train, shape: AdapterShape
) -> None:
    steps: list[CorpusTrainingProgress] = []

    outcome = await train(corpus, TrainingOptions(), on_progress=steps.append)
    again = await train(corpus, TrainingOptions())

    assert outcome.end is End.LEARNT
    assert (outcome.adapter.sequences, outcome.adapter.not_learnt) == (DOCUMENTS * SEQUENCES, 0)
    assert outcome.adapter.documents == DOCUMENTS
    assert min(outcome.losses[1:]) < outcome.losses[0]
    assert corpus.training.status(shape).reason is None
    assert corpus.training.load_checkpoint() is None
    assert [step.done for step in steps] == sorted({step.done for step in steps})
    assert (steps[-1].done, steps[-1].total) == (outcome.steps, outcome.steps)
    assert (again.end, again.steps) == (End.UNCHANGED, 0)


async def test_requests_will_use_the_adapter_scaled(corpus: Corpus, train: Train) -> None:
    await train(corpus)

    info = corpus.training.status().info
    assert info is not None
    assert [part.scaling for part in info.parts] == [CORPUS_SCALING]


async def test_after_a_kill_the_same_adapter_is_trained(corpus: Corpus, train: Train) -> None:
    # Arrange: what a kill after each checkpoint would leave on disk.
    left: list[Corpus] = []
    await train(
        corpus,
        TrainingOptions(),
        lambda checkpoint: left.append(copied(corpus, f"left-{len(left)}")),
    )
    whole = weights(corpus)

    left = left[::2]

    outcomes = [await train(each, TrainingOptions()) for each in left]

    assert len(left) > 3
    assert [outcome.end for outcome in outcomes] == [End.LEARNT] * len(left)
    assert all(weights(each) == whole for each in left)
    assert [outcome.steps for outcome in outcomes] == sorted(
        (outcome.steps for outcome in outcomes), reverse=True
    )
    for each in left:
        each.close()


async def test_new_documents_are_learnt_on_top(
    corpus: Corpus, train: Train, add: AddDocuments
) -> None:
    await train(corpus)
    before = weights(corpus)
    add(corpus, 98, 99)
    learnt: set[int] = set()

    outcome = await train(
        corpus, on_checkpoint=lambda checkpoint: learnt.update(checkpoint.all_learnt)
    )

    assert (outcome.end, outcome.steps) == (End.LEARNT, 2 * SEQUENCES)
    assert (outcome.adapter.sequences, outcome.adapter.parts) == ((DOCUMENTS + 2) * SEQUENCES, 1)
    assert outcome.losses == ()
    assert weights(corpus) != before


async def test_documents_that_are_added_meanwhile_are_left_to_the_next_training(
    corpus: Corpus, train: Train, add: AddDocuments
) -> None:
    def add_once(checkpoint: Checkpoint) -> None:
        if not corpus.has_name("document 99"):
            add(corpus, 99)

    outcome = await train(corpus, on_checkpoint=add_once)
    following = await train(corpus)

    assert (outcome.end, outcome.adapter.not_learnt) == (End.LEARNT, SEQUENCES)
    assert (following.end, following.steps) == (End.LEARNT, SEQUENCES)


async def test_a_part_begins_again_when_what_it_has_learnt_is_deleted(
    corpus: Corpus, train: Train
) -> None:
    deleted: list[int] = []

    def delete_once(checkpoint: Checkpoint) -> None:
        learnt = checkpoint.all_learnt
        if learnt and not deleted:
            document = corpus.read(learnt[:1])[learnt[0]].source.document
            deleted.append(document)
            corpus.delete(document)

    outcome = await train(corpus, on_checkpoint=delete_once)

    assert (outcome.end, outcome.restarts) == (End.LEARNT, 1)
    assert (outcome.adapter.sequences, outcome.adapter.not_learnt) == (
        (DOCUMENTS - 1) * SEQUENCES,
        0,
    )
    assert weights(corpus) == await weights_of_a_corpus_that_never_had(corpus, train)


async def test_what_was_deleted_is_forgotten_where_nothing_else_is_to_be_learnt(
    corpus: Corpus, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(division, "PART_MIN", SEQUENCES)
    await train(corpus, TrainingOptions(passes=1, parts=DOCUMENTS))
    info = corpus.training.status().info
    assert info is not None
    learnt = {part.name: corpus.training.part(part.name).learnt for part in info.parts}
    gone = min(learnt, key=lambda name: len(learnt[name]))
    for document in {each.source.document for each in corpus.read(learnt[gone]).values()}:
        corpus.delete(document)

    outcome = await train(corpus)

    left = corpus.training.status()
    assert (outcome.end, outcome.steps) == (End.UNCHANGED, 0)
    assert left.info is not None
    assert {part.name for part in left.info.parts} == learnt.keys() - {gone}
    assert left.invalid == ()
    assert not [*(corpus.folder / "trained").glob(f"{gone}*")]


async def test_nothing_is_left_of_an_adapter_whose_documents_are_all_deleted(
    corpus: Corpus, train: Train
) -> None:
    await train(corpus)
    for number in range(DOCUMENTS):
        corpus.delete(f"document {number}")

    await train(corpus)

    assert corpus.training.status().info is None
    assert not [*(corpus.folder / "trained").glob("*.safetensors")]


async def weights_of_a_corpus_that_never_had(corpus: Corpus, train: Train) -> list[bytes]:
    """The weights of an adapter that is trained on what a corpus has now."""
    fresh = copied(corpus, "fresh")
    fresh.training.remove()
    await train(fresh)
    found = weights(fresh)
    fresh.close()
    return found


async def test_a_deletion_before_it_is_learnt_costs_nothing(corpus: Corpus, train: Train) -> None:
    deleted: list[int] = []

    def delete_once(checkpoint: Checkpoint) -> None:
        read = corpus.read(checkpoint.course.learn)
        begun = {read[i].source.document for i in checkpoint.needed if i in read}
        later = {each.source.document for each in read.values()} - begun
        if not deleted:
            deleted.append(min(later))
            corpus.delete(deleted[0])

    outcome = await train(corpus, on_checkpoint=delete_once)

    assert (outcome.end, outcome.restarts) == (End.LEARNT, 0)
    assert (outcome.adapter.sequences, outcome.adapter.not_learnt) == (
        (DOCUMENTS - 1) * SEQUENCES,
        0,
    )


async def test_after_a_deletion_the_adapter_is_trained_anew(corpus: Corpus, train: Train) -> None:
    await train(corpus)
    corpus.delete("document 3")
    reason = corpus.training.status().reason

    outcome = await train(corpus)

    assert reason is not None
    assert (outcome.end, outcome.steps) == (End.LEARNT, (DOCUMENTS - 1) * SEQUENCES)
    assert corpus.training.status().reason is None
    assert outcome.adapter.parts == 1


@pytest.mark.parametrize(("factor", "is_chosen"), [(1.0, False), (0.1, True)])
async def test_another_learning_rate_is_for_what_is_trained_anew(
    corpus: Corpus, trainer: TrainerWorker, shape: AdapterShape, factor: float, is_chosen: bool
) -> None:
    recipe = await Recipe.of(shape, trainer)
    changed = replace(recipe, learning_rate=factor * recipe.learning_rate)
    first, second = (StoredCorpus(calls_here(corpus.training), each) for each in (recipe, changed))
    whole = await CorpusTraining(trainer, first, _ONE_PASS).run()

    corpus.delete("document 3")
    begun = await second.begin(TrainingOptions())

    assert (begun.rate is None) == is_chosen
    if not is_chosen:
        rate = whole.adapter.learning_rate
        assert rate == pytest.approx((begun.rate or 0) * recipe.learning_rate)


class Slow:
    """A trainer whose time is over after some sequences."""

    def __init__(self, trainer: TrainerWorker, sequences: int) -> None:
        self.learning_rate, self.loss = trainer.learning_rate, trainer.loss
        self._trainer, self._left = trainer, sequences

    async def train(self, request: TrainingRequest, on_step: Any = None) -> TrainingResult:
        taken = min(self._left, len(request.sequences))
        self._left -= taken
        cut = {name: getattr(request, name)[:taken] for name in ("sequences", "scored")}
        result = await self._trainer.train(replace(request, seconds=None, **cut), on_step)
        if taken < len(request.sequences):
            return replace(result, stop=TrainingStop.SECONDS)
        return result


# In the trial of the first learning rate, in that of the second, and in the pass.
@pytest.mark.parametrize("sequences", [7, 2 * SEQUENCES + 4, 5 * SEQUENCES + 7])
async def test_when_the_time_is_over_what_was_learnt_is_used(
    corpus: Corpus, train: Train, trainer: TrainerWorker, sequences: int
) -> None:
    whole = copied(corpus, "whole")
    await train(whole)

    limited = TrainingOptions(seconds=60, passes=1)
    stopped = await train(corpus, limited, by=Slow(trainer, sequences))
    usable = corpus.training.status().reason
    outcome = await train(corpus)

    assert stopped.end is End.SECONDS
    if sequences < 4 * SEQUENCES:
        # Of two trials, the adapter of the first one answers.
        assert stopped.adapter.learning_rate == pytest.approx(await trainer.learning_rate())
    assert 0 < stopped.adapter.sequences < DOCUMENTS * SEQUENCES
    assert usable is None
    assert (outcome.end, outcome.adapter.parts) == (End.LEARNT, 1)
    assert weights(corpus) == weights(whole)
    whole.close()


async def test_an_adapter_stays_until_one_that_is_trained_anew_has_learnt_as_much(
    corpus: Corpus, train: Train, trainer: TrainerWorker
) -> None:
    def part() -> str:
        info = corpus.training.status().info
        assert info is not None
        return info.parts[0].name

    anew = TrainingOptions(seconds=60, passes=1, fresh=True)
    whole = await train(corpus)
    before = part()

    stopped = await train(corpus, anew, by=Slow(trainer, 5 * SEQUENCES + 7))
    during = part()
    outcome = await train(corpus, anew)

    assert (stopped.end, during) == (End.SECONDS, before)
    assert (stopped.earlier_stays, stopped.adapter) == (True, whole.adapter)
    assert (outcome.end, outcome.adapter.sequences) == (End.LEARNT, DOCUMENTS * SEQUENCES)
    assert outcome.steps < whole.steps
    assert part() != before


async def test_an_adapter_that_this_trainer_cannot_use_does_not_stay(
    corpus: Corpus, train: Train, trainer: TrainerWorker, shape: AdapterShape
) -> None:
    whole = await train(corpus)
    rates = await trainer.corpus_rates()
    recipe = Recipe(replace(shape, rank=2 * shape.rank), await trainer.learning_rate(), rates)
    side = StoredCorpus(calls_here(corpus.training), recipe)
    slow: Any = Slow(trainer, 5 * SEQUENCES)
    anew = TrainingOptions(seconds=60, passes=1, fresh=True)

    stopped = await CorpusTraining(slow, side, anew).run()

    assert (stopped.end, stopped.earlier_stays) == (End.SECONDS, False)
    assert 0 < stopped.adapter.sequences < whole.adapter.sequences


async def test_an_interrupted_training_of_another_version_begins_again(
    corpus: Corpus, train: Train, trainer: TrainerWorker, caplog: pytest.LogCaptureFixture
) -> None:
    await train(corpus, TrainingOptions(seconds=60, passes=1), by=Slow(trainer, 7))
    left = corpus.training.load_checkpoint()
    assert left is not None
    progress = {key: value for key, value in left.progress.items() if key != "position"}
    corpus.training.save_checkpoint(replace(left, progress=progress))

    outcome = await train(corpus)

    assert outcome.end is End.LEARNT
    assert "of another version of Mayfly: it begins again ('position')" in caplog.text


async def test_a_rate_that_diverges_is_not_taken(
    corpus: Corpus, train: Train, nano: str, trainer: TrainerWorker
) -> None:
    class Diverging:
        """A trainer that diverges at the full learning rate."""

        learning_rate, loss = trainer.learning_rate, trainer.loss

        async def train(self, request: TrainingRequest, on_step: Any = None) -> TrainingResult:
            if request.learning_rate_factor in self.rates:
                return TrainingResult(None, (), 0, TrainingStop.DIVERGED, 0.1, 0.0)
            return await trainer.train(request, on_step)

        def __init__(self, *rates: float) -> None:
            self.rates = rates

    rates = await trainer.corpus_rates()
    outcome = await train(corpus, by=Diverging(rates[0]))
    with pytest.raises(CorpusTrainingError, match=r"diverges: train anew .* lower --learning-rate"):
        await train(
            corpus, TrainingOptions(fresh=True), by=Diverging(*await trainer.corpus_rates())
        )

    assert outcome.adapter.learning_rate == pytest.approx(rates[1] * await trainer.learning_rate())


async def test_a_deletion_costs_one_part(
    corpus: Corpus, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(division, "PART_MIN", 2 * SEQUENCES)
    rates: set[float | None] = set()

    whole = await train(
        corpus, TrainingOptions(parts=4), lambda checkpoint: rates.add(checkpoint.rate)
    )
    before = weights(corpus)
    corpus.delete("document 3")
    anew = await train(corpus)
    after = weights(corpus)

    assert (whole.end, whole.adapter.parts, whole.adapter.not_learnt) == (End.LEARNT, 4, 0)
    # Chosen by the first part, for all.
    assert len(rates - {None}) == 1
    assert (anew.end, anew.adapter.not_learnt) == (End.LEARNT, 0)
    assert anew.steps < DOCUMENTS * SEQUENCES / 2
    # What is left of the part may be learnt by others, on top of what they know.
    assert {*before} & {*after}


async def test_a_part_that_became_invalid_before_its_turn_is_planned_anew(
    corpus: Corpus, train: Train, add: AddDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: several parts are to be trained further; the run ends before the second one.
    monkeypatch.setattr(division, "PART_MIN", 2 * SEQUENCES)
    await train(corpus, TrainingOptions(passes=1, parts=4))
    add(corpus, *range(DOCUMENTS, 2 * DOCUMENTS))
    left: list[Checkpoint] = []

    def kill_between_two_parts(checkpoint: Checkpoint) -> None:
        if checkpoint.number == 1:
            left.append(checkpoint)
            raise Killed

    with pytest.raises(Killed):
        await train(corpus, on_checkpoint=kill_between_two_parts)
    start = left[0].part.start
    assert start is not None
    learnt = corpus.training.part(start).learnt[0]
    corpus.delete(corpus.read([learnt])[learnt].source.document)

    outcome = await train(corpus)

    assert (outcome.end, outcome.restarts, outcome.adapter.not_learnt) == (End.LEARNT, 1, 0)
    status = corpus.training.status()
    assert (status.reason, status.invalid) == (None, ())
