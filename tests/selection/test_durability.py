"""What was acknowledged stays: under damage to the index, kill -9, embeddings replaced half way,
and a full disk.
"""

from __future__ import annotations

import functools
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
from contextlib import contextmanager
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.faiss_index import Index, State
from selection.corpus.sqlite_store import CorpusError
from selection.embedding import Embedder, Embeddings
from tests.conftest import WordEmbedder
from tests.selection.truth import Held, add, assert_answers_like

_REPOSITORY = Path(__file__).resolve().parents[2]
_TOKENIZER = "0123456789abcdef"
_MODEL = {
    f"document {d}": Held(
        tuple(f"word{17 * d + p} word{p} of {d}" for p in range(d % 7 + 1)), d % 3
    )
    for d in range(30)
}


@pytest.fixture
def filled(corpora: Path, words: Embedder) -> Path:
    """The folder of a corpus named `notes` that holds _MODEL."""
    corpus = Corpus.create(corpora, "notes", words, _TOKENIZER)
    for name, held in _MODEL.items():
        add(corpus, words, name, *held.texts, group=held.group)
    corpus.close()
    return corpora / "notes"


@contextmanager
def opened(folder: Path) -> Iterator[Corpus]:
    corpus = Corpus.open(folder.parent, folder.name)
    try:
        yield corpus
    finally:
        corpus.close()


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """A limit on the size of files stands for a full disk; Python turns its signal into an error."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def loads(folder: Path) -> bool:
    """Whether the corpus would take its index from disk."""
    with opened(folder) as corpus:
        meta = corpus._store.meta()
    return Index.load(folder, meta["uuid"], int(meta["dimension"])) is not None


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
def test_damaged_index_files_are_all_noticed_and_never_answered_from(
    filled: Path, words: Embedder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "lists":
        monkeypatch.setattr(Index, "build", functools.partial(Index.build, flat_limit=3))
    with opened(filled) as corpus:
        corpus.build_index()
        uuid = corpus._store.meta()["uuid"]
    draw = random.Random(kind)

    for number in range(150):
        # Arrange: one file of a sound index is damaged.
        files = [*filled.glob("index-*/*"), filled / "index.json"]
        assert len(files) == (3 if kind == "flat" else 4)
        file, harm = (
            draw.choice(files),
            draw.choice((flip, truncate, overwrite, lose_a_block, grow)),
        )
        sound = file.read_bytes()
        file.write_bytes(harm(sound, draw))
        assert file.read_bytes() != sound

        # Act and assert: it is not loaded, and a corpus that is opened now answers right, and
        # repairs it.
        assert Index.load(filled, uuid, 16) is None, f"{harm.__name__} of {file.name}"
        if number % 10:
            file.write_bytes(sound)
        else:
            with opened(filled) as corpus:
                assert_answers_like(corpus, words, _MODEL, f"word{number}", k=10, group=number % 3)
        assert Index.load(filled, uuid, 16) is not None


@pytest.mark.parametrize("gone", ["ids", "vectors", "index.json", "the folder", "everything"])
def test_a_missing_index_file_is_noticed(filled: Path, words: Embedder, gone: str) -> None:
    with opened(filled) as corpus:
        corpus.build_index()
    (folder,) = filled.glob("index-*")
    if gone in ("the folder", "everything"):
        shutil.rmtree(folder)
    if gone in ("index.json", "everything"):
        (filled / "index.json").unlink()
    if gone in ("ids", "vectors"):
        (folder / gone).unlink()

    assert not loads(filled)
    with opened(filled) as corpus:
        assert_answers_like(corpus, words, _MODEL, "word3", k=5)
    assert loads(filled)


@pytest.mark.parametrize("whose", ["another corpus's", "another version's", "a later state's"])
def test_an_index_that_does_not_belong_is_noticed(
    filled: Path, words: Embedder, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: a sound index, of vectors that are not this corpus's, is put in its place.
    with opened(filled) as corpus:
        corpus.build_index()
        ids_N, vectors_ND = corpus._store.embeddings()
        mine = corpus._store.meta()["uuid"]
    if whose == "another version's":
        monkeypatch.setattr("selection.corpus.faiss_index._FORMAT", 1)
    state = State(
        "another" if whose == "another corpus's" else mine,
        10_000 if whose == "a later state's" else 1,
    )
    Index.build(ids_N, vectors_ND[::-1].copy()).save(filled, state)
    monkeypatch.undo()

    with opened(filled) as corpus:
        assert_answers_like(corpus, words, _MODEL, "word3", k=5)
    assert loads(filled)


def test_nothing_acknowledged_is_lost_when_processes_are_killed() -> None:
    # The benchmark makes two hundred; a few of them here.
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


# The embedder's source, because the module it is in imports much that a child need not wait for.
_REEMBED_FOREVER = f"""
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
    """A process that embeds the corpus anew for one revision after another, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _REEMBED_FOREVER, str(folder.parent), str(pause), *revisions],
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
    """The embedder of that revision, 16 dimensions for the first and one more for each that
    follows.
    """
    return WordEmbedder(revision=revision, dimension=15 + int(revision))


class Counting(WordEmbedder):
    """Remembers what it embedded."""

    def __init__(self, revision: str) -> None:
        super().__init__(revision=revision, dimension=15 + int(revision))
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self.embedded.extend(texts)
        return super().embed(texts)


def test_an_embedding_anew_that_was_killed_goes_on_where_it_was(filled: Path) -> None:
    old, new = words_of("1"), Counting("2")
    model = dict(_MODEL)
    total = sum(len(held.texts) for held in model.values())
    with opened(filled) as reader:
        assert_answers_like(reader, old, model, "word3", k=5)

        # Arrange: a process that embeds it anew is killed after a batch.
        with reembedding(filled, 0.2, "2") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"64 {total}\n"

        # Act and assert: nothing has changed; documents come and go as before.
        for corpus in (reader, None):
            with opened(filled) if corpus is None else _kept(corpus) as either:
                either.check(old, _TOKENIZER)
                with pytest.raises(
                    CorpusError, match="'notes' was made with revision '1', not '2'"
                ):
                    either.check(new)
                assert_answers_like(either, old, model, "word3", k=5, group=1)
        with opened(filled) as writer:
            model["new"] = Held(("word5 came", "word6 meanwhile"), 1)
            add(writer, old, "new", *model["new"].texts, group=1)
            writer.delete("document 6")  # embedded anew already
            writer.delete("document 29")  # and not yet
            gone = [model.pop("document 6"), model.pop("document 29")]
        assert_answers_like(reader, old, model, "word5", k=5)

        # Act: another run goes on.
        progress: list[tuple[int, int]] = []
        with opened(filled) as writer:
            writer.reembed(new, lambda done, in_all: progress.append((done, in_all)))

        # Assert: it embedded only what was left, and every reader has the new embeddings at once.
        assert sum(done for done, _ in progress) == total - 64 - len(gone[1].texts) + 2
        assert set(new.embedded[-2:]) == {"word5 came", "word6 meanwhile"}
        for corpus in (reader, None):
            with opened(filled) if corpus is None else _kept(corpus) as either:
                either.check(new, _TOKENIZER)
                with pytest.raises(
                    CorpusError, match="'notes' was made with revision '2', not '1'"
                ):
                    either.check(old)
                assert_answers_like(either, new, model, "word5", k=5, group=1)
                assert_answers_like(either, new, model, "word3")


@contextmanager
def _kept(corpus: Corpus) -> Iterator[Corpus]:
    yield corpus


def test_killed_at_any_moment_of_embedding_anew_all_embeddings_are_of_one_embedder(
    filled: Path,
) -> None:
    draw = random.Random(3)
    for _ in range(6):
        with reembedding(filled, 0.0, "2", "3", "1") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0, 0.15))

        with opened(filled) as corpus:
            revision = corpus._store.meta()["revision"]
            corpus.check(words_of(revision), _TOKENIZER)
            assert_answers_like(corpus, words_of(revision), _MODEL, "word3")
            assert_answers_like(corpus, words_of(revision), _MODEL, "word3", k=3, group=2)


def test_vectors_of_an_embedder_that_was_replaced_meanwhile_are_not_added(filled: Path) -> None:
    # A process adds documents with the old embedder while another finishes embedding the corpus
    # anew.
    old, new = words_of("1"), words_of("2")
    with opened(filled) as adding, opened(filled) as other:
        adding.check(old)
        other.reembed(new)

        with pytest.raises(CorpusError, match="'notes' was embedded anew meanwhile"):
            add(adding, old, "late", "word1")

        assert_answers_like(adding, new, _MODEL, "word1")
        adding.check(new)
        add(adding, new, "late", "word1", group=1)
        assert_answers_like(other, new, {**_MODEL, "late": Held(("word1",), 1)}, "word1")


def too_much(corpus: Corpus, embedder: Embedder) -> None:
    add(corpus, embedder, "large", *(f"word{i} " * 300 for i in range(100)))


def replaced_by_too_much(corpus: Corpus, embedder: Embedder) -> None:
    add(corpus, embedder, "document 1", *(f"word{i} " * 300 for i in range(100)))


def embedded_anew_in_more_dimensions(corpus: Corpus, embedder: Embedder) -> None:
    corpus.reembed(WordEmbedder(revision="2", dimension=4000))


_LARGE_CHANGES = [too_much, replaced_by_too_much, embedded_anew_in_more_dimensions]


@pytest.mark.parametrize("change", _LARGE_CHANGES)
@pytest.mark.parametrize("limit", ["of the database", "of files"])
def test_on_a_full_disk_the_corpus_stays_as_it_was(
    filled: Path, words: Embedder, change: Callable[[Corpus, Embedder], None], limit: str
) -> None:
    with opened(filled) as corpus, opened(filled) as reader:
        assert_answers_like(reader, words, _MODEL, "word3", k=5)
        before = corpus._store.meta()["generation"], corpus.documents()

        refused = pytest.raises(
            CorpusError, match=r"corpus 'notes' is as it was: .*(disk is full|disk I/O error)"
        )
        if limit == "of files":
            with no_file_beyond(100_000), refused:
                change(corpus, words)
        else:
            ((pages,),) = corpus._store._db.execute("PRAGMA page_count")
            corpus._store._db.execute(f"PRAGMA max_page_count = {pages + 10}")
            with refused:
                change(corpus, words)
            corpus._store._db.execute("PRAGMA max_page_count = 1000000")

        # As it was, here and for others; and when there is room again, it goes on.
        for either in (corpus, reader):
            assert (either._store.meta()["generation"], either.documents()) == before
            either.check(words, _TOKENIZER)
            assert_answers_like(either, words, _MODEL, "word3", k=5, group=1)
        add(corpus, words, "after", "word3 again")
        for either in (corpus, reader):
            assert_answers_like(
                either, words, {**_MODEL, "after": Held(("word3 again",))}, "word3", k=5
            )
    with opened(filled) as later:
        assert later._store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert_answers_like(later, words, {**_MODEL, "after": Held(("word3 again",))}, "word3")


def test_an_index_that_cannot_be_saved_is_used_all_the_same(
    filled: Path, words: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(filled) as corpus, caplog.at_level(logging.WARNING), no_file_beyond(4096):
        assert_answers_like(corpus, words, _MODEL, "word7", k=5)

    assert "the index of corpus 'notes' cannot be saved (" in caplog.text
    assert not list(filled.glob("index-*"))  # no half of it takes up room
    with opened(filled) as later:
        assert_answers_like(later, words, _MODEL, "word7", k=5)
    assert loads(filled)
