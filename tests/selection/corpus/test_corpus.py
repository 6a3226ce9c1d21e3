"""The corpus: what it keeps, whom it refuses, and that every reader's answer is that of brute force
at once.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from selection.corpus.corpus import Corpus, list_corpora
from selection.corpus.faiss_index import Index
from selection.corpus.sqlite_store import Chunk, CorpusError, CorpusNotFoundError
from selection.embedding import Embedder
from tests.conftest import WordEmbedder
from tests.selection.truth import Held, add, assert_answers_like, texts_near

_TOKENIZER = "0123456789abcdef"


@contextmanager
def opened(root: Path, name: str = "notes") -> Iterator[Corpus]:
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


@pytest.fixture(params=["flat", "lists"])
def early_index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An index is built anew after more than four changes, and, if it is to have lists, has them
    from four on.
    """
    kind = str(request.param)
    use_early_index(monkeypatch, kind)
    return kind


def use_early_index(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("selection.corpus.corpus._MANY_CHANGES", 4)
    if kind == "lists":
        monkeypatch.setattr(Index, "build", functools.partial(Index.build, flat_limit=3))


def index_folders(corpora: Path) -> list[str]:
    return sorted(path.name for path in (corpora / "notes").glob("index-*"))


def test_what_was_added_is_found_with_its_provenance(corpus: Corpus, words: Embedder) -> None:
    cats = add(corpus, words, "cats.txt", "cats purr", "cats sleep all day", group=7)
    add(corpus, words, "ships.txt", "ships sail")

    found, embeddings_KD = corpus.nearest(words.embed(["cats sleep all day"]), 2)
    source, tokens = corpus.read([int(found[0])])[int(found[0])]

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


def test_it_knows_a_document_by_name_and_content(corpus: Corpus, words: Embedder) -> None:
    corpus.add("a", "digest 1", [Chunk(0, "x", (1, 2))], words.embed(["x"]))

    assert corpus.has("a", "digest 1")
    assert not corpus.has("a", "digest 2")
    assert not corpus.has("b", "digest 1")


def test_a_failed_addition_leaves_the_corpus_as_it_was(corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "the words that stay")
    unstorable = Chunk(0, "text", (1 << 40, 2))  # no token id is that large

    with pytest.raises((OverflowError, ValueError)):
        corpus.add(
            "a", "digest", [Chunk(0, "fine", (1, 2)), unstorable], words.embed(["fine", "text"])
        )

    assert texts_near(corpus, words, "fine") == ["the words that stay"]
    add(corpus, words, "b", "and it still takes more")
    assert corpus.counts() == (2, 2)


def test_reopened_it_holds_the_same(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one", "two")
    documents, near = corpus.documents(), texts_near(corpus, words, "two")
    corpus.close()

    with opened(corpora) as again:
        again.check(words, _TOKENIZER)
        assert again.documents() == documents
        assert texts_near(again, words, "two") == near
        assert again.embedder == "words"


def test_creating_it_again_opens_it(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one")

    again = Corpus.create(corpora, "notes", words, _TOKENIZER)

    assert again.counts() == (1, 1)
    again.close()


def test_another_embedder_is_refused(
    corpora: Path, corpus: Corpus, words: Embedder, other_words: Embedder
) -> None:
    for attempt in (
        lambda: corpus.check(other_words),
        lambda: Corpus.create(corpora, "notes", other_words, _TOKENIZER),
    ):
        with pytest.raises(
            CorpusError,
            match=r"'notes' was made with revision '1', not '2': use that .* `mayfly corpus reembed notes`",
        ):
            attempt()
    corpus.check(words)


def test_an_embedder_in_a_folder_is_told_without_the_way_to_it(
    corpora: Path, words: Embedder
) -> None:
    words.name = "/srv/models/mine"
    corpus = Corpus.create(corpora, "notes", words, _TOKENIZER)

    words.name = "org/mine"
    with pytest.raises(
        CorpusError, match="'notes' was made with embedder 'mine', not 'org/mine': "
    ):
        corpus.check(words)
    corpus.close()


def test_another_tokenizer_is_refused(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    for attempt in (
        lambda: corpus.check(words, "other"),
        lambda: corpus.check_tokenizer("other"),
        lambda: Corpus.create(corpora, "notes", words, "other"),
    ):
        with pytest.raises(
            CorpusError, match="'notes' holds the tokens of another model's tokenizer: serve that"
        ):
            attempt()
    corpus.check(words, _TOKENIZER)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "../a", "a b", "ä", "a\n", "a\0", "x" * 65]
)
def test_what_is_not_a_name_is_refused_and_makes_no_folder(
    corpora: Path, words: Embedder, name: str
) -> None:
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


def test_a_corpus_that_is_not_there_is_named_beside_those_that_are(
    corpora: Path, words: Embedder
) -> None:
    with pytest.raises(CorpusNotFoundError, match=r"no corpus 'x' \(there are: none yet\)"):
        Corpus.open(corpora, "x")
    for name in ("b", "a"):
        Corpus.create(corpora, name, words, _TOKENIZER).close()

    with pytest.raises(
        CorpusNotFoundError, match=r"no corpus 'x' \(there are: a, b\); `mayfly corpus add`"
    ):
        Corpus.open(corpora, "x")


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000], ids=["never finished", "garbage"])
def test_a_damaged_or_unfinished_corpus_is_refused(
    corpora: Path, corpus: Corpus, content: bytes
) -> None:
    # What a database can be damaged by is in test_store.
    corpus.close()
    (corpora / "notes" / "corpus.db").write_bytes(content)

    with pytest.raises(CorpusError, match="corpus 'notes' is damaged") as refusal:
        Corpus.open(corpora, "notes")

    assert not isinstance(refusal.value, CorpusNotFoundError)
    assert "delete its folder and add its documents again" in str(refusal.value)
    assert refusal.value.__notes__ == [f"its folder is {corpora / 'notes'}"]


