"""The intake: whatever happens while a file is read, in the end it is in the corpus as a whole or
not at all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selection.corpus.corpus import Corpus
from selection.embedding import Embedder
from selection.ingest import chunking
from selection.library import ingest_worker
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from selection.library.uploads import MissingError
from tests.selection.libraries import (
    ALL,
    CATS,
    SHIPS,
    HeldEmbedder,
    attached,
    documents,
    long_text,
    settled,
)

_REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_file_detached_while_it_is_read_never_comes_back(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id
    after = library.upload("cats.md", CATS.encode()).id

    with held.held():
        library.attach("notes", AttachmentRequest(file))
        library.attach("notes", AttachmentRequest(after))
        assert held.waiting.wait(30)
        library.detach("notes", file)
    settled(library, "notes", after)

    assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]
    assert [each.file.id for each in library.files("notes", ALL).items] == [after]


def test_what_another_does_not_read_is_taken_over(
    opened: Callable[..., Library], corpora: Path, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_worker, "_LOOK_SECONDS", 0.05)
    held = HeldEmbedder(words)
    gone, there = opened(held), opened(words)
    gone.create_store("notes")
    files = [gone.upload(f"{number}.md", CATS.encode()).id for number in range(3)]

    with held.held():
        for file in files:
            gone.attach("notes", AttachmentRequest(file))
        for file in files:
            settled(there, "notes", file)

    assert set(documents(corpora, "notes")) == {
        f"{file}/{number}.md" for number, file in enumerate(files)
    }


def test_a_file_deleted_while_it_is_read_never_comes_back(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id

    with held.held():
        library.attach("notes", AttachmentRequest(file))
        assert held.waiting.wait(30)
        library.delete_upload(file)
    after = attached(library, "notes", "cats.md", CATS)

    assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]


class HeldTokenizer:
    """A real tokenizer that waits at its third window, and tells that it does."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.free, self.waiting = threading.Event(), threading.Event()
        self.windows = 0
        self._tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        self.windows += 1
        if self.windows == 3:
            self.waiting.set()
            assert self.free.wait(30)
        return self._tokenizer(text, **options)


@pytest.mark.parametrize("how", ["deleted", "detached", "closed"])
def test_a_long_text_is_given_up_within_a_window(
    corpora: Path, words: Embedder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(chunking, "WINDOW", 2000)
    monkeypatch.setattr(ingest_worker, "_ASK_SECONDS", 0.0)
    held = HeldTokenizer(tokenizer)
    library = Library(corpora, words, held, corpora.parent / "files")
    library.create_store("notes")
    file = library.upload("long.txt", long_text(4000).encode()).id

    library.attach("notes", AttachmentRequest(file))
    assert held.waiting.wait(30)
    if how == "deleted":
        library.delete_upload(file)
    elif how == "detached":
        library.detach("notes", file)
    closing = threading.Thread(target=library.close)
    if how == "closed":
        closing.start()
        while not library._intake._closed.is_set():
            time.sleep(0.001)
    held.free.set()
    if how != "closed":
        after = attached(library, "notes", "cats.md", CATS)
        assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]
        closing.start()
    closing.join()

    assert held.windows == (3 if how == "closed" else 4)


def test_names_that_an_earlier_version_gave_to_rows_go_when_the_file_is_read_anew(
    library: Library, corpora: Path
) -> None:
    library.create_store("notes")
    rows = '{"id": 2, "text": "whales are mammals"}\n{"text": "trains run on rails"}\n'
    file = attached(library, "notes", "rows.jsonl", rows)
    name = f"{file}/rows.jsonl"
    corpus = Corpus.open(corpora, "notes")
    with corpus._store.writing():
        corpus._store._db.execute(
            "UPDATE documents SET name = ? WHERE name = ?", (f"{name}#two", f'{name}#"2"')
        )
    corpus.close()

    library.modify_file("notes", file, {"team": "all"})
    settled(library, "notes", file)

    assert documents(corpora, "notes") == {
        f'{name}#"2"': {"team": "all"},
        f"{name}#2": {"team": "all"},
    }


def test_one_null_loses_no_table(library: Library, corpora: Path) -> None:
    library.create_store("notes")
    rows = '{"text":"a few words"}\n{"text":"and more words","metadata":{"lang":null}}\n{"text":null}\n'

    file = attached(library, "notes", "rows.jsonl", rows)

    found = library.file("notes", file).file
    assert found.status == "completed"
    assert found.documents == {"added": 2, "replaced": 0, "unchanged": 0, "empty": 0, "skipped": 1}
    assert documents(corpora, "notes") == {f"{file}/rows.jsonl#1": {}, f"{file}/rows.jsonl#2": {}}

    library.modify_file("notes", file, {"team": "all"})
    again = settled(library, "notes", file)
    assert again.documents == {"added": 0, "replaced": 2, "unchanged": 0, "empty": 0, "skipped": 1}


