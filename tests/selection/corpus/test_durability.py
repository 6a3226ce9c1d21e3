"""Acknowledged changes survive damage to the index, kill -9, an interrupted re-embedding and a full
disk.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.index import files as index_files
from selection.corpus.index.faiss_index import Index
from selection.corpus.index.files import CorpusVersion
from selection.corpus.sqlite_store import CorpusError
from selection.embedding import Embedder, Embeddings
from tests.conftest import WordEmbedder
from tests.selection.brute_force import Document, add, assert_equals_brute_force, database_of

_REPOSITORY = Path(__file__).resolve().parents[3]
_TOKENIZER = "0123456789abcdef"
_MODEL = {
    f"document {d}": Document(
        tuple(f"word{17 * d + p} word{p} of {d}" for p in range(d % 7 + 1)), d % 3
    )
    for d in range(30)
}


@pytest.fixture
def filled(corpora: Path, words: Embedder) -> Path:
    """The folder of a corpus named `notes` with the documents of _MODEL."""
    corpus = Corpus.create(corpora, "notes", words, _TOKENIZER)
    for name, document in _MODEL.items():
        add(corpus, words, name, *document.texts, group=document.group)
    corpus.close()
    return corpora / "notes"


@contextmanager
def open_corpus(folder: Path) -> Iterator[Corpus]:
    corpus = Corpus.open(folder.parent, folder.name)
    try:
        yield corpus
    finally:
        corpus.close()


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Simulate a full disk by a limit on the size of files, reason signal Python turns into an
    error.
    """
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def loads(folder: Path) -> bool:
    """Whether the corpus can load its index from disk."""
    with open_corpus(folder) as corpus:
        meta = corpus._store.meta()
    return index_files.load(folder, meta["uuid"], int(meta["dimension"])) is not None


