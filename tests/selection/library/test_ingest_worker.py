"""IngestWorker: whatever happens during ingestion, in the end a file is in the corpus completely or
not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.embedding import Embedder
from selection.errors import CorpusUnavailableError, MissingError
from selection.ingest import chunking
from selection.library import ingest_queue, ingest_worker
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from selection.location import DatabaseLocation
from selection.threaded_embedder import ThreadedEmbedder
from tests import postgres_server
from tests.selection.brute_force import database_of
from tests.selection.library_helpers import (
    ALL,
    CATS,
    SHIPS,
    PausableEmbedder,
    attach_and_wait,
    documents,
    long_text,
    wait_until_ingested,
)

_REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_file_detached_during_ingestion_stays_detached(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id
    after = library.upload("cats.md", CATS.encode()).id

    with embedder.paused():
        library.attach("notes", AttachmentRequest(file))
        library.attach("notes", AttachmentRequest(after))
        assert embedder.waiting.wait(30)
        library.detach("notes", file)
    wait_until_ingested(library, "notes", after)

    assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]
    assert [each.file.id for each in library.files("notes", ALL).items] == [after]


def test_files_of_an_inactive_process_are_taken_over(
    open_library: Callable[..., Library],
    corpora: Path,
    words: Embedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest_queue, "_TAKEOVER_SECONDS", 0.05)
    embedder = PausableEmbedder(words)
    inactive, active = open_library(embedder), open_library(words)
    inactive.create_store("notes")
    files = [inactive.upload(f"{number}.md", CATS.encode()).id for number in range(3)]

    with embedder.paused():
        for file in files:
            inactive.attach("notes", AttachmentRequest(file))
        for file in files:
            wait_until_ingested(active, "notes", file)

    assert set(documents(corpora, "notes")) == {
        f"{file}/{number}.md" for number, file in enumerate(files)
    }


def test_a_file_deleted_during_ingestion_stays_deleted(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id

    with embedder.paused():
        library.attach("notes", AttachmentRequest(file))
        assert embedder.waiting.wait(30)
        library.delete_upload(file)
    after = attach_and_wait(library, "notes", "cats.md", CATS)

    assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]


class PausableTokenizer:
    """A real tokenizer that waits at its third window; `waiting` is set when it does."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.chat_template = self.bos_token = self.eos_token = None
        self.resumed, self.waiting = threading.Event(), threading.Event()
        self.windows = 0
        self._tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        self.windows += 1
        if self.windows == 3:
            self.waiting.set()
            assert self.resumed.wait(30)
        return self._tokenizer(text, **options)


@pytest.mark.parametrize("event", ["deleted", "detached", "closed"])
def test_a_long_text_is_abandoned_within_a_window(
    corpora: Path, words: Embedder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    monkeypatch.setattr(chunking, "WINDOW", 2000)
    monkeypatch.setattr(ingest_worker, "_CHECK_SECONDS", 0.0)
    pausable = PausableTokenizer(tokenizer)
    library = Library(corpora, ThreadedEmbedder(lambda: words), pausable, corpora.parent / "files")
    library.create_store("notes")
    file = library.upload("long.txt", long_text(4000).encode()).id

    library.attach("notes", AttachmentRequest(file))
    assert pausable.waiting.wait(30)
    if event == "deleted":
        library.delete_upload(file)
    elif event == "detached":
        library.detach("notes", file)
    closing = threading.Thread(target=library.close)
    if event == "closed":
        closing.start()
        assert library._worker._closed.wait(30)
    pausable.resumed.set()
    if event != "closed":
        after = attach_and_wait(library, "notes", "cats.md", CATS)
        assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]
        closing.start()
    closing.join()

    assert pausable.windows == (3 if event == "closed" else 4)


