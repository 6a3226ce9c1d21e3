"""The corpus: its contents, what it refuses, and searches that always equal brute force."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from selection.corpus.corpus import Corpus
from selection.corpus.index.faiss_index import Index
from selection.corpus.lookup import list_corpora
from selection.corpus.sqlite_store import Chunk, CorpusError, CorpusNotFoundError
from selection.embedding import Embedder
from selection.location import Location
from tests.conftest import WordEmbedder
from tests.selection.brute_force import Document, add, assert_equals_brute_force, texts_near

_TOKENIZER = "0123456789abcdef"


@contextmanager
def open_corpus(root: Location, name: str = "notes") -> Iterator[Corpus]:
    corpus = Corpus.open(root, name)
    try:
        yield corpus
    finally:
        corpus.close()


@pytest.fixture
def corpus(location: Location, words: Embedder) -> Iterator[Corpus]:
    """An empty corpus named `notes`."""
    corpus = Corpus.create(location, "notes", words, _TOKENIZER)
    yield corpus
    corpus.close()


@pytest.fixture(params=["flat", "lists"])
def early_index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rebuild indexes after more than four changes; "lists" has lists from four vectors on."""
    kind = str(request.param)
    use_early_index(monkeypatch, kind)
    return kind


def use_early_index(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("selection.corpus.index.manager._MAX_CHANGES", 4)
    if kind == "lists":
        monkeypatch.setattr(Index, "build", functools.partial(Index.build, flat_limit=3))


@pytest.fixture
def sqlite_corpus(corpora: Path, words: Embedder) -> Iterator[Corpus]:
    """An empty corpus named `notes` in a folder."""
    corpus = Corpus.create(corpora, "notes", words, _TOKENIZER)
    yield corpus
    corpus.close()


def index_folders(corpus: Corpus) -> list[str]:
    return sorted(path.name for path in corpus.folder.glob("index-*"))


def test_what_was_added_is_found_with_its_provenance(corpus: Corpus, words: Embedder) -> None:
    cats = add(corpus, words, "cats.txt", "cats purr", "cats sleep all day", group=7)
    add(corpus, words, "ships.txt", "ships sail")

    found, embeddings_KD = corpus.nearest(words.embed(["cats sleep all day"]), 2)
    read = corpus.read([int(found[0])])[int(found[0])]
    source, tokens = read.source, read.tokens

    assert (source.document, source.name, source.start, source.text) == (
        cats,
        "cats.txt",
        10,
        "cats sleep all day",
    )
    assert source.metadata == {"group": 7}
    assert tokens == tuple(ord(c) for c in "cats sleep all day")
    np.testing.assert_array_equal(embeddings_KD[:1], words.embed(["cats sleep all day"]))
    assert corpus.counts() == (2, 3)
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == [
        ("cats.txt", 2),
        ("ships.txt", 1),
    ]


def test_an_empty_corpus_has_nothing_near(corpus: Corpus, words: Embedder) -> None:
    for k in (10, None):
        found, embeddings_KD = corpus.nearest(words.embed(["anything"]), k)

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


def test_a_document_is_recognised_by_name_and_content(corpus: Corpus, words: Embedder) -> None:
    corpus.add("a", "digest 1", [Chunk(0, "x", (1, 2))], words.embed(["x"]))

    assert corpus.has("a", "digest 1")
    assert not corpus.has("a", "digest 2")
    assert not corpus.has("b", "digest 1")


def test_a_failed_addition_does_not_change_the_corpus(corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "the words that stay")
    # Token ids are stored in 32 bits.
    unstorable = Chunk(0, "text", (1 << 40, 2))

    with pytest.raises((OverflowError, ValueError)):
        corpus.add(
            "a", "digest", [Chunk(0, "fine", (1, 2)), unstorable], words.embed(["fine", "text"])
        )

    assert texts_near(corpus, words, "fine") == ["the words that stay"]
    add(corpus, words, "b", "and it still takes more")
    assert corpus.counts() == (2, 2)


def test_a_reopened_corpus_is_unchanged(
    location: Location, corpus: Corpus, words: Embedder
) -> None:
    add(corpus, words, "a", "one", "two")
    documents, near = corpus.documents(), texts_near(corpus, words, "two")
    corpus.close()

    with open_corpus(location) as again:
        again.check(words, _TOKENIZER)
        assert again.documents() == documents
        assert texts_near(again, words, "two") == near
        assert again.embedder == "words"


def test_creating_an_existing_corpus_opens_it(
    location: Location, corpus: Corpus, words: Embedder
) -> None:
    add(corpus, words, "a", "one")

    again = Corpus.create(location, "notes", words, _TOKENIZER)

    assert again.counts() == (1, 1)
    again.close()


def test_another_embedder_is_refused(
    location: Location, corpus: Corpus, words: Embedder, other_words: Embedder
) -> None:
    for attempt in (
        lambda: corpus.check(other_words),
        lambda: Corpus.create(location, "notes", other_words, _TOKENIZER),
    ):
        with pytest.raises(
            CorpusError,
            match=r"'notes' was made with revision '1', not '2': use that .* "
            r"`mayfly corpus reembed notes`",
        ):
            attempt()
    corpus.check(words)


def test_errors_do_not_reveal_the_folder_of_an_embedder(
    location: Location, words: Embedder
) -> None:
    words.name = "/srv/models/mine"
    corpus = Corpus.create(location, "notes", words, _TOKENIZER)

    words.name = "org/mine"
    with pytest.raises(
        CorpusError, match="'notes' was made with embedder 'mine', not 'org/mine': "
    ):
        corpus.check(words)
    corpus.close()


def test_another_tokenizer_is_refused(location: Location, corpus: Corpus, words: Embedder) -> None:
    for attempt in (
        lambda: corpus.check(words, "other"),
        lambda: corpus.check_tokenizer("other"),
        lambda: Corpus.create(location, "notes", words, "other"),
    ):
        with pytest.raises(
            CorpusError, match="'notes' contains tokens of another model's tokenizer: serve that"
        ):
            attempt()
    corpus.check(words, _TOKENIZER)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a b", "ä", "a\n", "a\0", "x" * 65]
)
def test_an_invalid_name_is_refused_without_creating_a_folder(
    corpora: Path, words: Embedder, name: str
) -> None:
    with pytest.raises(CorpusError, match="not a corpus name"):
        Corpus.create(corpora, name, words, _TOKENIZER)
    with pytest.raises(CorpusNotFoundError):
        Corpus.open(corpora, name)

    assert list(corpora.parent.rglob("*.db")) == []
    assert list(corpora.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "0", "Py-3.11_x", "x" * 64])