def test_a_table_with_a_bad_row_far_down_leaves_nothing_at_any_time(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    class Refusing(HeldEmbedder):
        def embed(self, texts: Any) -> Any:
            raise AssertionError("nothing of the table may be embedded")

    library = opened(Refusing(words))
    library.create_store("notes")
    rows = "".join(f'{{"text": "Row {i} is about the number {i * i}."}}\n' for i in range(500))

    file = attached(library, "notes", "rows.jsonl", rows + '{"text": 5}\n')

    found = library.file("notes", file).file
    assert found.problem is not None
    assert (found.status, found.problem.code) == ("failed", "invalid_file")
    assert (
        "rows.jsonl, row 501: expected a string in the field `text`, not a number"
        in found.problem.message
    )


def test_a_store_deleted_while_it_is_fed_is_gone(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id

    with held.held():
        library.attach("notes", AttachmentRequest(file))
        assert held.waiting.wait(30)
        library.delete_store("notes")
    library.create_store("notes")
    after = attached(library, "notes", "cats.md", CATS)

    assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]
    assert os.listdir(corpora) == ["notes"]


def test_attributes_changed_while_a_file_is_read_are_the_ones_it_ends_with(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    library.create_store("notes")
    file = library.upload("cats.md", CATS.encode()).id

    with held.held():
        library.attach("notes", AttachmentRequest(file, {"version": 1}))
        assert held.waiting.wait(30)
        library.modify_file("notes", file, {"version": 2})
    settled(library, "notes", file)

    assert documents(corpora, "notes") == {f"{file}/cats.md": {"version": 2}}


def test_a_batch_is_attached_as_one_and_what_is_left_of_it_can_be_cancelled(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    library.create_store("notes")
    alone = attached(library, "notes", "alone.md", SHIPS)
    files = [library.upload(f"{i}.txt", long_text(40, f"word{i}").encode()).id for i in range(3)]

    with held.held():
        batch = library.attach_batch("notes", [AttachmentRequest(file) for file in files])
        assert held.waiting.wait(30)
        cancelled = library.cancel_batch("notes", batch.id)
    after = library.attach_batch("notes", [AttachmentRequest(file) for file in files[:2]])
    for file in files[:2]:
        settled(library, "notes", file)

    assert (batch.counts["in_progress"], sum(batch.counts.values())) == (3, 3)
    assert (cancelled.counts["cancelled"], cancelled.counts["in_progress"]) == (3, 0)
    assert library.batch("notes", after.id).counts["completed"] == 2
    assert [each.file.id for each in library.files("notes", ALL, batch=after.id).items] == files[:2]
    assert [
        each.file.id for each in library.files("notes", ALL, status="cancelled").items
    ] == files[2:]
    assert set(documents(corpora, "notes")) == {
        f"{alone}/alone.md",
        f"{files[0]}/0.txt",
        f"{files[1]}/1.txt",
    }
    with pytest.raises(MissingError, match="vsfb_none"):
        library.files("notes", ALL, batch="vsfb_none")


def test_a_batch_with_a_file_that_is_not_there_attaches_none(library: Library) -> None:
    library.create_store("notes")
    file = library.upload("cats.md", CATS.encode()).id

    with pytest.raises(MissingError):
        library.attach_batch(
            "notes", [AttachmentRequest(file), AttachmentRequest("file-" + 24 * "0")]
        )

    assert library.files("notes", ALL).items == ()


def test_what_closing_broke_off_is_read_when_the_library_is_opened_again(
    opened: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id
    with held.held():
        library.attach("notes", AttachmentRequest(file))
        assert held.waiting.wait(30)
        closing = threading.Thread(target=library.close)
        closing.start()
        time.sleep(0.05)
    closing.join()
    again = opened()
    broken_off = again.file("notes", file).file

    done = settled(again, "notes", file)

    assert broken_off.status in ("in_progress", "completed")
    assert done.status == "completed"
    assert list(documents(corpora, "notes")) == [f"{file}/long.txt"]


_KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from transformers import PreTrainedTokenizerFast
from selection.library.records import AttachmentRequest
from selection.library.library import Library

class Slow:
    name, revision, dimension = "words", "1", 16
    def embed(self, texts):
        time.sleep(0.02)
        print("embedding", flush=True)
        return np.full((len(texts), 16), 0.25, np.float32)

root = Path(sys.argv[1])
library = Library(root, Slow(), PreTrainedTokenizerFast.from_pretrained(sys.argv[2]), root.parent / "files")
if not list(root.iterdir()):
    library.create_store("notes")
    rows = "\\n".join('{"text": "Row %d speaks of itself and of %d."}' % (i, i * i) for i in range(500))
    file = library.upload("rows.jsonl", rows.encode())
    library.attach("notes", AttachmentRequest(file.id, {"of": "rows"}))
time.sleep(60)
"""


def test_a_file_that_kill_9_broke_off_again_and_again_is_read_in_the_end(
    opened: Callable[..., Library], corpora: Path, nano: str
) -> None:
    for parts in (12, 20, 9):
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(corpora), nano],
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(parts):
            assert child.stdout.readline() == "embedding\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    before = len(documents(corpora, "notes"))

    library = opened()
    (file,) = [each.file.id for each in library.files("notes", ALL).items]
    done = settled(library, "notes", file)

    assert 0 < before < 500
    assert done.status == "completed"
    assert documents(corpora, "notes") == {
        f"{file}/rows.jsonl#{i}": {"of": "rows"} for i in range(1, 501)
    }
    assert len(library.texts("notes", file)) == 500
    assert library.content(file).count(b"\n") == 499
