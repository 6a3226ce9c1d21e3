"""`mayfly corpus add`: its summary is what it did, and it reports what it left out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import selection.embedding
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Embeddings
from selection.ingest.files import SourceFile
from serving.cli import main, progress
from serving.cli.corpus.add import _show_progress

Add = Callable[..., "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def add(
    work: Path, words: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Add:
    """Runs `mayfly corpus add notes ...` with a tiny embedder."""

    def run(*arguments: str | Path, embedder: Embedder = words) -> Ended:
        monkeypatch.setattr(selection.embedding, "load_embedder", lambda *_, **__: embedder)
        # This process has loaded torch already, and its environment must not change.
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
        printed = capsys.readouterr()
        return Ended(status, printed.out, printed.err)

    return run


def document_names(work: Path) -> list[str]:
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

    ended = add("a/api", "b/api")

    assert (ended.status, ended.out) == (0, "corpus notes: added 2 documents, 2 sequences\n")
    assert document_names(work) == ["a/api/README.md", "b/api/README.md"]


def test_the_summary_counts_what_happened(work: Path, add: Add) -> None:
    for name in ("same", "other", "empty"):
        write(work / f"{name}.md", f"A text that is called {name}.\n")
    add(".")
    write(work / "other.md", "Now it says something else.\n")
    write(work / "empty.md", "")
    write(work / "new.jsonl", '{"text": "whales are mammals"}\n{"text": null}\n')
    write(work / "bad.jsonl", '{"text": "fine words"}\n{"text": 5}\n')
    write(work / "x.bin", "")
    write(work / "y.docx", "")

    ended = add(".")

    assert ended.status == 0
    assert ended.out == (
        "corpus notes: added 1 documents, replaced 1, 2 sequences; 1 were already there; "
        "1 were empty; 1 rows had no text; 1 could not be read\n"
    )
    assert (
        "skipped: bad.jsonl, row 2: expected a string in the field `text`, not a number\n"
        in ended.err
    )
    assert "left out: 1 .bin, 1 .docx\n" in ended.err
    assert document_names(work) == ["new.jsonl#1", "other.md", "same.md"]


def test_examples_are_added_up_to_the_context_of_the_model(work: Path, add: Add) -> None:
    row = '{"prompt": "Who sails?", "completion": "%s"}\n'
    write(work / "fine.jsonl", row % "The captain." + '{"text": "Ships sail the seas."}\n')
    write(work / "long.jsonl", row % "Nobody." + row % ("word " * 5000))

    ended = add(".")

    assert ended.out == "corpus notes: added 2 documents, 2 sequences; 1 could not be read\n"
    assert "skipped: long.jsonl, row 2: the example has 5,0" in ended.err
    assert "split: shorten it, or leave it out" in ended.err
    assert document_names(work) == ["fine.jsonl#1", "fine.jsonl#2"]


def test_examples_are_in_the_chat_template_that_is_given(work: Path, add: Add) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    write(work / "chat.jinja", template)
    write(work / "a.jsonl", '{"prompt": "Who sails?", "completion": "The captain."}\n')

    refused = add("a.jsonl", "--chat-template", "chat.jinja")
    write(work / "chat.jinja", template + "{% if add_generation_prompt %}[{% endif %}")
    added = add("a.jsonl", "--chat-template", "chat.jinja")
    other = add("a.jsonl")

    assert "a.jsonl, row 1: the chat template has no generation prompt" in refused.err
    assert added.out == "corpus notes: added 1 documents, 1 sequences\n"
    assert "contains examples in another chat template" in other.err
    assert (refused.status, added.status, other.status) == (1, 0, 1)


def test_a_duplicate_id_is_an_error_that_names_both_rows(work: Path, add: Add) -> None:
    rows = [
        '{"id":2,"text":"whales are mammals"}',
        '{"text":"trains run"}',
        '{"id":"2","text":"bees make honey"}',
    ]
    write(work / "m.jsonl", "\n".join(rows))

    ended = add("m.jsonl")

    assert (ended.status, document_names(work)) == (1, [])
    assert "m.jsonl, rows 1 and 3 have the same `id` '2'" in ended.err


def test_two_files_with_the_same_name_are_an_error_before_anything_is_embedded(
    work: Path, add: Add
) -> None:
    write(work / "api/a.md", "Whales are mammals.")
    elsewhere = write(work.parent / "elsewhere/api/a.md", "Trains run on rails.")

    ended = add("api", elsewhere.parent)

    assert ended.status == 1
    assert f"{work}/api/a.md and {elsewhere} would both be named 'api/a.md'" in ended.err
    assert not (work.parent / "home").exists()


@pytest.mark.parametrize("name", ["a.docx", "a.bin", "nothing"])
def test_the_status_is_1_if_nothing_was_added(work: Path, add: Add, name: str) -> None:
    (work / "folder").mkdir()
    if name != "nothing":
        write(work / "folder" / name, "content")

    ended = add("folder")

    assert (ended.status, ended.out) == (1, "corpus notes: added 0 documents, 0 sequences\n")
    assert ("left out: 1 ." in ended.err) == (name != "nothing")


def test_an_office_file_is_reported_as_not_being_text(work: Path, add: Add) -> None:
    ended = add(write(work / "report[1].docx", "PK"))

    assert ended.status == 1
    assert (
        "skipped: report[1].docx is not text, and .docx files are not supported: "
        "convert it to text first\n" in ended.err
    )


def test_documents_under_the_names_of_an_earlier_version_are_recognised(
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

    ended = add("src/a.md", "src/b.md")

    assert ended.out == "corpus notes: added 1 documents, 1 sequences; 1 were already there\n"
    assert (
        "note: the corpus still has 1 documents under names that earlier versions of Mayfly"
        in ended.err
    )
    assert document_names(work) == ["a.md", "b.md", "src/b.md"]


class Interrupting:
    """A real embedder that raises KeyboardInterrupt at its third batch."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.windows = embedder.windows
        self._embedder, self._batches_left = embedder, 3

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self._batches_left -= 1
        if not self._batches_left:
            raise KeyboardInterrupt
        return self._embedder.embed(texts)


