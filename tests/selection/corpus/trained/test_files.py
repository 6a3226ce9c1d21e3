"""Files of a corpus's adapter: replaced atomically, and never used if anything is damaged."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.trained.files import Checkpoint
from selection.corpus.trained.manifest import CorpusAdapterInfo, Snapshot, TrainedPart
from selection.corpus.trained.merge import merged
from selection.embedding import Embedder
from selection.errors import CorpusError
from tests.selection.brute_force import add
from tests.selection.trained_helpers import SETTINGS, SHAPE, found, refusal, train, weights

_REPOSITORY = Path(__file__).resolve().parents[4]
_CHECKPOINT = Checkpoint(
    Snapshot(3, "tokens", None), {"part": 1, "loss": [2.5, 1.25]}, {"weights": weights(9)}, (1, 2)
)


@pytest.fixture
def corpus(corpora: Path, words: Embedder) -> Iterator[Corpus]:
    """A corpus of three documents, whose adapter has learnt them."""
    made = Corpus.create(corpora, "notes", words, "tokens")
    for number in range(3):
        add(made, words, f"document {number}", f"word{number} is here", f"word{number} again")
    train(made, seed=1)
    yield made
    made.close()


def reopened(corpus: Corpus) -> Corpus:
    """The corpus as another process sees it."""
    return Corpus.open(corpus.folder.parent, corpus.name)


def files_of(corpus: Corpus) -> list[Path]:
    """The adapter's files, except for the lock."""
    files = [file for file in (corpus.folder / "trained").rglob("*") if file.is_file()]
    return sorted(file for file in files if file.suffix != ".lock")


def test_a_saved_adapter_is_found_as_it_was_trained(corpus: Corpus) -> None:
    other = reopened(corpus)
    start = found(other)

    assert (start.documents, start.sequences, start.not_learnt) == (3, 6, 0)
    assert start.parts == ((start.name, 1.0),)
    read = other.trained.weights(start)
    assert read.weights == weights(1)
    assert (read.rank, read.scale_numerator, read.targets) == (2, 4.0, ("q_proj", "v_proj"))
    part = other.training.part(start.name)
    assert (part.weights, part.moments, part.steps) == (weights(1), b"moments of 1", 6)
    assert part.learnt == (1, 2, 3, 4, 5, 6)
    other.close()


def test_requests_use_a_part_scaled_and_a_training_goes_on_from_it_as_it_was(
    corpus: Corpus,
) -> None:
    plan = corpus.training.plan(SHAPE, fresh=True)
    learnt = (*plan.parts[0].ids, *plan.parts[0].held_out)
    part = TrainedPart(weights(2), learnt, plan.snapshot, scaling=0.7)
    name = corpus.training.save_part(SETTINGS, part, plan.parts[0].replaces).name

    other = reopened(corpus)

    assert other.trained.weights(found(other)).weights == merged([(weights(2), 1.0, 0.7)])
    assert other.training.part(name).weights == weights(2)
    other.close()


def test_a_manifest_of_an_earlier_version_has_no_scaling(corpus: Corpus) -> None:
    info = corpus.training.status().info
    assert info is not None
    fields = json.loads(json.dumps(info.as_dict()))
    del fields["parts"][0]["scaling"]

    assert CorpusAdapterInfo.from_dict(fields) == info