def test_obsolete_names_of_rows_are_removed_at_the_next_ingestion(
    library: Library, corpora: Path
) -> None:
    library.create_store("notes")
    rows = '{"id": 2, "text": "whales are mammals"}\n{"text": "trains run on rails"}\n'
    file = attach_and_wait(library, "notes", "rows.jsonl", rows)
    name = f"{file}/rows.jsonl"
    corpus = Corpus.open(corpora, "notes")
    with database_of(corpus).writing():
        database_of(corpus).execute(
            "UPDATE documents SET name = ? WHERE name = ?", (f"{name}#two", f'{name}#"2"')
        )
    corpus.close()

    library.modify_file("notes", file, {"team": "all"})
    wait_until_ingested(library, "notes", file)

    assert documents(corpora, "notes") == {
        f'{name}#"2"': {"team": "all"},
        f"{name}#2": {"team": "all"},
    }


def test_a_null_does_not_fail_a_table(library: Library, corpora: Path) -> None:
    library.create_store("notes")
    rows = (
        '{"text":"a few words"}\n'
        '{"text":"and more words","metadata":{"lang":null}}\n'
        '{"text":null}\n'
    )

    file = attach_and_wait(library, "notes", "rows.jsonl", rows)

    found = library.file("notes", file).file
    assert found.status == "completed"
    assert found.documents == {"added": 2, "replaced": 0, "unchanged": 0, "empty": 0, "skipped": 1}
    assert documents(corpora, "notes") == {f"{file}/rows.jsonl#1": {}, f"{file}/rows.jsonl#2": {}}

    library.modify_file("notes", file, {"team": "all"})
    again = wait_until_ingested(library, "notes", file)
    assert again.documents == {"added": 0, "replaced": 2, "unchanged": 0, "empty": 0, "skipped": 1}