def test_valid_names_are_accepted(location: Location, words: Embedder, name: str) -> None:
    Corpus.create(location, name, words, _TOKENIZER).close()

    assert list_corpora(location) == [name]


def test_the_error_for_a_missing_corpus_lists_the_existing_ones(
    location: Location, words: Embedder
) -> None:
    with pytest.raises(CorpusNotFoundError, match=r"no corpus 'x' \(existing corpora: none yet\)"):
        Corpus.open(location, "x")
    for name in ("b", "a"):
        Corpus.create(location, name, words, _TOKENIZER).close()

    with pytest.raises(
        CorpusNotFoundError,
        match=r"no corpus 'x' \(existing corpora: a, b\); create one with `mayfly corpus add`",
    ):
        Corpus.open(location, "x")


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000], ids=["never finished", "garbage"])
def test_a_damaged_or_incomplete_corpus_is_refused(
    corpora: Path, sqlite_corpus: Corpus, content: bytes
) -> None:
    # test_sqlite_store tests other kinds of damage.
    sqlite_corpus.close()
    (corpora / "notes" / "corpus.db").write_bytes(content)

    with pytest.raises(CorpusError, match="corpus 'notes' is damaged") as refusal:
        Corpus.open(corpora, "notes")

    assert not isinstance(refusal.value, CorpusNotFoundError)
    assert "delete its folder and add its documents again" in str(refusal.value)
    assert refusal.value.__notes__ == [f"its folder is {corpora / 'notes'}"]


def test_an_interrupted_creation_can_be_repeated(corpora: Path, words: Embedder) -> None:
    (corpora / "notes").mkdir()
    (corpora / "notes" / "corpus.db").touch()

    corpus = Corpus.create(corpora, "notes", words, _TOKENIZER)

    add(corpus, words, "a", "one")
    assert texts_near(corpus, words, "one") == ["one"]
    corpus.close()