@pytest.mark.parametrize("damage", ["flip", "truncate", "lose"])
def test_damage_of_any_file_is_found(corpus: Corpus, damage: str) -> None:
    draw = random.Random(damage)
    files = files_of(corpus)
    assert {file.suffix for file in files} == {".json", ".safetensors", ".npy", ".moments"}

    for file in files * (1 if damage == "lose" else 30):
        # Arrange: one byte is changed, or the file ends early or is gone.
        intact = file.read_bytes()
        if damage == "flip":
            damaged = bytearray(intact)
            damaged[draw.randrange(len(intact))] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
        elif damage == "truncate":
            file.write_bytes(intact[: draw.randrange(len(intact))])
        else:
            file.unlink()

        # Act and assert: nothing is read from it, and the reason is told.
        other = reopened(corpus)
        result = other.trained.start(SHAPE, None)
        assert result is not None
        if file.suffix in (".json", ".npy"):
            gone = damage == "lose" and file.suffix == ".json"
            expected = "has no adapter" if gone else "adapter is damaged"
            assert result.reason == f"the corpus's {expected}".replace("corpus's has", "corpus has")
        else:
            assert result.start is not None
            with pytest.raises(CorpusError, match="has a damaged adapter, which is not used"):
                other.training.part(result.start.name)
            if file.suffix == ".safetensors":
                with pytest.raises(CorpusError, match="has a damaged adapter"):
                    other.trained.weights(result.start)
                assert refusal(other) == "the corpus's adapter is damaged"
                assert "adapter is damaged" in str(other.training.status(check_weights=True))
        other.close()
        # Training makes it whole again, also where no request has found the damage.
        other = reopened(corpus)
        assert other.training.plan(SHAPE).sequences == 6
        assert other.training.status(check_weights=True).learnt == 0
        other.close()
        file.write_bytes(intact)
    other = reopened(corpus)
    assert other.training.status(check_weights=True).learnt == 6
    other.close()


def test_replacing_an_adapter_leaves_no_files_of_the_old_one(corpus: Corpus) -> None:
    (corpus.folder / "trained" / "corpus-of-a-killed-process.npy").touch()
    (corpus.folder / "trained" / "adapter.json.half").touch()

    (part,) = train(corpus, seed=2, fresh=True)

    kinds = ("moments", "npy", "safetensors")
    names = ["adapter.json", *(f"{part.name}.{kind}" for kind in kinds)]
    assert [file.name for file in files_of(corpus)] == names
    assert corpus.trained.weights(found(corpus)).weights == weights(2)


def test_weights_of_a_replaced_adapter_are_refused(corpus: Corpus) -> None:
    other = reopened(corpus)
    before = found(other)
    train(corpus, seed=2, fresh=True)

    with pytest.raises(CorpusError, match="'notes' has another adapter since it was looked up"):
        other.trained.weights(before)

    assert found(other).name != before.name
    other.close()


