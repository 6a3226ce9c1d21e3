"""`mayfly corpus add`: what it says it did is what it did, and what it left out is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import selection.embedding
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Embeddings
from serving.cli import corpus_add, main

Add = Callable[..., "Ran"]


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def add(
    work: Path, words: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Add:
    """Runs `mayfly corpus add notes ...` with a tiny embedder."""

    def run(*arguments: str | Path, embedder: Embedder = words) -> Ran:
        monkeypatch.setattr(selection.embedding, "load_embedder", lambda *_, **__: embedder)
        # The variables are for a process that loads torch, which this one has long done.
        monkeypatch.setattr(main, "set_environment", lambda cores: None)
        command = [
            "mayfly",
            "corpus",
            "add",
            "notes",
            *map(str, arguments),
            "--home",
            str(work.parent / "home"),
        ]
        monkeypatch.setattr(sys, "argv", command)
        try:
            main.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return run


def held(work: Path) -> list[str]:
    """Names of the documents of the corpus."""
    corpus = Corpus.open(work.parent / "home" / "corpora", "notes")
    names = [entry.name for entry in corpus.documents()]
    corpus.close()
    return names


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_two_files_of_one_name_are_two_documents(work: Path, add: Add) -> None:
    write(work / "a/api/README.md", "# whales\n")
    write(work / "b/api/README.md", "# trains\n")

    ran = add("a/api", "b/api")

    assert (ran.status, ran.out) == (0, "corpus notes: added 2 documents, 2 sequences\n")
    assert held(work) == ["a/api/README.md", "b/api/README.md"]


def test_counts_say_what_happened(work: Path, add: Add) -> None:
    for name in ("same", "other", "empty"):
        write(work / f"{name}.md", f"A text that is called {name}.\n")
    add(".")
    write(work / "other.md", "Now it says something else.\n")
    write(work / "empty.md", "")
    write(work / "new.jsonl", '{"text": "whales are mammals"}\n{"text": null}\n')
    write(work / "bad.jsonl", '{"text": "fine words"}\n{"text": 5}\n')
    write(work / "x.bin", "")
    write(work / "y.docx", "")

    ran = add(".")

    assert ran.status == 0
    assert ran.out == (
        "corpus notes: added 1 documents, replaced 1, 2 sequences; 1 were there already; 1 were empty; "
        "1 rows had no text; 1 could not be read\n"
    )
    assert (
        "skipped: bad.jsonl, row 2: expected a string in the field `text`, not a number\n"
        in ran.err
    )
    assert "left out: 1 .bin, 1 .docx\n" in ran.err
    assert held(work) == ["new.jsonl#1", "other.md", "same.md"]


def test_an_id_that_is_there_twice_is_an_error_with_both_rows(work: Path, add: Add) -> None:
    rows = [
        '{"id":2,"text":"whales are mammals"}',
        '{"text":"trains run"}',
        '{"id":"2","text":"bees make honey"}',
    ]
    write(work / "m.jsonl", "\n".join(rows))

    ran = add("m.jsonl")

    assert (ran.status, held(work)) == (1, [])
    assert "m.jsonl, rows 1 and 3 have the same `id` '2'" in ran.err


def test_two_files_that_would_be_called_the_same_are_refused_before_anything_is_embedded(
    work: Path, add: Add
) -> None:
    write(work / "api/a.md", "Whales are mammals.")
    elsewhere = write(work.parent / "elsewhere/api/a.md", "Trains run on rails.")

    ran = add("api", elsewhere.parent)

    assert ran.status == 1
    assert f"{work}/api/a.md and {elsewhere} would both be named 'api/a.md'" in ran.err
    assert not (work.parent / "home").exists()


@pytest.mark.parametrize("name", ["a.docx", "a.bin", "nothing"])
def test_where_nothing_is_added_the_status_tells(work: Path, add: Add, name: str) -> None:
    (work / "folder").mkdir()
    if name != "nothing":
        write(work / "folder" / name, "content")

    ran = add("folder")

    assert (ran.status, ran.out) == (1, "corpus notes: added 0 documents, 0 sequences\n")
    assert ("left out: 1 ." in ran.err) == (name != "nothing")


def test_an_office_file_that_is_named_is_told_not_to_be_text(work: Path, add: Add) -> None:
    ran = add(write(work / "report[1].docx", "PK"))

    assert ran.status == 1
    assert (
        "skipped: report[1].docx is not text, and .docx files are not supported: convert it to text first\n"
        in ran.err
    )


def test_what_an_earlier_version_added_is_there_already(
    work: Path, add: Add, words: Embedder, tokenizer: object
) -> None:
    from selection.ingest.ingest import Document, ingest, tokenizer_digest

    write(work / "src/a.md", "Whales are mammals.")
    write(work / "src/b.md", "Trains run on rails.")
    corpus = Corpus.create(
        work.parent / "home" / "corpora", "notes", words, tokenizer_digest(tokenizer)
    )
    earlier = [Document("a.md", "Whales are mammals."), Document("b.md", "Trains ran on rails.")]
    ingest(corpus, earlier, words, tokenizer)
    corpus.close()

    ran = add("src/a.md", "src/b.md")

    assert ran.out == "corpus notes: added 1 documents, 1 sequences; 1 were there already\n"
    assert (
        "note: 1 documents are still there under the names that earlier versions gave them"
        in ran.err
    )
    assert held(work) == ["a.md", "b.md", "src/b.md"]


class Interrupting:
    """A real embedder that is interrupted at its third batch."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.windows = embedder.windows
        self._embedder, self._left = embedder, 3

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return self._embedder.embed(texts)


def test_an_interrupted_run_says_what_was_kept_and_goes_on(
    work: Path, add: Add, words: Embedder
) -> None:
    for i in range(200):
        write(work / "texts" / f"{i:03}.md", f"Text {i} is about the number {i * i}.")

    broken = add("texts", embedder=Interrupting(words))
    kept = len(held(work))
    again = add("texts")

    assert broken.status == 130
    assert 0 < kept < 200
    assert (
        f"interrupted: {kept} documents with {kept} sequences were added and are kept; the same"
        in broken.err
    )
    assert again.out == (
        f"corpus notes: added {200 - kept} documents, {200 - kept} sequences; {kept} were there already\n"
    )


def test_on_a_pipe_it_says_how_far_it_is(
    work: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_add, "EVERY_SECONDS", 0.0)
    for i in range(100):
        write(work / f"{i:03}.md", f"Text {i} is about the number {i * i}.")

    ran = add(".")

    lines = ran.err.splitlines()
    assert lines[0] == "loading the embedder and the tokenizer ..."
    assert any(line.startswith("adding: 64 of 100 files, ") for line in lines)
    assert lines[-1].startswith("adding: 100 of 100 files, 0.003 of 0.003 MB, 100 sequences, ")
    assert lines[-1].endswith("a second, about 0 s left")