def test_a_corpus_whose_making_was_broken_off_can_be_made(corpora: Path, words: Embedder) -> None:
    (corpora / "notes").mkdir()
    (corpora / "notes" / "corpus.db").touch()

    corpus = Corpus.create(corpora, "notes", words, _TOKENIZER)

    add(corpus, words, "a", "one")
    assert texts_near(corpus, words, "one") == ["one"]
    corpus.close()


def test_removed_it_is_gone(corpora: Path, corpus: Corpus) -> None:
    corpus.remove()

    assert list_corpora(corpora) == []
    assert not (corpora / "notes").exists()


def test_who_has_it_open_when_it_is_removed_and_made_again_is_told(
    corpora: Path, corpus: Corpus, words: Embedder
) -> None:
    # Arrange: one process still holds the corpus that another has removed and made again.
    add(corpus, words, "a", "one")
    texts_near(corpus, words, "one")
    with opened(corpora) as other:
        other.remove()
    made_again = Corpus.create(corpora, "notes", words, _TOKENIZER)
    add(made_again, words, "b", "two")

    for use in (
        lambda: add(corpus, words, "c", "three"),
        lambda: corpus.delete("a"),
        lambda: texts_near(corpus, words, "one"),
    ):
        with pytest.raises(CorpusNotFoundError, match="'notes' was removed meanwhile"):
            use()
    corpus.close()
    made_again.close()

    with opened(corpora) as later:
        assert texts_near(later, words, "two") == ["two"]


def test_a_filter_chooses_among_documents_by_their_metadata(
    corpus: Corpus, words: Embedder
) -> None:
    add(corpus, words, "a", "one", "two", group=1)
    add(corpus, words, "b", "one", "three", group=2)
    add(corpus, words, "c", "one", group=3)

    found, _ = corpus.nearest(
        words.embed(["one"]), 10, {"type": "in", "key": "group", "value": [2, 3]}
    )

    read = corpus.read(found.tolist())
    assert [read[i][0].text for i in found.tolist()] == ["one", "one", "three"]
    assert {source.name for source, _ in read.values()} == {"b", "c"}
    with pytest.raises(ValueError, match="a filter"):
        corpus.nearest(words.embed(["one"]), 10, {"type": "eq"})
    assert len(texts_near(corpus, words, "one")) == 5