def test_an_adapter_that_cannot_be_saved_leaves_the_old_one(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: the disk is full at one flush after the other.
    before, real = files_of(corpus), os.fsync
    for flushes in range(5):
        left = [flushes]

        def fsync(descriptor: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(CorpusError, match="cannot be saved: No space left on device"):
            train(corpus, seed=2, fresh=True)
        monkeypatch.undo()

        other = reopened(corpus)
        assert other.trained.weights(found(other)).weights == weights(1)
        other.close()
    train(corpus, seed=3, fresh=True)
    assert len(files_of(corpus)) == len(before)


def test_a_checkpoint_is_read_as_it_was_saved(corpus: Corpus) -> None:
    assert corpus.training.load_checkpoint() is None
    corpus.training.save_checkpoint(_CHECKPOINT)
    corpus.training.save_checkpoint(_CHECKPOINT)

    other = reopened(corpus)
    assert other.training.load_checkpoint() == _CHECKPOINT
    assert len(list((corpus.folder / "trained").glob("checkpoint*"))) == 2
    # The adapter stays beside it, and it beside the adapter.
    assert other.trained.weights(found(other)).weights == weights(1)
    train(other, seed=2, fresh=True)
    assert other.training.load_checkpoint() == _CHECKPOINT
    other.training.clear_checkpoint()
    assert corpus.training.load_checkpoint() is None
    assert not list((corpus.folder / "trained").glob("checkpoint*"))
    other.close()


def test_a_damaged_checkpoint_is_not_continued(corpus: Corpus) -> None:
    corpus.training.save_checkpoint(_CHECKPOINT)
    draw = random.Random(1)
    folder = corpus.folder / "trained"
    for file in [*folder.glob("checkpoint*/*"), folder / "checkpoint.json"] * 40:
        intact = file.read_bytes()
        damaged = bytearray(intact)
        damaged[draw.randrange(len(intact))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)

        assert corpus.training.load_checkpoint() in (None, _CHECKPOINT)
        if file.suffix != ".json":
            assert corpus.training.load_checkpoint() is None
        file.write_bytes(intact)


@pytest.mark.parametrize("change", ["delete", "replace", "retokenize"])
def test_a_checkpoint_that_knows_what_was_deleted_is_not_continued(
    corpus: Corpus, words: Embedder, change: str
) -> None:
    corpus.training.save_checkpoint(_CHECKPOINT)
    add(corpus, words, "another", "word7 is here")
    corpus.delete("document 2")
    assert corpus.training.load_checkpoint() == _CHECKPOINT

    if change == "delete":
        corpus.delete("document 0")
    elif change == "replace":
        add(corpus, words, "document 0", "word0 is here")
    else:
        corpus.retokenization.run("others", "none", lambda rows: [((1, 2), None)] * len(rows), 99)

    assert corpus.training.load_checkpoint() is None


def test_a_record_of_the_training_is_kept_until_it_is_forgotten(corpus: Corpus) -> None:
    assert corpus.training.recorded() is None
    corpus.training.record({"status": "queued", "at": 12.5})
    corpus.training.record({"status": "completed", "at": 13.0})

    other = reopened(corpus)
    assert other.training.recorded() == {"status": "completed", "at": 13.0}
    file = corpus.folder / "trained" / "training.json"
    file.write_bytes(file.read_bytes().replace(b"13", b"14"))
    assert other.training.recorded() is None
    other.training.record(None)
    assert not file.exists()
    other.close()


def test_one_process_trains_a_corpus_at_a_time(corpus: Corpus) -> None:
    other = reopened(corpus)
    with (
        corpus.training.lock(),
        pytest.raises(CorpusError, match="is being trained by another process"),
        other.training.lock(),
    ):
        pass

    with other.training.lock():
        pass
    other.close()


def test_removing_the_adapter_leaves_the_corpus(corpus: Corpus) -> None:
    corpus.training.save_checkpoint(_CHECKPOINT)

    corpus.training.remove()

    assert not files_of(corpus)
    assert refusal(corpus) == "the corpus has no adapter"
    assert str(corpus.training.status()) == "none"
    assert corpus.counts() == (3, 6)


def test_removing_a_corpus_removes_its_adapter(corpus: Corpus) -> None:
    folder = corpus.folder
    corpus.training.save_checkpoint(_CHECKPOINT)

    corpus.remove()

    assert not folder.exists()


def test_the_adapter_of_a_copied_folder_is_refused(corpus: Corpus, words: Embedder) -> None:
    other = Corpus.create(corpus.folder.parent, "other", words, "tokens")
    add(other, words, "document 0", *(f"word{i}" for i in range(6)))
    shutil.copytree(corpus.folder / "trained", other.folder / "trained")

    assert refusal(other) == "the adapter beside the corpus is of another corpus"
    other.close()


# Saves adapters and checkpoints whose bytes all tell the same number, until it is killed.
_SAVE_REPEATEDLY = """
import itertools, sys
from dataclasses import replace
from pathlib import Path
from selection.corpus.corpus import Corpus
from selection.corpus.trained.files import Checkpoint
from selection.corpus.trained.manifest import TrainedPart
from tests.selection.trained_helpers import SETTINGS, SHAPE, weights

corpus = Corpus.open(Path(sys.argv[1]), "notes")
with corpus.training.lock():
    for number in itertools.count():
        plan = corpus.training.plan(SHAPE, fresh=True)
        part = TrainedPart(
            weights(number % 7), plan.parts[0].ids, plan.snapshot, bytes([number % 7]), number
        )
        corpus.training.save_part(SETTINGS, part, plan.parts[0].replaces)
        files = {"one": bytes([number % 7]) * 5000, "two": bytes([number % 7]) * 5000}
        corpus.training.save_checkpoint(Checkpoint(plan.snapshot, {"n": number % 7}, files, (1,)))
        print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_adapter(corpus: Corpus) -> None:
    draw = random.Random(5)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_REPEATEDLY, str(corpus.folder.parent)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )
        assert process.stdout is not None
        for _ in range(draw.randint(1, 4)):
            process.stdout.readline()
        process.kill()
        process.communicate()

        other = reopened(corpus)
        with other.training.lock():
            part = other.training.part(found(other).name)
            assert part.weights == weights(part.moments[0])
            checkpoint = other.training.load_checkpoint()
            assert checkpoint is not None
            number = checkpoint.progress["n"]
            assert set(checkpoint.files["one"]) == set(checkpoint.files["two"]) == {number}
        other.close()
