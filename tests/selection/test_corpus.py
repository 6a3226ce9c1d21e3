"""The corpus: what it keeps, whom it refuses, and that nothing acknowledged is lost to kill -9."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from selection.corpus import Corpus, CorpusError, CorpusNotFoundError, Piece, list_corpora
from selection.embedding import Embedder

_TOKENIZER = "0123456789abcdef"
_REPOSITORY = Path(__file__).resolve().parents[2]


def add(corpus: Corpus, embedder: Embedder, name: str, *texts: str) -> int:
    """Add a document of one sequence a text; its tokens are its characters' code points."""
    pieces = [Piece(10 * i, text, tuple(ord(c) for c in text)) for i, text in enumerate(texts)]
    return corpus.add(name, f"digest of {texts}", pieces, embedder.embed(texts))


def texts_near(corpus: Corpus, embedder: Embedder, prompt: str, k: int = 1000) -> list[str]:
    found, _ = corpus.nearest(embedder.embed([prompt]), k)
    read = corpus.read(found.tolist())
    return [read[i][0].text for i in found.tolist()]


@contextmanager
def opened(root: Path, name: str) -> Iterator[Corpus]:
    corpus = Corpus.open(root, name)
    try:
        yield corpus
    finally:
        corpus.close()


@pytest.fixture
def corpus(corpora: Path, words: Embedder) -> Iterator[Corpus]:
    """An empty corpus named `notes`."""
    made = Corpus.create(corpora, "notes", words, _TOKENIZER)
    yield made
    made.close()


def test_what_was_added_is_found_with_its_provenance(corpus: Corpus, words: Embedder) -> None:
    cats = add(corpus, words, "cats.txt", "cats purr", "cats sleep all day")
    add(corpus, words, "ships.txt", "ships sail")

    found, embeddings_KD = corpus.nearest(words.embed(["cats sleep all day"]), 2)
    source, tokens = corpus.read([int(found[0])])[int(found[0])]

    assert (source.document, source.name, source.start, source.text) == (cats, "cats.txt", 10, "cats sleep all day")
    assert tokens == tuple(ord(c) for c in "cats sleep all day")
    np.testing.assert_array_equal(embeddings_KD[:1], words.embed(["cats sleep all day"]))
    assert corpus.counts() == (2, 3)
    assert [(name, count) for _, name, count in corpus.documents()] == [("cats.txt", 2), ("ships.txt", 1)]


def test_an_empty_corpus_has_nothing_near(corpus: Corpus, words: Embedder) -> None:
    found, embeddings_KD = corpus.nearest(words.embed(["anything"]), 10)

    assert (found.shape, embeddings_KD.shape) == ((0,), (0, words.dimension))
    assert (corpus.counts(), corpus.documents()) == ((0, 0), [])


def test_a_document_of_the_same_name_is_replaced(corpus: Corpus, words: Embedder) -> None:
    first = add(corpus, words, "a", "old words", "older words")
    add(corpus, words, "b", "other words")
    assert texts_near(corpus, words, "old words")[0] == "old words"

    second = add(corpus, words, "a", "new words")

    assert second != first
    assert sorted(texts_near(corpus, words, "old words")) == ["new words", "other words"]
    assert corpus.counts() == (2, 2)