@pytest.mark.parametrize(
    "harm", ["no manifest", "no folder", "damaged", "senseless", "another corpus's"]
)
def test_the_index_is_made_again_when_it_cannot_be_used(
    corpora: Path, corpus: Corpus, words: Embedder, harm: str, early_index: str
) -> None:
    # Arrange: a corpus whose index on disk is gone, damaged, or not its own.
    texts = ("one", "two", "three", "four", "five")
    add(corpus, words, "a", *texts)
    corpus.build_index()
    manifest = corpora / "notes" / "index.json"
    (index,) = (corpora / "notes" / name for name in index_folders(corpora))
    if harm == "no manifest":
        manifest.unlink()
    elif harm == "no folder":
        shutil.rmtree(index)
    elif harm == "damaged":
        content = bytearray((index / "vectors").read_bytes())
        content[-1] ^= 1
        (index / "vectors").write_bytes(content)
    elif harm == "senseless":
        manifest.write_text("[]")
    else:
        other = Corpus.create(corpora, "other", words, _TOKENIZER)
        add(other, words, "a", "six", "seven", "eight", "nine", "ten")
        other.build_index()
        shutil.copytree(
            corpora / "other", corpora / "notes", dirs_exist_ok=True, ignore=_not_the_database
        )
        other.close()

    # Act: another process would open it like this.
    with opened(corpora) as again:
        assert_answers_like(again, words, {"a": Held(texts)}, "two")

    (made,) = index_folders(corpora)
    assert made != index.name
    with opened(corpora) as later:  # and the next uses what was made
        assert_answers_like(later, words, {"a": Held(texts)}, "two", k=2)
    assert index_folders(corpora) == [made]


def _not_the_database(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("corpus.db")]


def test_an_index_from_after_a_backup_is_not_used_with_it(
    corpora: Path, corpus: Corpus, words: Embedder, early_index: str
) -> None:
    # Arrange: the database is put back, the later index stays.
    texts = ("one", "two", "three", "four", "five")
    add(corpus, words, "a", *texts)
    corpus.close()
    backup = (corpora / "notes" / "corpus.db").read_bytes()
    with opened(corpora) as later:
        add(later, words, "b", "six", "seven", "eight", "nine", "ten")
        later.delete("a")
        later.build_index()
    (corpora / "notes" / "corpus.db").write_bytes(backup)

    with opened(corpora) as restored:
        assert_answers_like(restored, words, {"a": Held(texts)}, "two")


