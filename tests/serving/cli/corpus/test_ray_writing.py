"""`mayfly corpus add --ray` into PostgreSQL: workers of a real cluster write, and the corpus is the
one that a single process makes, also if a worker is killed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import psutil
import psycopg
import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.stores.places import open_store
from selection.ingest import parallel
from selection.ingest.ingest import BATCH_CHUNKS
from selection.location import DatabaseLocation
from serving.cli import main
from serving.cli.corpus.add import _shared
from tests.embeddings import ROUNDING

_SECRET = "s3cret-Passw0rd"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(postgres: DatabaseLocation) -> str:
    """The URL of the database, with a password."""
    parts = urlsplit(postgres.url)
    if parts.password:
        return postgres.url
    address = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{_SECRET}@{address}"))


@pytest.fixture
def ray_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all files of the cluster that a command starts."""
    # Not pytest's folder: the names of sockets would be too long.
    folder = Path(tempfile.mkdtemp(prefix="mayfly-ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def add(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `mayfly corpus add` in an empty folder; returns status, output and errors."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MAYFLY_CORPORA", url)
    monkeypatch.setenv("MAYFLY_HOME", str(tmp_path / "home"))
    # This process has loaded torch already, and its environment must not change.
    monkeypatch.setattr(main, "set_environment", lambda cores: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        command = ["mayfly", "corpus", "add", *arguments, "--model", "nano"]
        monkeypatch.setattr(sys, "argv", command)
        try:
            main.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def contents(
    location: DatabaseLocation, name: str
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The documents of a corpus with their sequences, and the embeddings of each."""
    store = open_store(location / name)
    ids_N, vectors_ND = store.embeddings()
    documents, vectors = {}, {}
    with closing(Corpus.open(location, name)) as corpus:
        digests = store.sequence_ids.contents()
        for document in corpus.documents():
            sequences = corpus.sequences_of(document.id)
            documents[document.name] = (
                digests[document.id],
                document.metadata,
                [
                    (source.start, source.text, source.example, each.tokens, each.scored)
                    for each in sequences
                    for source in [each.source]
                ],
            )
            positions = np.searchsorted(ids_N, [each.source.sequence for each in sequences])
            vectors[document.name] = vectors_ND[positions]
    return documents, vectors


@contextmanager
def killing_a_worker() -> Iterator[None]:
    """Kill one worker while it writes; within the `with` block there is one that does."""
    is_killed, has_ended = threading.Event(), threading.Event()

    def kill() -> None:
        while not is_killed.is_set() and not has_ended.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.name() == "ray::_Worker.write":
                        process.kill()
                        is_killed.set()
                        break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        has_ended.set()
        killer.join()
    assert is_killed.is_set()


def test_a_corpus_that_workers_write_is_that_of_one_process_though_one_is_killed(
    add: Command,
    postgres: DatabaseLocation,
    url: str,
    ray_files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Smaller batches and shorter sequences, which are embedded faster; a long document still ends a
    # batch, and has more sequences than are embedded at once.
    monkeypatch.setattr(parallel, "_BATCH_CHARACTERS", 1 << 13)
    short = ("--max-length", "24")
    for number in range(80):
        Path(f"{number}.md").write_text(f"# Number {number}\n\nThis is text {number}.\n")
    Path("empty.md").write_text("")
    Path("long.md").write_text("".join(f"Line {i} of a long text.\n\n" for i in range(400)))
    rows = [
        {"prompt": "Two and two", "completion": " is four", "metadata": {"year": 2026}},
        {"text": "A row.", "metadata": {"year": 2025}},
    ]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert add("here", ".", *short)[0] == 0
    # One document of the other corpus is replaced, one becomes empty, and one stays.
    replaced, emptied = Path("3.md").read_text(), Path("empty.md")
    Path("3.md").write_text("Another text.\n")
    emptied.write_text("It was not empty.\n")
    assert add("spread", "3.md", "4.md", "empty.md", *short)[0] == 0
    Path("3.md").write_text(replaced)
    emptied.write_text("")

    with killing_a_worker():
        status, output, errors = add("spread", ".", "--ray", *short)

    assert status == 0, errors
    expected, vectors = contents(postgres, "here")
    written, written_vectors = contents(postgres, "spread")
    assert written == expected
    assert len(expected["long.md"][2]) > BATCH_CHUNKS
    for name, vectors_ND in vectors.items():
        np.testing.assert_allclose(written_vectors[name], vectors_ND, atol=ROUNDING)
    sequences = sum(len(each[2]) for each in expected.values()) - len(expected["4.md"][2])
    assert output == (
        f"corpus spread: added 81 documents, replaced 1, {sequences} sequences; 1 were already "
        "there; 1 were empty\n"
    )
    secret = (urlsplit(url).password or "").encode()
    logs = [each for each in ray_files.rglob("*") if each.is_file() and not each.is_symlink()]
    assert logs
    assert [each for each in logs if secret in each.read_bytes()] == []
    assert secret.decode() not in errors


def test_a_problem_of_a_worker_is_reported_as_that_of_one_process(
    add: Command, ray_files: Path, postgres: DatabaseLocation
) -> None:
    Path("a.md").write_text("A text of words.\n")
    # Connecting creates the tables.
    open_store(postgres / "notes")
    # Fault injection: the database stores no document.
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(
            "CREATE FUNCTION mayfly.refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'the disk is full' USING ERRCODE = '53100'; END$$"
        )
        admin.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON mayfly.documents "
            "FOR EACH ROW EXECUTE FUNCTION mayfly.refuse()"
        )
        try:
            alone, on_ray = add("notes", "a.md"), add("notes", "a.md", "--ray")
        finally:
            admin.execute("DROP FUNCTION mayfly.refuse CASCADE")

    assert alone[0] == on_ray[0] == 1
    assert "corpus 'notes' was not changed: the disk is full" in alone[2]
    assert on_ray[2].splitlines()[-1] == alone[2].splitlines()[-1]
    assert contents(postgres, "notes") == ({}, {})


def test_one_process_writes_into_folders_and_what_must_be_unique(
    postgres: DatabaseLocation, tmp_path: Path
) -> None:
    assert _shared(postgres, unique=False) == postgres
    assert _shared(postgres, unique=True) is None
    assert _shared(tmp_path, unique=False) is None


def test_a_password_that_ray_would_record_is_refused(add: Command, url: str) -> None:
    Path("a.md").write_text("A text.\n")

    status, _, errors = add("notes", "a.md", "--ray", "--corpora", url)

    assert status == 1
    assert "set MAYFLY_CORPORA in the environment" in errors