def test_a_deleted_document_is_gone_with_its_sequences(corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one", "two")
    add(corpus, words, "b", "three")
    found, _ = corpus.nearest(words.embed(["one"]), 1)

    assert corpus.delete("a") is True

    assert corpus.delete("a") is False
    assert corpus.read(found.tolist()) == {}
    assert texts_near(corpus, words, "one") == ["three"]
    assert corpus.counts() == (1, 1)


def test_ids_are_never_used_twice(corpus: Corpus, words: Embedder) -> None:
    document = add(corpus, words, "a", "one", "two")
    before, _ = corpus.nearest(words.embed(["one"]), 10)
    corpus.delete("a")

    again = add(corpus, words, "a", "one", "two")
    after, _ = corpus.nearest(words.embed(["one"]), 10)

    assert again > document
    assert not set(before.tolist()) & set(after.tolist())


def test_it_knows_a_document_by_name_and_content(corpus: Corpus, words: Embedder) -> None:
    corpus.add("a", "digest 1", [Piece(0, "x", (1, 2))], words.embed(["x"]))

    assert corpus.has("a", "digest 1")
    assert not corpus.has("a", "digest 2")
    assert not corpus.has("b", "digest 1")


def test_a_failed_addition_leaves_the_corpus_as_it_was(corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "the words that stay")
    unstorable = Piece(0, "text", (1 << 40, 2))  # no token id is that large

    with pytest.raises((OverflowError, ValueError)):
        corpus.add("a", "digest", [Piece(0, "fine", (1, 2)), unstorable], words.embed(["fine", "text"]))

    assert texts_near(corpus, words, "fine") == ["the words that stay"]
    add(corpus, words, "b", "and it still takes more")
    assert corpus.counts() == (2, 2)


def test_reopened_it_holds_the_same(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one", "two")
    documents, near = corpus.documents(), texts_near(corpus, words, "two")
    corpus.close()

    with opened(corpora, "notes") as again:
        again.check(words, _TOKENIZER)
        assert again.documents() == documents
        assert texts_near(again, words, "two") == near
        assert again.embedder == "words"


def test_creating_it_again_opens_it(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one")

    again = Corpus.create(corpora, "notes", words, _TOKENIZER)

    assert again.counts() == (1, 1)
    again.close()


def test_another_embedder_is_refused(corpora: Path, corpus: Corpus, words: Embedder, other_words: Embedder) -> None:
    for attempt in (
        lambda: corpus.check(other_words),
        lambda: Corpus.create(corpora, "notes", other_words, _TOKENIZER),
    ):
        with pytest.raises(CorpusError, match=r"'notes' was made with revision '1', not '2': serve it with"):
            attempt()
    corpus.check(words)


def test_another_tokenizer_is_refused(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    for attempt in (lambda: corpus.check(words, "other"), lambda: Corpus.create(corpora, "notes", words, "other")):
        with pytest.raises(CorpusError, match="'notes' holds the tokens of another model's tokenizer: serve that"):
            attempt()
    corpus.check(words, _TOKENIZER)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a b", "ä", "a\n", "a\0", "x" * 65])
def test_what_is_not_a_name_is_refused_and_makes_no_folder(corpora: Path, words: Embedder, name: str) -> None:
    with pytest.raises(CorpusError, match="not a corpus name"):
        Corpus.create(corpora, name, words, _TOKENIZER)
    with pytest.raises(CorpusNotFoundError):
        Corpus.open(corpora, name)

    assert list(corpora.parent.rglob("*.db")) == []
    assert list(corpora.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "0", "Py-3.11_x", "x" * 64])
def test_these_are_names(corpora: Path, words: Embedder, name: str) -> None:
    Corpus.create(corpora, name, words, _TOKENIZER).close()

    assert list_corpora(corpora) == [name]


def test_a_corpus_that_is_not_there_is_named_beside_those_that_are(corpora: Path, words: Embedder) -> None:
    with pytest.raises(CorpusNotFoundError, match=r"no corpus 'x' \(there are: none yet\)"):
        Corpus.open(corpora, "x")
    for name in ("b", "a"):
        Corpus.create(corpora, name, words, _TOKENIZER).close()

    with pytest.raises(CorpusNotFoundError, match=r"no corpus 'x' \(there are: a, b\); `mayfly corpus add`"):
        Corpus.open(corpora, "x")


@pytest.mark.parametrize(
    "harm", ["empty", "garbage", "another database", "no meta rows", "no generation", "no tokenizer"]
)
def test_a_damaged_or_unfinished_corpus_is_refused(corpora: Path, corpus: Corpus, harm: str) -> None:
    # Arrange: what a broken disk, or a process killed while it made the corpus, may leave.
    corpus.close()
    file = corpora / "notes" / "corpus.db"
    if harm in ("empty", "another database"):
        file.unlink()
        file.touch()
    if harm == "garbage":
        file.write_bytes(b"garbage" * 1000)
    elif harm != "empty":
        statement = {
            "another database": "CREATE TABLE mine (x)",
            "no meta rows": "DELETE FROM meta",
            "no generation": "DELETE FROM meta WHERE key = 'generation'",
            "no tokenizer": "DELETE FROM meta WHERE key = 'tokenizer'",
        }[harm]
        with sqlite3.connect(file) as database:
            database.execute(statement)
        database.close()

    with pytest.raises(CorpusError, match="corpus 'notes' is damaged") as refusal:
        Corpus.open(corpora, "notes")

    assert not isinstance(refusal.value, CorpusNotFoundError)
    assert f"delete {corpora / 'notes'}" in str(refusal.value)


def test_removed_it_is_gone(corpora: Path, corpus: Corpus) -> None:
    corpus.remove()

    assert list_corpora(corpora) == []
    assert not (corpora / "notes").exists()


@pytest.mark.parametrize("harm", ["deleted", "damaged", "stale"])
def test_the_index_is_made_again_when_it_cannot_be_used(
    corpora: Path, corpus: Corpus, words: Embedder, harm: str
) -> None:
    # Arrange: a corpus whose index on disk is deleted, damaged, or older than its documents.
    add(corpus, words, "a", "one", "two")
    corpus.build_index()
    index = corpora / "notes" / "index.faiss"
    if harm == "deleted":
        index.unlink()
    elif harm == "damaged":
        content = bytearray(index.read_bytes())
        content[-1] ^= 1
        index.write_bytes(content)
    else:
        add(corpus, words, "b", "three")
    broken = index.read_bytes() if index.exists() else b""
    expected = {"one", "two", "three"} if harm == "stale" else {"one", "two"}

    # Act: another process would open it like this.
    with opened(corpora, "notes") as again:
        near = texts_near(again, words, "two")

    assert near[0] == "two"
    assert set(near) == expected
    assert index.read_bytes() != broken


def test_an_index_with_a_senseless_manifest_is_made_again(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one", "two")
    corpus.build_index()
    manifest = corpora / "notes" / "index.json"
    sound = manifest.read_bytes()
    manifest.write_text("[]")

    with opened(corpora, "notes") as again:
        near = texts_near(again, words, "two")

    assert near == ["two", "one"]
    assert manifest.read_bytes() == sound


def test_two_readers_in_one_process_make_the_index_at_once(
    corpora: Path, corpus: Corpus, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: another reader makes the index while this one has written a file and not yet put it in its place.
    add(corpus, words, "a", "one", "two")
    plain_fsync = os.fsync
    meanwhile: list[list[str]] = []

    def slow_fsync(descriptor: int) -> None:
        plain_fsync(descriptor)
        monkeypatch.setattr(os, "fsync", plain_fsync)
        with opened(corpora, "notes") as other:
            meanwhile.append(texts_near(other, words, "two"))

    monkeypatch.setattr(os, "fsync", slow_fsync)

    near = texts_near(corpus, words, "two")

    assert [near] == meanwhile == [["two", "one"]]
    with opened(corpora, "notes") as later:
        assert texts_near(later, words, "two") == ["two", "one"]
    assert sorted(file.name for file in (corpora / "notes").glob("index.*")) == [
        "index.faiss",
        "index.ids",
        "index.json",
    ]


def test_a_second_reader_uses_the_index_on_disk(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one")
    corpus.build_index()
    made = (corpora / "notes" / "index.faiss").stat().st_mtime_ns

    with opened(corpora, "notes") as again:
        assert texts_near(again, words, "one") == ["one"]

    assert (corpora / "notes" / "index.faiss").stat().st_mtime_ns == made


def test_a_reader_sees_what_another_added(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one")
    with opened(corpora, "notes") as reader:
        assert texts_near(reader, words, "two") == ["one"]

        add(corpus, words, "b", "two")

        assert texts_near(reader, words, "two") == ["two", "one"]


def test_a_reader_never_sees_half_a_document(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    # Arrange: a writer that replaces one document of three sequences again and again, each time with other words.
    versions = [tuple(f"version{v} part{p}" for p in range(3)) for v in range(60)]
    add(corpus, words, "a", *versions[0])

    def write() -> None:
        with opened(corpora, "notes") as writer:
            for version in versions[1:]:
                add(writer, words, "a", *version)

    writing = threading.Thread(target=write)

    # Act: read as long as it writes.
    seen: list[tuple[str, ...]] = []
    writing.start()
    while writing.is_alive():
        assert corpus.counts() == (1, 3)
        found, embeddings_KD = corpus.nearest(words.embed(["version"]), 10)
        read = corpus.read(found.tolist())
        assert len(found) == 3
        assert len(read) in (0, 3)  # replaced between search and reading: then all of it
        if read:
            texts = [read[i][0].text for i in found.tolist()]
            np.testing.assert_array_equal(embeddings_KD, words.embed(texts))
            seen.append(tuple(sorted(texts)))
    writing.join()

    assert set(seen) <= set(versions)
    assert tuple(sorted(texts_near(corpus, words, "version"))) == versions[-1]


_ADD_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from selection.corpus import Corpus, Piece

corpus = Corpus.open(Path(sys.argv[1]), "notes")
for i in range(1_000_000):
    name = f"document {i % 50}"  # from the 51st on, documents are replaced
    pieces = [Piece(p, f"{i} {p}", (i, p)) for p in range(3)]
    vectors = np.eye(16, dtype=np.float32)[[(i + p) % 16 for p in range(3)]]
    corpus.add(name, f"digest {i}", pieces, vectors)
    print(i, flush=True)
"""


@pytest.mark.parametrize("after", [20, 90])
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(
    corpora: Path, corpus: Corpus, words: Embedder, after: int
) -> None:
    # Arrange: a process that adds without end and prints each document once `add` has returned.
    corpus.close()
    process = subprocess.Popen(
        [sys.executable, "-c", _ADD_FOREVER, str(corpora)], stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(after)]

    # Act: kill -9 in the middle, then read what it still managed to say.
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL

    # Assert: the last acknowledged version of each document is there, whole; at most one beyond it.
    last = acknowledged[-1]
    assert acknowledged == list(range(last + 1))
    expected = {f"document {i % 50}": i for i in acknowledged}
    beyond = {**expected, f"document {(last + 1) % 50}": last + 1}
    with opened(corpora, "notes") as again:
        found, _ = again.nearest(np.eye(16, dtype=np.float32), 1000)
        held: dict[str, list[tuple[int, ...]]] = {}
        for source, ids in again.read(found.tolist()).values():
            held.setdefault(source.name, []).append(ids)
        versions = {name: max(tokens)[0] for name, tokens in held.items()}
        assert versions in (expected, beyond)
        for name, tokens in held.items():
            assert set(tokens) == {(versions[name], p) for p in range(3)}
            assert again.has(name, f"digest {versions[name]}")
        assert again.counts() == (len(versions), 3 * len(versions))
        add(again, words, "after", "and it can be added to")
        assert texts_near(again, words, "and it can be added to")[0] == "and it can be added to"
    with sqlite3.connect(corpora / "notes" / "corpus.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