def test_two_readers_make_the_index_once(
    corpora: Path, corpus: Corpus, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: another reader comes while this one has written a file of the index and not yet put
    # it in its place.
    add(corpus, words, "a", "one", "two")
    plain_fsync = os.fsync
    seen: list[list[str]] = []
    waited: list[bool] = []

    def read() -> None:
        with opened(corpora) as other:
            seen.append(texts_near(other, words, "two"))

    reader = threading.Thread(target=read)

    def slow_fsync(descriptor: int) -> None:
        plain_fsync(descriptor)
        monkeypatch.setattr(os, "fsync", plain_fsync)
        reader.start()
        reader.join(0.3)
        waited.append(reader.is_alive())

    monkeypatch.setattr(os, "fsync", slow_fsync)

    near = texts_near(corpus, words, "two")
    made = index_folders(corpora)
    reader.join()

    assert [near] == seen == [["two", "one"]]
    assert waited == [True]
    assert index_folders(corpora) == made


def test_a_second_reader_uses_the_index_on_disk(
    corpora: Path, corpus: Corpus, words: Embedder
) -> None:
    add(corpus, words, "a", "one")
    corpus.build_index()
    made = index_folders(corpora)

    with opened(corpora) as again:
        assert texts_near(again, words, "one") == ["one"]

    assert index_folders(corpora) == made


def test_an_index_is_built_anew_when_much_has_changed_and_readers_take_it_over(
    corpora: Path, corpus: Corpus, words: Embedder, early_index: str
) -> None:
    # Arrange: a reader with the index of the first four sequences.
    model = {"a": Held(("one", "two", "three", "four"))}
    add(corpus, words, "a", *model["a"].texts)
    corpus.build_index()
    first = index_folders(corpora)
    with opened(corpora) as reader:
        assert_answers_like(reader, words, model, "one")

        # Act: few changes are searched beside the index; with more it is built anew, and its folder
        # replaced.
        model["b"] = Held(("five", "six"))
        add(corpus, words, "b", *model["b"].texts)
        corpus.build_index()
        assert index_folders(corpora) == first
        assert_answers_like(reader, words, model, "six")

        model["c"] = Held(("seven", "eight", "nine"))
        del model["a"]
        add(corpus, words, "c", *model["c"].texts)
        corpus.delete("a")
        corpus.build_index()
        second = index_folders(corpora)

        assert len(second) == 1
        assert second != first
        assert_answers_like(reader, words, model, "nine")
        add(corpus, words, "d", "ten")
        assert_answers_like(reader, words, {**model, "d": Held(("ten",))}, "ten", k=1)
    assert index_folders(corpora) == second


def test_a_reader_sees_what_another_added(corpora: Path, corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "a", "one")
    with opened(corpora) as reader:
        assert texts_near(reader, words, "two") == ["one"]

        add(corpus, words, "b", "two")

        assert texts_near(reader, words, "two") == ["two", "one"]


@pytest.mark.parametrize(
    "only", [None, {"type": "eq", "key": "group", "value": 0}], ids=["all", "filtered"]
)
def test_a_reader_never_sees_half_a_document(
    corpora: Path, corpus: Corpus, words: Embedder, only: dict[str, object] | None, early_index: str
) -> None:
    # Arrange: a writer that replaces one document of three sequences again and again, each time
    # with other words.
    versions = [tuple(f"version{v} part{p}" for p in range(3)) for v in range(60)]
    add(corpus, words, "a", *versions[0])

    def write() -> None:
        with opened(corpora) as writer:
            for number, version in enumerate(versions[1:]):
                add(writer, words, "a", *version)
                if number % 7 == 0:
                    writer.build_index()

    writing = threading.Thread(target=write)

    # Act: read as long as it writes.
    seen: list[tuple[str, ...]] = []
    writing.start()
    while writing.is_alive():
        assert corpus.counts() == (1, 3)
        found, embeddings_KD = corpus.nearest(words.embed(["version"]), 10, only)
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


_VOCABULARY = ("cat", "dog", "purrs", "barks", "the", "a")
_texts = st.lists(
    st.lists(st.sampled_from(_VOCABULARY), min_size=1, max_size=2).map(" ".join), max_size=4
)
_names = st.sampled_from([f"document {i}" for i in range(5)])
_groups = st.integers(0, 2)


class TwoProcesses(RuleBasedStateMachine):
    """A writer and a reader of one folder, beside a dict of what must be in it.

    Few words and dimensions make many sequences alike, or opposite.
    """

    kind = "flat"

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        use_early_index(self.patch, self.kind)
        self.root = Path(tempfile.mkdtemp())
        self.embedder: Embedder = WordEmbedder(dimension=3)
        self.model: dict[str, Held] = {}
        self.ids: dict[str, int] = {}

    @initialize()
    def make(self) -> None:
        self.writer = Corpus.create(self.root, "notes", self.embedder, _TOKENIZER)
        self.reader = Corpus.open(self.root, "notes")

    @rule(name=_names, texts=_texts, group=_groups)
    def add_or_replace(self, name: str, texts: list[str], group: int) -> None:
        self.ids[name] = add(self.writer, self.embedder, name, *texts, group=group)
        self.model[name] = Held(tuple(texts), group)

    @rule(name=_names, by_id=st.booleans())
    def delete(self, name: str, by_id: bool) -> None:
        document = self.ids.get(name, 999) if by_id else name

        assert self.writer.delete(document) is (name in self.model)

        self.model.pop(name, None)

    @rule(of_reader=st.booleans())
    def build_index(self, of_reader: bool) -> None:
        (self.reader if of_reader else self.writer).build_index()

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
    def embed_anew(self) -> None:
        self.embedder = WordEmbedder(dimension=7 - self.embedder.dimension)
        self.writer.reembed(self.embedder)

    @rule(
        word=st.sampled_from([*_VOCABULARY, "unheard of"]),
        k=st.sampled_from([1, 3, None]),
        group=st.one_of(st.none(), _groups),
    )
    def search(self, word: str, k: int | None, group: int | None) -> None:
        for corpus in (self.writer, self.reader):
            assert_answers_like(corpus, self.embedder, self.model, word, k, group)

    @invariant()
    def both_hold_the_same(self) -> None:
        if hasattr(self, "reader"):
            expected = [
                (name, len(held.texts), held.metadata) for name, held in sorted(self.model.items())
            ]
            for corpus in (self.writer, self.reader):
                assert [(e.name, e.sequences, e.metadata) for e in corpus.documents()] == expected
                assert corpus.counts() == (len(expected), sum(count for _, count, _ in expected))

    def teardown(self) -> None:
        self.patch.undo()
        self.writer.close()
        self.reader.close()
        shutil.rmtree(self.root)


class TwoProcessesWithLists(TwoProcesses):
    """The same with inverted lists from four sequences on."""

    kind = "lists"


_bounded = settings(max_examples=30, stateful_step_count=30, deadline=None)
TwoProcesses.TestCase.settings = _bounded
TwoProcessesWithLists.TestCase.settings = _bounded
TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcessesWithLists = TwoProcessesWithLists.TestCase