def flip(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def overwrite(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    length = draw.randint(1, min(64, len(content) - start))
    return content[:start] + draw.randbytes(length) + content[start + length :]


def lose_a_block(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 64) :]


def grow(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randint(1, 64))


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_damaged_index_files_are_always_detected_and_never_searched(
    filled: Path, words: Embedder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "lists":
        monkeypatch.setattr(Index, "build", functools.partial(Index.build, flat_limit=3))
    with open_corpus(filled) as corpus:
        corpus.build_index()
        uuid = corpus._store.meta()["uuid"]
    draw = random.Random(kind)

    for number in range(150):
        # Arrange: one file of a intact index is damaged.
        files = [*filled.glob("index-*/*"), filled / "index.json"]
        assert len(files) == (3 if kind == "flat" else 4)
        file, damage = (
            draw.choice(files),
            draw.choice((flip, truncate, overwrite, lose_a_block, grow)),
        )
        intact = file.read_bytes()
        file.write_bytes(damage(intact, draw))
        assert file.read_bytes() != intact

        # Act and assert: it is not loaded, and a corpus that is opened now returns the right
        # results and repairs it.
        assert index_files.load(filled, uuid, 16) is None, f"{damage.__name__} of {file.name}"
        if number % 10:
            file.write_bytes(intact)
        else:
            with open_corpus(filled) as corpus:
                assert_equals_brute_force(
                    corpus, words, _MODEL, f"word{number}", k=10, group=number % 3
                )
        assert index_files.load(filled, uuid, 16) is not None


@pytest.mark.parametrize("missing", ["ids", "vectors", "index.json", "the folder", "everything"])
def test_a_missing_index_file_is_detected(filled: Path, words: Embedder, missing: str) -> None:
    with open_corpus(filled) as corpus:
        corpus.build_index()
    (folder,) = filled.glob("index-*")
    if missing in ("the folder", "everything"):
        shutil.rmtree(folder)
    if missing in ("index.json", "everything"):
        (filled / "index.json").unlink()
    if missing in ("ids", "vectors"):
        (folder / missing).unlink()

    assert not loads(filled)
    with open_corpus(filled) as corpus:
        assert_equals_brute_force(corpus, words, _MODEL, "word3", k=5)
    assert loads(filled)


@pytest.mark.parametrize("reason", ["another corpus's", "another version's", "a later state's"])
def test_a_foreign_index_is_detected(
    filled: Path, words: Embedder, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: an intact index with the vectors in another order is put in its place.
    with open_corpus(filled) as corpus:
        corpus.build_index()
        ids_N, vectors_ND = corpus._store.embeddings()
        mine = corpus._store.meta()["uuid"]
    if reason == "another version's":
        monkeypatch.setattr("selection.corpus.index.files._FORMAT", 1)
    version = CorpusVersion(
        "another" if reason == "another corpus's" else mine,
        10_000 if reason == "a later state's" else 1,
    )
    index_files.save(Index.build(ids_N, vectors_ND[::-1].copy()), filled, version)
    monkeypatch.undo()

    with open_corpus(filled) as corpus:
        assert_equals_brute_force(corpus, words, _MODEL, "word3", k=5)
    assert loads(filled)


def test_an_index_of_the_previous_format_is_rebuilt(filled: Path, words: Embedder) -> None:
    # Arrange: that format called the search parameters "reading" and the checksum "signed".
    with open_corpus(filled) as corpus:
        corpus.build_index()
    manifest = json.loads((filled / "index.json").read_text())
    del manifest["checksum"]
    manifest |= {"format": 3, "reading": manifest.pop("search_params")}
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (filled / "index.json").write_text(json.dumps({**manifest, "signed": checksum}))
    assert not loads(filled)

    with open_corpus(filled) as corpus:
        assert_equals_brute_force(corpus, words, _MODEL, "word3", k=5)

    assert loads(filled)
    assert [folder.name for folder in filled.glob("index-*")] != [manifest["folder"]]


def test_no_acknowledged_change_is_lost_when_processes_are_killed() -> None:
    # The benchmark kills two hundred processes, this test ten.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.promises.durability",
            *["--kills", "10", "--seed", "1", "--json"],
        ],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == sum(result["killed_during"].values()) == 10
    assert result["acknowledged"] > 0
    faults = (
        "lost",
        "duplicated",
        "came_back",
        "half_written",
        "wrong_neighbours",
        "damaged_databases",
    )
    assert {fault: result[fault] for fault in faults} == dict.fromkeys(faults, 0)


# The child gets the embedder's source, because importing its module takes long.
_REEMBED_REPEATEDLY = f"""
from __future__ import annotations
import hashlib, itertools, re, sys, time
from pathlib import Path
import numpy as np
from selection.corpus.corpus import Corpus

{inspect.getsource(WordEmbedder)}

class Slow(WordEmbedder):
    def embed(self, texts):
        time.sleep(float(sys.argv[2]))
        return super().embed(texts)

corpus = Corpus.open(Path(sys.argv[1]), "notes")
for revision in itertools.cycle(sys.argv[3:]):
    embedder = Slow(revision=revision, dimension=15 + int(revision))
    corpus.reembed(embedder, lambda done, total: print(done, total, flush=True))
"""


@contextmanager
def reembedding(folder: Path, pause: float, *revisions: str) -> Iterator[subprocess.Popen[str]]:
    """A process that re-embeds the corpus for one revision after another, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _REEMBED_REPEATEDLY, str(folder.parent), str(pause), *revisions],
        stdout=subprocess.PIPE,
        text=True,
        cwd=_REPOSITORY,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def words_of(revision: str) -> Embedder:
    """The embedder of a revision: 16 dimensions for the first, one more for each later one."""
    return WordEmbedder(revision=revision, dimension=15 + int(revision))


class RecordingEmbedder(WordEmbedder):
    """An embedder that records its texts."""

    def __init__(self, revision: str) -> None:
        super().__init__(revision=revision, dimension=15 + int(revision))
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self.embedded.extend(texts)
        return super().embed(texts)


def test_a_killed_reembedding_resumes(filled: Path) -> None:
    old, new = words_of("1"), RecordingEmbedder("2")
    model = dict(_MODEL)
    total = sum(len(document.texts) for document in model.values())
    with open_corpus(filled) as reader:
        assert_equals_brute_force(reader, old, model, "word3", k=5)

        # Arrange: a process that re-embeds the corpus is killed after one batch.
        with reembedding(filled, 0.2, "2") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"64 {total}\n"

        # Act and assert: nothing has changed, and documents can be added and deleted.
        for corpus in (reader, None):
            with open_corpus(filled) if corpus is None else nullcontext(corpus) as either:
                either.check(old, _TOKENIZER)
                with pytest.raises(
                    CorpusError, match="'notes' was made with revision '1', not '2'"
                ):
                    either.check(new)
                assert_equals_brute_force(either, old, model, "word3", k=5, group=1)
        with open_corpus(filled) as writer:
            model["new"] = Document(("word5 came", "word6 came too"), 1)
            add(writer, old, "new", *model["new"].texts, group=1)
            # The first of these is re-embedded already, the second is not.
            writer.delete("document 6")
            writer.delete("document 29")
            deleted = [model.pop("document 6"), model.pop("document 29")]
        assert_equals_brute_force(reader, old, model, "word5", k=5)

        # Act: another run resumes.
        progress: list[tuple[int, int]] = []
        with open_corpus(filled) as writer:
            writer.reembed(new, lambda done, all_sequences: progress.append((done, all_sequences)))

        # Assert: it embedded only the rest, and every reader sees the new embeddings at once.
        assert sum(done for done, _ in progress) == total - 64 - len(deleted[1].texts) + 2
        assert set(new.embedded[-2:]) == {"word5 came", "word6 came too"}
        for corpus in (reader, None):
            with open_corpus(filled) if corpus is None else nullcontext(corpus) as either:
                either.check(new, _TOKENIZER)
                with pytest.raises(
                    CorpusError, match="'notes' was made with revision '2', not '1'"
                ):
                    either.check(old)
                assert_equals_brute_force(either, new, model, "word5", k=5, group=1)
                assert_equals_brute_force(either, new, model, "word3")


def test_a_reembedding_killed_at_any_moment_never_mixes_embedders(
    filled: Path,
) -> None:
    draw = random.Random(3)
    for _ in range(6):
        with reembedding(filled, 0.0, "2", "3", "1") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0, 0.15))

        with open_corpus(filled) as corpus:
            revision = corpus._store.meta()["revision"]
            corpus.check(words_of(revision), _TOKENIZER)
            assert_equals_brute_force(corpus, words_of(revision), _MODEL, "word3")
            assert_equals_brute_force(corpus, words_of(revision), _MODEL, "word3", k=3, group=2)


def test_vectors_of_a_replaced_embedder_are_not_added(filled: Path) -> None:
    # One process adds documents with the old embedder while another finishes a re-embedding.
    old, new = words_of("1"), words_of("2")
    with open_corpus(filled) as adding, open_corpus(filled) as other:
        adding.check(old)
        other.reembed(new)

        with pytest.raises(CorpusError, match="'notes' was re-embedded in the meantime"):
            add(adding, old, "late", "word1")

        assert_equals_brute_force(adding, new, _MODEL, "word1")
        adding.check(new)
        add(adding, new, "late", "word1", group=1)
        assert_equals_brute_force(other, new, {**_MODEL, "late": Document(("word1",), 1)}, "word1")


def too_much(corpus: Corpus, embedder: Embedder) -> None:
    add(corpus, embedder, "large", *(f"word{i} " * 300 for i in range(100)))


def replaced_by_too_much(corpus: Corpus, embedder: Embedder) -> None:
    add(corpus, embedder, "document 1", *(f"word{i} " * 300 for i in range(100)))


def reembedded_in_more_dimensions(corpus: Corpus, embedder: Embedder) -> None:
    corpus.reembed(WordEmbedder(revision="2", dimension=4000))


_LARGE_CHANGES = [too_much, replaced_by_too_much, reembedded_in_more_dimensions]


@pytest.mark.parametrize("change", _LARGE_CHANGES)
@pytest.mark.parametrize("limit", ["of the database", "of files"])
def test_a_full_disk_does_not_change_the_corpus(
    filled: Path, words: Embedder, change: Callable[[Corpus, Embedder], None], limit: str
) -> None:
    with open_corpus(filled) as corpus, open_corpus(filled) as reader:
        assert_equals_brute_force(reader, words, _MODEL, "word3", k=5)
        before = corpus._store.meta()["generation"], corpus.documents()

        refused = pytest.raises(
            CorpusError, match=r"corpus 'notes' was not changed: .*(disk is full|disk I/O error)"
        )
        if limit == "of files":
            with no_file_beyond(100_000), refused:
                change(corpus, words)
        else:
            database = database_of(corpus)
            ((pages,),) = database.execute("PRAGMA page_count")
            database.execute(f"PRAGMA max_page_count = {pages + 10}")
            with refused:
                change(corpus, words)
            database.execute("PRAGMA max_page_count = 1000000")

        # Nothing has changed, here and for other processes; with free space, it can be changed.
        for either in (corpus, reader):
            assert (either._store.meta()["generation"], either.documents()) == before
            either.check(words, _TOKENIZER)
            assert_equals_brute_force(either, words, _MODEL, "word3", k=5, group=1)
        add(corpus, words, "after", "word3 again")
        for either in (corpus, reader):
            assert_equals_brute_force(
                either, words, {**_MODEL, "after": Document(("word3 again",))}, "word3", k=5
            )
    with open_corpus(filled) as later:
        assert database_of(later).execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert_equals_brute_force(
            later, words, {**_MODEL, "after": Document(("word3 again",))}, "word3"
        )


def test_an_index_that_cannot_be_saved_is_still_used(
    filled: Path, words: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    with open_corpus(filled) as corpus, caplog.at_level(logging.WARNING), no_file_beyond(4096):
        assert_equals_brute_force(corpus, words, _MODEL, "word7", k=5)

    assert "the index of corpus 'notes' cannot be saved (" in caplog.text
    # An incomplete index would take up space.
    assert not list(filled.glob("index-*"))
    with open_corpus(filled) as later:
        assert_equals_brute_force(later, words, _MODEL, "word7", k=5)
    assert loads(filled)