def test_a_removed_corpus_leaves_nothing(location: Location, corpus: Corpus) -> None:
    corpus.remove()

    assert list_corpora(location) == []
    assert not corpus.folder.exists()


def test_a_corpus_is_removed_although_a_reader_deletes_a_file_meanwhile(
    corpora: Path, sqlite_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def unlink_late(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        if dir_fd is not None:
            monkeypatch.setattr(os, "unlink", unlink)
            raise FileNotFoundError(path)

    (corpora / "notes" / "calibration.json").touch()
    monkeypatch.setattr(os, "unlink", unlink_late)
    sqlite_corpus.remove()

    assert list_corpora(corpora) == []
    assert not (corpora / "notes").exists()


def test_an_open_corpus_that_was_replaced_raises_an_error(
    location: Location, corpus: Corpus, words: Embedder
) -> None:
    # Arrange: another process removes and recreates a corpus that is open here.
    add(corpus, words, "a", "one")
    texts_near(corpus, words, "one")
    with open_corpus(location) as other:
        other.remove()
    made_again = Corpus.create(location, "notes", words, _TOKENIZER)
    add(made_again, words, "b", "two")

    for use in (
        lambda: add(corpus, words, "c", "three"),
        lambda: corpus.delete("a"),
        lambda: texts_near(corpus, words, "one"),
    ):
        with pytest.raises(CorpusNotFoundError, match="'notes' was removed in the meantime"):
            use()
    corpus.close()
    made_again.close()

    with open_corpus(location) as later:
        assert texts_near(later, words, "two") == ["two"]


def test_a_filter_selects_documents_by_their_metadata(corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one", "two", group=1)
    add(corpus, words, "b", "one", "three", group=2)
    add(corpus, words, "c", "one", group=3)

    found, _ = corpus.nearest(
        words.embed(["one"]), 10, {"type": "in", "key": "group", "value": [2, 3]}
    )

    read = corpus.read(found.tolist())
    assert [read[i].source.text for i in found.tolist()] == ["one", "one", "three"]
    assert {each.source.name for each in read.values()} == {"b", "c"}
    with pytest.raises(ValueError, match="a filter"):
        corpus.nearest(words.embed(["one"]), 10, {"type": "eq"})
    assert len(texts_near(corpus, words, "one")) == 5


@pytest.mark.parametrize(
    "damage", ["no manifest", "no folder", "damaged", "no object", "another corpus's"]
)
def test_an_unusable_index_is_rebuilt(
    location: Location, corpus: Corpus, words: Embedder, damage: str, early_index: str
) -> None:
    # Arrange: a corpus whose index on disk is missing, damaged, or another corpus's.
    texts = ("one", "two", "three", "four", "five")
    add(corpus, words, "a", *texts)
    corpus.build_index()
    manifest = corpus.folder / "index.json"
    (index,) = (corpus.folder / name for name in index_folders(corpus))
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "no folder":
        shutil.rmtree(index)
    elif damage == "damaged":
        content = bytearray((index / "vectors").read_bytes())
        content[-1] ^= 1
        (index / "vectors").write_bytes(content)
    elif damage == "no object":
        manifest.write_text("[]")
    else:
        other = Corpus.create(location, "other", words, _TOKENIZER)
        add(other, words, "a", "six", "seven", "eight", "nine", "ten")
        other.build_index()
        shutil.copytree(other.folder, corpus.folder, dirs_exist_ok=True, ignore=_not_the_database)
        other.close()

    # Act: open it as another process would.
    with open_corpus(location) as again:
        assert_equals_brute_force(again, words, {"a": Document(texts)}, "two")

    (built,) = index_folders(corpus)
    assert built != index.name
    # The next process uses the rebuilt index.
    with open_corpus(location) as later:
        assert_equals_brute_force(later, words, {"a": Document(texts)}, "two", k=2)
    assert index_folders(corpus) == [built]


def _not_the_database(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("corpus.db")]


def test_an_index_newer_than_a_restored_backup_is_not_used(
    corpora: Path, sqlite_corpus: Corpus, words: Embedder, early_index: str
) -> None:
    # Arrange: the database is restored from a backup, the index is newer.
    texts = ("one", "two", "three", "four", "five")
    add(sqlite_corpus, words, "a", *texts)
    sqlite_corpus.close()
    backup = (corpora / "notes" / "corpus.db").read_bytes()
    with open_corpus(corpora) as later:
        add(later, words, "b", "six", "seven", "eight", "nine", "ten")
        later.delete("a")
        later.build_index()
    (corpora / "notes" / "corpus.db").write_bytes(backup)

    with open_corpus(corpora) as restored:
        assert_equals_brute_force(restored, words, {"a": Document(texts)}, "two")


def test_two_readers_build_the_index_once(
    location: Location, corpus: Corpus, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: another reader starts when this one has written a file of the index, which is not in
    # place yet.
    add(corpus, words, "a", "one", "two")
    original_fsync = os.fsync
    seen: list[list[str]] = []
    waited: list[bool] = []

    def read() -> None:
        with open_corpus(location) as other:
            seen.append(texts_near(other, words, "two"))

    reader = threading.Thread(target=read)

    def slow_fsync(descriptor: int) -> None:
        original_fsync(descriptor)
        monkeypatch.setattr(os, "fsync", original_fsync)
        reader.start()
        reader.join(0.3)
        waited.append(reader.is_alive())

    monkeypatch.setattr(os, "fsync", slow_fsync)

    near = texts_near(corpus, words, "two")
    built = index_folders(corpus)
    reader.join()

    assert [near] == seen == [["two", "one"]]
    assert waited == [True]
    assert index_folders(corpus) == built


def test_a_second_reader_uses_the_index_on_disk(
    location: Location, corpus: Corpus, words: Embedder
) -> None:
    add(corpus, words, "a", "one")
    corpus.build_index()
    built = index_folders(corpus)

    with open_corpus(location) as again:
        assert texts_near(again, words, "one") == ["one"]

    assert index_folders(corpus) == built


def test_an_index_is_rebuilt_after_many_changes_and_readers_load_it(
    location: Location, corpus: Corpus, words: Embedder, early_index: str
) -> None:
    # Arrange: a reader with the index of the first four sequences.
    model = {"a": Document(("one", "two", "three", "four"))}
    add(corpus, words, "a", *model["a"].texts)
    corpus.build_index()
    first = index_folders(corpus)
    with open_corpus(location) as reader:
        assert_equals_brute_force(reader, words, model, "one")

        # Act: few changes are searched beside the index; after more, the index is rebuilt and its
        # folder replaced.
        model["b"] = Document(("five", "six"))
        add(corpus, words, "b", *model["b"].texts)
        corpus.build_index()
        assert index_folders(corpus) == first
        assert_equals_brute_force(reader, words, model, "six")

        model["c"] = Document(("seven", "eight", "nine"))
        del model["a"]
        add(corpus, words, "c", *model["c"].texts)
        corpus.delete("a")
        corpus.build_index()
        second = index_folders(corpus)

        assert len(second) == 1
        assert second != first
        assert_equals_brute_force(reader, words, model, "nine")
        add(corpus, words, "d", "ten")
        assert_equals_brute_force(reader, words, {**model, "d": Document(("ten",))}, "ten", k=1)
    assert index_folders(corpus) == second


def test_a_reader_sees_what_another_process_added(
    location: Location, corpus: Corpus, words: Embedder
) -> None:
    add(corpus, words, "a", "one")
    with open_corpus(location) as reader:
        assert texts_near(reader, words, "two") == ["one"]

        add(corpus, words, "b", "two")

        assert texts_near(reader, words, "two") == ["two", "one"]


@pytest.mark.parametrize(
    "filter", [None, {"type": "eq", "key": "group", "value": 0}], ids=["all", "filtered"]
)
def test_a_reader_never_sees_half_a_document(
    location: Location,
    corpus: Corpus,
    words: Embedder,
    filter: dict[str, object] | None,
    early_index: str,
) -> None:
    # Arrange: a writer that replaces one document of three sequences repeatedly, each time with
    # other words.
    versions = [tuple(f"version{v} part{p}" for p in range(3)) for v in range(60)]
    add(corpus, words, "a", *versions[0])

    def write() -> None:
        with open_corpus(location) as writer:
            for number, version in enumerate(versions[1:]):
                add(writer, words, "a", *version)
                if number % 7 == 0:
                    writer.build_index()

    writing = threading.Thread(target=write)

    # Act: read while it writes.
    seen: list[tuple[str, ...]] = []
    writing.start()
    while writing.is_alive():
        assert corpus.counts() == (1, 3)
        found, embeddings_KD = corpus.nearest(words.embed(["version"]), 10, filter)
        read = corpus.read(found.tolist())
        assert len(found) == 3
        # None if the document was replaced between search and reading.
        assert len(read) in (0, 3)
        if read:
            texts = [read[i].source.text for i in found.tolist()]
            np.testing.assert_array_equal(embeddings_KD, words.embed(texts))
            seen.append(tuple(sorted(texts)))
    writing.join()

    assert set(seen) <= set(versions)
    assert tuple(sorted(texts_near(corpus, words, "version"))) == versions[-1]


_VOCABULARY = ("cat", "dog", "purrs", "barks", "the", "a")
_texts = st.lists(
    st.lists(st.sampled_from(_VOCABULARY), min_size=1, max_size=2).map(" ".join), max_size=4
)
_names = st.sampled_from([f"document {i}" for i in range(5)])
_groups = st.integers(0, 2)


class TwoProcesses(RuleBasedStateMachine):
    """A writer and a reader of one corpus, compared with a dict of its documents.

    Few words and dimensions make many sequences equal or opposite.
    """

    root: Location

    def __init__(self) -> None:
        super().__init__()
        self.embedder: Embedder = WordEmbedder(dimension=3)
        self.model: dict[str, Document] = {}
        self.ids: dict[str, int] = {}

    @initialize()
    def make(self) -> None:
        self.writer = Corpus.create(self.root, "notes", self.embedder, _TOKENIZER)
        self.reader = Corpus.open(self.root, "notes")

    @rule(name=_names, texts=_texts, group=_groups)
    def add_or_replace(self, name: str, texts: list[str], group: int) -> None:
        self.ids[name] = add(self.writer, self.embedder, name, *texts, group=group)
        self.model[name] = Document(tuple(texts), group)

    @rule(name=_names, by_id=st.booleans())
    def delete(self, name: str, by_id: bool) -> None:
        document = self.ids.get(name, 999) if by_id else name

        assert self.writer.delete(document) is (name in self.model)

        self.model.pop(name, None)

    @rule(by_reader=st.booleans())
    def build_index(self, by_reader: bool) -> None:
        (self.reader if by_reader else self.writer).build_index()

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = Corpus.open(self.root, "notes")
        self.writer.check(self.embedder, _TOKENIZER)

    @rule()
    def exchange(self) -> None:
        self.writer, self.reader = self.reader, self.writer
        self.writer.check(self.embedder, _TOKENIZER)

    @rule()
    def reembed(self) -> None:
        self.embedder = WordEmbedder(dimension=7 - self.embedder.dimension)
        self.writer.reembed(self.embedder)

    @rule(
        word=st.sampled_from([*_VOCABULARY, "unknown"]),
        k=st.sampled_from([1, 3, None]),
        group=st.one_of(st.none(), _groups),
    )
    def search(self, word: str, k: int | None, group: int | None) -> None:
        for corpus in (self.writer, self.reader):
            assert_equals_brute_force(corpus, self.embedder, self.model, word, k, group)

    @invariant()
    def both_list_the_same(self) -> None:
        if hasattr(self, "reader"):
            expected = [
                (name, len(document.texts), document.metadata)
                for name, document in sorted(self.model.items())
            ]
            for corpus in (self.writer, self.reader):
                assert [(e.name, e.sequences, e.metadata) for e in corpus.documents()] == expected
                assert corpus.counts() == (len(expected), sum(count for _, count, _ in expected))

    def teardown(self) -> None:
        self.writer.remove()
        self.reader.close()


def test_two_processes_see_the_same_documents(location: Location, early_index: str) -> None:
    class Here(TwoProcesses):
        root = location

    examples = 30 if isinstance(location, Path) else 10
    run_state_machine_as_test(
        Here, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None)
    )