def test_an_interrupted_run_reports_what_was_kept_and_resumes(
    work: Path, add: Add, words: Embedder
) -> None:
    for i in range(200):
        write(work / "texts" / f"{i:03}.md", f"Text {i} is about the number {i * i}.")

    interrupted = add("texts", embedder=Interrupting(words))
    kept = len(document_names(work))
    again = add("texts")

    assert interrupted.status == 130
    assert 0 < kept < 200
    assert (
        f"interrupted: {kept} documents with {kept} sequences were added and are kept; "
        in interrupted.err
    )
    assert again.out == (
        f"corpus notes: added {200 - kept} documents, {200 - kept} sequences; "
        f"{kept} were already there\n"
    )


def test_progress_is_printed_on_a_pipe(
    work: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    for i in range(100):
        write(work / f"{i:03}.md", f"Text {i} is about the number {i * i}.")

    ended = add(".")

    lines = ended.err.splitlines()
    assert lines[0] == "loading the embedder and the tokenizer ..."
    assert any(line.startswith("adding: 64 of 100 files, ") for line in lines)
    assert lines[-1].startswith("adding: 100 of 100 files, 0.003 of 0.003 MB, 100 sequences, ")
    assert lines[-1].endswith("/s, about 0 s left")


def test_the_last_line_on_a_pipe_shows_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = SourceFile(tmp_path / "notes.md", "notes.md", "notes.md", 1_000_000)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)

    with _show_progress([file]) as shown:
        shown.open_file(file.bytes)
        monkeypatch.setattr(progress, "EVERY_SECONDS", 3600.0)
        shown.close_file()

    first, last = capsys.readouterr().err.splitlines()
    assert first == "adding: 0 of 1 files, 0.000 of 1.0 MB, 0 sequences"
    assert last == "adding: 1 of 1 files, 1.0 of 1.0 MB, 0 sequences"