def test_a_table_with_an_invalid_last_row_embeds_nothing(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    class RefusingEmbedder(PausableEmbedder):
        def embed(self, texts: Any) -> Any:
            raise AssertionError("no row of the table may be embedded")

    library = open_library(RefusingEmbedder(words))
    library.create_store("notes")
    rows = "".join(f'{{"text": "Row {i} is about the number {i * i}."}}\n' for i in range(500))

    file = attach_and_wait(library, "notes", "rows.jsonl", rows + '{"text": 5}\n')

    found = library.file("notes", file).file
    assert found.problem is not None
    assert (found.status, found.problem.code) == ("failed", "invalid_file")
    assert (
        "rows.jsonl, row 501: expected a string in the field `text`, not a number"
        in found.problem.message
    )


def test_a_row_that_is_no_example_fails_its_file(library: Library, corpora: Path) -> None:
    library.create_store("notes")
    rows = '{"prompt": "Who?", "completion": "Me."}\n{"messages": [{"role": "user"}]}\n'

    file = attach_and_wait(library, "notes", "rows.jsonl", rows)

    found = library.file("notes", file).file
    assert found.problem is not None
    assert (found.status, found.problem.code) == ("failed", "invalid_file")
    assert "rows.jsonl, row 2: `messages`[0] has no `content`" in found.problem.message
    assert documents(corpora, "notes") == {}


def test_a_store_deleted_during_ingestion_stays_deleted(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id

    with embedder.paused():
        library.attach("notes", AttachmentRequest(file))
        assert embedder.waiting.wait(30)
        library.delete_store("notes")
    library.create_store("notes")
    after = attach_and_wait(library, "notes", "cats.md", CATS)

    assert list(documents(corpora, "notes")) == [f"{after}/cats.md"]
    assert os.listdir(corpora) == ["notes"]


def test_a_store_removed_by_another_process_during_ingestion_is_abandoned(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    class RecordingEmbedder(PausableEmbedder):
        texts: ClassVar[list[str]] = []

        def embed(self, texts: Any) -> Any:
            self.texts.extend(texts)
            return super().embed(texts)

    embedder = RecordingEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    library.create_store("others")
    file = library.upload("long.txt", long_text(4000).encode()).id

    with embedder.paused():
        library.attach("notes", AttachmentRequest(file))
        assert embedder.waiting.wait(30)
        Corpus.open(corpora, "notes").remove()
    attach_and_wait(library, "others", "cats.md", CATS)

    # A single batch of the removed store's texts was embedded, then the text of the other store.
    assert len(embedder.texts) == ingest_worker._EMBED_BATCH + 1
    assert list_corpora(corpora) == ["others"]


def test_attributes_changed_during_ingestion_take_effect(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    file = library.upload("cats.md", CATS.encode()).id

    with embedder.paused():
        library.attach("notes", AttachmentRequest(file, {"version": 1}))
        assert embedder.waiting.wait(30)
        library.modify_file("notes", file, {"version": 2})
    wait_until_ingested(library, "notes", file)

    assert documents(corpora, "notes") == {f"{file}/cats.md": {"version": 2}}


def test_a_batch_in_progress_can_be_cancelled_and_attached_again(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    alone = attach_and_wait(library, "notes", "alone.md", SHIPS)
    files = [library.upload(f"{i}.txt", long_text(40, f"word{i}").encode()).id for i in range(3)]

    with embedder.paused():
        batch = library.attach_batch("notes", [AttachmentRequest(file) for file in files])
        assert embedder.waiting.wait(30)
        cancelled = library.cancel_batch("notes", batch.id)
    after = library.attach_batch("notes", [AttachmentRequest(file) for file in files[:2]])
    for file in files[:2]:
        wait_until_ingested(library, "notes", file)

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


def test_a_file_whose_upload_is_gone_fails_without_a_claim_about_its_format(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    first, lost = (library.upload(f"{n}.md", CATS.encode()).id for n in range(2))

    with embedder.paused():
        library.attach("notes", AttachmentRequest(first))
        assert embedder.waiting.wait(30)
        library.attach("notes", AttachmentRequest(lost))
        (folder,) = corpora.parent.rglob(lost)
        shutil.rmtree(folder)

    problem = wait_until_ingested(library, "notes", lost).problem
    assert problem is not None
    assert (problem.code, problem.message) == ("server_error", f"there is no file {lost!r}")


def test_a_batch_with_a_missing_file_attaches_none(library: Library) -> None:
    library.create_store("notes")
    file = library.upload("cats.md", CATS.encode()).id

    with pytest.raises(MissingError):
        library.attach_batch(
            "notes", [AttachmentRequest(file), AttachmentRequest("file-" + 24 * "0")]
        )

    assert library.files("notes", ALL).items == ()


def test_a_file_interrupted_by_closing_is_ingested_after_reopening(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    library.create_store("notes")
    file = library.upload("long.txt", long_text(400).encode()).id
    with embedder.paused():
        library.attach("notes", AttachmentRequest(file))
        assert embedder.waiting.wait(30)
        closing = threading.Thread(target=library.close)
        closing.start()
        assert library._worker._closed.wait(30)
    closing.join()
    corpus = Corpus.open(corpora, "notes")
    interrupted = corpus.attachments.get(file)
    corpus.close()

    done = wait_until_ingested(open_library(), "notes", file)

    assert interrupted is not None
    assert interrupted.status == "in_progress"
    assert done.status == "completed"
    assert list(documents(corpora, "notes")) == [f"{file}/long.txt"]


_KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from transformers import PreTrainedTokenizerFast
from selection.library.records import AttachmentRequest
from selection.library.library import Library
from selection.threaded_embedder import ThreadedEmbedder

class Slow:
    name, revision, dimension = "words", "1", 16
    def embed(self, texts):
        time.sleep(0.02)
        print("embedding", flush=True)
        return np.full((len(texts), 16), 0.25, np.float32)

root = Path(sys.argv[1])
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
library = Library(root, ThreadedEmbedder(Slow), tokenizer, root.parent / "files")
if not list(root.iterdir()):
    library.create_store("notes")
    row = '{"text": "Row %d speaks of itself and of %d."}'
    rows = "\\n".join(row % (i, i * i) for i in range(500))
    file = library.upload("rows.jsonl", rows.encode())
    library.attach("notes", AttachmentRequest(file.id, {"of": "rows"}))
time.sleep(60)
"""


def test_a_file_interrupted_repeatedly_by_kill_9_is_ingested_in_the_end(
    open_library: Callable[..., Library], corpora: Path, nano: str
) -> None:
    for batches in (12, 20, 9):
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(corpora), nano],
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(batches):
            assert child.stdout.readline() == "embedding\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    before = len(documents(corpora, "notes"))

    library = open_library()
    (file,) = [each.file.id for each in library.files("notes", ALL).items]
    done = wait_until_ingested(library, "notes", file)

    assert 0 < before < 500
    assert done.status == "completed"
    assert documents(corpora, "notes") == {
        f"{file}/rows.jsonl#{i}": {"of": "rows"} for i in range(1, 501)
    }
    assert len(library.texts("notes", file)) == 500
    assert library.content(file).count(b"\n") == 499


def test_any_server_of_a_database_ingests_a_file_and_only_one_does(
    postgres: DatabaseLocation, words: Embedder, tokenizer: Any, tmp_path: Path
) -> None:
    pausable = PausableEmbedder(words)
    busy = Library(postgres, ThreadedEmbedder(lambda: pausable), tokenizer, tmp_path / "files")
    busy.create_store("notes")
    with pausable.paused():
        first, second = (busy.upload(f"{n}.md", CATS.encode()).id for n in range(2))
        busy.attach("notes", AttachmentRequest(first))
        assert pausable.waiting.wait(30)
        busy.attach("notes", AttachmentRequest(second))
        # Another server, on another machine.
        other = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "others")

        assert wait_until_ingested(other, "notes", second).status == "completed"
        third = attach_and_wait(other, "notes", "ships.md", SHIPS)
        # The other server leaves the file alone that this one has begun.
        assert other.file("notes", first).file.status == "in_progress"
        assert busy.content(third) == SHIPS.encode()
    assert wait_until_ingested(other, "notes", first).status == "completed"
    assert set(documents(postgres, "notes")) == {
        f"{first}/0.md",
        f"{second}/1.md",
        f"{third}/ships.md",
    }
    other.close()
    busy.close()


def test_a_file_attached_again_meanwhile_waits_for_its_first_ingestion(
    postgres: DatabaseLocation, words: Embedder, tokenizer: Any, tmp_path: Path
) -> None:
    pausable = PausableEmbedder(words)
    busy = Library(postgres, ThreadedEmbedder(lambda: pausable), tokenizer, tmp_path / "files")
    busy.create_store("notes")
    with pausable.paused():
        file = busy.upload("cats.md", CATS.encode()).id
        busy.attach("notes", AttachmentRequest(file, {"version": 1}))
        assert pausable.waiting.wait(30)
        other = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "others")
        other.attach("notes", AttachmentRequest(file, {"version": 2}))
        attach_and_wait(other, "notes", "ships.md", SHIPS)
        assert other.file("notes", file).file.status == "in_progress"

    wait_until_ingested(other, "notes", file)
    assert documents(postgres, "notes")[f"{file}/cats.md"] == {"version": 2}
    other.close()
    busy.close()


_KILLED_BESIDE_A_DATABASE = (
    _KILLED.replace(
        "root = Path(sys.argv[1])",
        "from selection.location import DatabaseLocation\n"
        "root = DatabaseLocation(sys.argv[1], Path(sys.argv[3]) / 'cache')",
    )
    .replace('root.parent / "files"', 'Path(sys.argv[3]) / "files"')
    .replace("if not list(root.iterdir()):", "if sys.argv[4] == 'first':")
)


def test_the_file_of_a_killed_server_is_taken_by_another(
    postgres: DatabaseLocation, words: Embedder, tokenizer: Any, nano: str, tmp_path: Path
) -> None:
    for number, turn in enumerate(["first", "second", "third"]):
        arguments = [postgres.url, nano, str(tmp_path / turn), turn]
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED_BESIDE_A_DATABASE, *arguments],
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(10 + number):
            assert child.stdout.readline() == "embedding\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    before = len(documents(postgres, "notes"))

    library = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "fourth")
    (file,) = [each.file.id for each in library.files("notes", ALL).items]
    done = wait_until_ingested(library, "notes", file)

    assert 0 < before < 500
    assert done.status == "completed"
    assert documents(postgres, "notes") == {
        f"{file}/rows.jsonl#{i}": {"of": "rows"} for i in range(1, 501)
    }
    library.close()


def test_a_file_that_fails_unexpectedly_is_left_to_other_servers(
    postgres: DatabaseLocation,
    words: Embedder,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "files")
    library.create_store("notes")
    with monkeypatch.context() as patched:
        patched.setattr(
            "selection.corpus.postgres.tables.attachments.Attachments.finish",
            lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")),
        )
        file = library.upload("cats.md", CATS.encode()).id
        library.attach("notes", AttachmentRequest(file))
        for _ in range(600):
            if "failed unexpectedly and stays in progress" in caplog.text:
                break
            time.sleep(0.05)
    attach_and_wait(library, "notes", "ships.md", SHIPS)
    assert library.file("notes", file).file.status == "in_progress"

    other = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "others")
    assert wait_until_ingested(other, "notes", file).status == "completed"
    assert caplog.text.count("failed unexpectedly") == 1
    other.close()
    library.close()


def test_rows_with_long_ids_are_ingested(
    postgres: DatabaseLocation, words: Embedder, tokenizer: Any, tmp_path: Path
) -> None:
    library = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "files")
    library.create_store("notes")
    # Random, since PostgreSQL compresses what is longer than an entry of an index may be.
    long = hashlib.shake_256(b"an id").hexdigest(2000)

    file = attach_and_wait(
        library, "notes", "rows.jsonl", json.dumps({"id": long, "text": "whales are mammals"})
    )

    assert library.file("notes", file).file.status == "completed"
    assert list(documents(postgres, "notes")) == [f"{file}/rows.jsonl#{long}"]
    library.close()


def test_a_file_that_cannot_be_stored_for_now_does_not_keep_others_from_it(
    postgres: DatabaseLocation,
    words: Embedder,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ingest_worker, "_RETRY_SECONDS", 0.1)
    pausable = PausableEmbedder(words)
    library = Library(postgres, ThreadedEmbedder(lambda: pausable), tokenizer, tmp_path / "files")
    library.create_store("notes")
    # Fault injection: the database stores no document of one file.
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION mayfly.refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'too many connections' USING ERRCODE = '53300'; END$$"
        )
        admin.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON mayfly.documents FOR EACH ROW "
            "WHEN (NEW.name LIKE '%refused.md') EXECUTE FUNCTION mayfly.refuse()"
        )
        try:
            with pausable.paused():
                refused = library.upload("refused.md", CATS.encode()).id
                library.attach("notes", AttachmentRequest(refused))
                others = [library.upload(f"{n}.md", SHIPS.encode()).id for n in range(2)]
                for other in others:
                    library.attach("notes", AttachmentRequest(other))
            for other in others:
                assert wait_until_ingested(library, "notes", other).status == "completed"
            assert f"{refused} of corpus notes is ingested later" in caplog.text
            assert library.file("notes", refused).file.status == "in_progress"
        finally:
            admin.execute("DROP FUNCTION mayfly.refuse CASCADE")

    assert wait_until_ingested(library, "notes", refused).status == "completed"
    library.close()


def test_a_file_is_ingested_once_its_database_is_back(
    postgres: DatabaseLocation,
    words: Embedder,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ingest_worker, "_RETRY_SECONDS", 0.1)
    pausable = PausableEmbedder(words)
    library = Library(postgres, ThreadedEmbedder(lambda: pausable), tokenizer, tmp_path / "files")
    library.create_store("notes")
    with ExitStack() as away:
        with pausable.paused():
            file = library.upload("cats.md", CATS.encode()).id
            library.attach("notes", AttachmentRequest(file))
            assert pausable.waiting.wait(30)
            away.enter_context(postgres_server.away(postgres.url))
        for _ in range(2400):
            if "is ingested later: the corpora's database cannot be reached" in caplog.text:
                break
            time.sleep(0.05)
        assert "is ingested later: the corpora's database cannot be reached" in caplog.text

    status = None
    for _ in range(600):
        # For a second after the last failed wait, all callers are refused.
        with suppress(CorpusUnavailableError):
            status = wait_until_ingested(library, "notes", file).status
            break
        time.sleep(0.05)
    assert status == "completed"
    library.close()
