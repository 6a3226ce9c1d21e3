"""Rows of JSON lines and Parquet files: all rows of a file, or none if one is invalid."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from selection.corpus.sqlite_store import CorpusError
from selection.errors import ExampleError
from selection.examples.example import Example, parse_example
from selection.ingest import parquet, tables
from selection.ingest.readers import Document, IngestCounts, read_file


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_each_json_line_is_a_document(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "eins\nzwei"},
        {"text": "ü", "id": "umlaut", "more": [1]},
    ]
    file = write(tmp_path / name, "\n".join(json.dumps(row) for row in rows) + "\n\n")

    assert list(read_file(file, "t")) == [Document("t#1", "eins\nzwei"), Document("t#umlaut", "ü")]


def test_rows_may_have_metadata(tmp_path: Path) -> None:
    expected: list[dict[str, Any] | None] = [
        {"language": "de", "year": 2024, "score": -0.5, "draft": True},
        {},
        None,
    ]
    rows: list[dict[str, Any]] = [{"text": "eins", "metadata": metadata} for metadata in expected]
    lines = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), table)

    assert [document.metadata for document in read_file(lines, "t")] == [expected[0], {}, {}]
    assert [document.metadata for document in read_file(table, "t")] == [expected[0]]


@pytest.mark.parametrize(
    "metadata",
    [
        '{"a": [1]}',
        '{"a": {"b": 1}}',
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
    file = write(
        tmp_path / "t.jsonl", f'{{"text": "fine"}}\n{{"text": "x", "metadata": {metadata}}}\n'
    )

    with pytest.raises(
        CorpusError, match="t, row 2: expected an object of strings, finite numbers, true and"
    ):
        next(read_file(file, "t"))


def test_each_parquet_row_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    table = pyarrow.table({"label": [0, 1], "text": ["one", "two"], "id": [41, 42]})
    pyarrow.parquet.write_table(table, file)
    bare = tmp_path / "bare.parquet"
    pyarrow.parquet.write_table(table.select(["text"]), bare)

    assert list(read_file(file, "t")) == [Document('t#"41"', "one"), Document('t#"42"', "two")]
    assert list(read_file(bare, "t")) == [Document("t#1", "one"), Document("t#2", "two")]


def test_rows_whose_id_is_null_are_numbered(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": None, "text": "one"},
        {"id": 0, "text": "two"},
        {"id": None, "text": "three"},
    ]
    lines = write(tmp_path / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    expected = [Document("t#1", "one"), Document('t#"0"', "two"), Document("t#3", "three")]

    assert list(read_file(lines, "t")) == expected
    assert list(read_file(table, "t")) == expected


@pytest.mark.parametrize(
    ("second_row", "message"),
    [
        ('{"text": 5}', "t, row 2: expected a string in the field `text`, not a number"),
        ('{"text": ["x"]}', "t, row 2: expected a string in the field `text`, not a list"),
        ('["text"]', "t, row 2: expected a field `text`, .* in an object, not a list"),
        ("null", "t, row 2: expected a field `text`, .* in an object, not null"),
        ('{"text": "x", "id": [1]}', "t, row 2: expected a string or a number in `id`, not a list"),
        ('{"text": "x", "id": NaN}', "t, row 2: expected a string or a number in `id`, not nan"),
        (r'{"text": "x", "id": "\ud800"}', "t, row 2: its `id` is not Unicode text"),
        (
            r'{"text": "half of \ud83d"}',
            "t, row 2: expected Unicode text in the field `text`",
        ),
        ("not json", r"t, line 2: not JSON"),
        ('{"text": "x"', r"t, line 2: not JSON"),
    ],
)
def test_an_invalid_row_of_json_lines_is_named(
    tmp_path: Path, second_row: str, message: str
) -> None:
    file = write(tmp_path / "t.jsonl", f'{{"text": "fine"}}\n{second_row}\n')

    with pytest.raises(CorpusError, match=message):
        next(read_file(file, "t"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("field", "row"),
    [
        ("text", {"text": "a\0b"}),
        ("id", {"text": "x", "id": "a\0b"}),
        ("metadata", {"text": "x", "metadata": {"kind": "a\0b"}}),
        ("metadata", {"text": "x", "metadata": {"a\0b": 1}}),
        ("example", {"prompt": "a\0b", "completion": "Me."}),
        ("id", {"prompt": "Who?", "completion": "Me.", "id": "\0"}),
    ],
)
def test_a_null_character_is_named_with_its_row(
    tmp_path: Path, kind: str, field: str, row: dict[str, Any]
) -> None:
    file = write_rows(tmp_path, kind, [{"text": "fine"}, row])

    with pytest.raises(
        CorpusError, match=rf"^t, row 2: its `{field}` contains the character U\+0000: remove it$"
    ):
        next(read_file(file, "t"))


def test_an_escape_that_only_looks_like_a_null_character_is_text(tmp_path: Path) -> None:
    text = r"\u0000"
    row = {"text": text, "id": text, "metadata": {text: text}}

    (document,) = read_file(write_rows(tmp_path, "jsonl", [row]), "t")

    assert document == Document(f"t#{text}", text, {text: text})


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.jsonl", b'{"text": "fine"}\n' + '{"text": "Größe"}\n'.encode("latin-1")
    )

    with pytest.raises(CorpusError, match=r"^t, line 2: not JSON in UTF-8"):
        next(read_file(file, "t"))


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


@pytest.mark.parametrize(
    "columns", [{"body": ["x"]}, {"id": [1]}, {"text": [b"x"]}, {"text": [None, ""]}]
)
def test_parquet_without_texts_is_refused(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    file = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), file)

    with pytest.raises(CorpusError, match="field `text`"):
        list(read_file(file, "t"))


def write_rows(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """Write the rows to a file of that kind."""
    file = folder / f"t.{kind}"
    if kind == "jsonl":
        return write(file, "".join(json.dumps(row) + "\n" for row in rows))
    # pyarrow takes the columns from the first row.
    columns = dict.fromkeys(key for row in rows for key in row)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([columns | row for row in rows]), file)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_null_is_an_absent_key(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "metadata": {"lang": "de", "year": 1}},
        {"text": "b", "metadata": {"lang": None, "year": 2}},
        {"text": "c", "metadata": None},
    ]

    documents = list(read_file(write_rows(tmp_path, kind, rows), "t"))

    assert [document.metadata for document in documents] == [
        {"lang": "de", "year": 1},
        {"year": 2},
        {},
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_without_a_text_are_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": "one"},
        {"id": "b", "text": None},
        {"id": "c", "text": ""},
    ]
    file = write_rows(tmp_path, kind, [*rows, {"id": "d"}, {"text": "five"}])
    counts = IngestCounts()

    documents = list(read_file(file, "t", counts=counts))

    assert documents == [Document("t#a", "one"), Document("t#5", "five")]
    assert counts == IngestCounts(skipped=3)


@pytest.mark.parametrize("rows", [[{"id": "x"}], [{"text": None}, {"text": ""}]])
def test_a_file_without_any_text_is_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(
        CorpusError, match=r"t, row 1: expected a field `text`, .*; no row of the file has one"
    ):
        list(read_file(write_rows(tmp_path, "jsonl", rows), "t"))


ASK, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}
CALL = {"type": "function", "function": {"name": "clock", "arguments": '{"zone": 1}'}}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_texts_and_examples_may_be_mixed(tmp_path: Path, kind: str) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    calling = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
        ANSWER,
    ]
    rows: list[dict[str, Any]] = [
        {"text": "one"},
        {"messages": [ASK, ANSWER], "id": "chat", "metadata": {"year": 2026}},
        {"prompt": "Who?", "completion": "Me."},
        {"messages": calling, "tools": [tool]},
        {"text": None, "messages": None},
    ]
    counts = IngestCounts()

    text, chat, pair, tools = read_file(write_rows(tmp_path, kind, rows), "t", counts=counts)

    assert (text.text, text.example) == ("one", None)
    assert (chat.name, chat.metadata) == ("t#chat", {"year": 2026})
    assert chat.example == pair.example == parse_example({"messages": [ASK, ANSWER]}, "t")
    assert chat.text == "user: Who?\nassistant: Me."
    assert tools.example == parse_example(rows[3], "t")
    assert counts == IngestCounts(skipped=1)


def test_a_prompt_of_parquet_may_be_a_list_of_messages(tmp_path: Path) -> None:
    row = {"prompt": [ASK], "completion": [{"role": "assistant", "content": "Me.", "weight": None}]}

    (document,) = read_file(write_rows(tmp_path, "parquet", [row]), "t")

    assert document.example == parse_example({"messages": [ASK, ANSWER]}, "t")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x"}, "expected a field `text`, `messages`, or .*, and got body"),
        ({"prompt": "Who?"}, "expected a field .*, and got prompt"),
        ({"completion": "Me.", "rating": 5}, "and got completion, rating"),
        ({"messages": [ASK]}, "the last message must be the assistant's"),
        ({"prompt": "Who?", "completion": ""}, "the answer has neither text nor tool calls"),
        ({"messages": [ASK, ANSWER], "text": "x"}, "both a `text` and an example"),
        ({"messages": [ASK, ANSWER], "prompt": "x", "completion": "y"}, "and got `messages`, "),
        ({"messages": "x"}, "`messages` must be a list"),
        ({"messages": [ASK, ANSWER], "id": [1]}, "expected a string or a number in `id`"),
    ],
)
def test_a_row_that_is_neither_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=f"^t, row 2: .*{message}"):
        next(read_file(write_rows(tmp_path, "jsonl", [{"text": "fine"}, row]), "t"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_example_that_does_not_suit_the_model_makes_its_row_invalid(
    tmp_path: Path, kind: str
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Who?", "completion": answer} for answer in ("Me.", "Nobody.")
    ]

    def check(example: Example) -> None:
        if "Nobody" in example.text:
            raise ExampleError("it is too long")

    with pytest.raises(CorpusError, match=r"^t, row 2: it is too long$"):
        next(read_file(write_rows(tmp_path, kind, rows), "t", check_example=check))


def test_ids_and_row_numbers_are_never_confused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 2, "text": "whales are mammals"},
        {"text": "trains run on rails"},
        {"id": '"2"', "text": "bees make honey"},
        {"id": "2.0", "text": "owls hunt at night"},
    ]

    names = [document.name for document in read_file(write_rows(tmp_path, "jsonl", rows), "t")]

    assert names == ['t#"2"', "t#2", 't#"\\"2\\""', "t#2.0"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_repeated_id_is_named_with_both_rows(tmp_path: Path, kind: str) -> None:
    first, last = (2, "2") if kind == "jsonl" else ("e", "e")
    rows: list[dict[str, Any]] = [
        {"id": first, "text": "whales"},
        {"id": "f", "text": "trains"},
        {"id": last, "text": "bees"},
    ]

    with pytest.raises(CorpusError, match=rf"^t, rows 1 and 3 have the same `id` '{last}'"):
        list(read_file(write_rows(tmp_path, kind, rows), "t"))


def test_dates_times_and_decimals_of_parquet_become_text_and_numbers(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    values = {
        "day": datetime.date(2024, 5, 6),
        "moment": moment,
        "local": moment.replace(tzinfo=None),
        "hour": datetime.time(7, 30),
        "took": datetime.timedelta(minutes=1, milliseconds=500),
        "price": decimal.Decimal("1.50"),
        "count": decimal.Decimal("3"),
    }
    file = write_rows(tmp_path, "parquet", [{"text": "a", "id": moment, "metadata": values}])

    (document,) = read_file(file, "t")

    assert document.name == "t#2024-05-06T07:08:09+00:00"
    assert document.metadata == {
        "day": "2024-05-06",
        "moment": "2024-05-06T07:08:09+00:00",
        "local": "2024-05-06T07:08:09",
        "hour": "07:30:00",
        "took": 60.5,
        "price": 1.5,
        "count": 3,
    }


def test_nanoseconds_dictionaries_and_maps_of_parquet_are_read(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "text": pyarrow.array(["a", "b"]).dictionary_encode(),
            "id": pyarrow.array([1, 1 << 40], pyarrow.timestamp("ns")),
            "metadata": pyarrow.array(
                [[("lang", "de")], None], pyarrow.map_(pyarrow.string(), pyarrow.string())
            ),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")

    documents = list(read_file(tmp_path / "t.parquet", "t"))

    assert [document.text for document in documents] == ["a", "b"]
    assert [document.metadata for document in documents] == [{"lang": "de"}, {}]
    assert documents[0].name == "t#1970-01-01T00:00:00"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "metadata",
            [{"a": None}, {"a": b"x"}],
            "t, row 2: expected an object of .* in `metadata`; 'a' is bytes",
        ),
        (
            "metadata",
            [None, {"a": [1]}],
            "t, row 2: expected an object of .* in `metadata`; 'a' is a list",
        ),
        (
            "metadata",
            [{"a": 1.0}, {"a": float("nan")}],
            "t, row 2: expected an object of .* in `metadata`; 'a' is nan",
        ),
        ("metadata", ["x", "y"], "t, row 1: expected an object of .* in `metadata`, not a string"),
        ("id", [None, b"x"], "t, row 2: expected a string or a number in `id`, not bytes"),
        ("text", [None, 5], "t, row 2: expected a string in the field `text`, not int64"),
        ("text", [None, b"x"], "t, row 2: expected a string in the field `text`, not binary"),
        ("text", [None, ["x"]], "t, row 2: expected a string in the field `text`, not list"),
        (
            "text",
            [None, datetime.date(2024, 5, 6)],
            "t, row 2: expected a string in the field `text`, not date",
        ),
    ],
)
def test_a_value_without_a_json_counterpart_is_named_with_its_row(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    table = pyarrow.table({"text": ["one", "two"], column: values})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")

    with pytest.raises(CorpusError, match=message):
        list(read_file(tmp_path / "t.parquet", "t"))


def test_the_size_of_a_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_TEXT_BYTES", 1 << 20)
    for text in ("word " * (1 << 18), "ü" * (1 << 19) + "and more"):
        table = write_rows(tmp_path, "parquet", [{"text": "fine"}, {"text": text}])
        with pytest.raises(
            CorpusError, match="t, row 2: its `text` has 1 MiB, and a text has at most 1 MiB"
        ):
            list(read_file(table, "t"))


def test_a_page_that_expands_to_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_PAGE_BYTES", 1 << 20)
    file = write_rows(tmp_path, "parquet", [{"text": "word " * (1 << 19)}] + [{"text": "x"}] * 1000)

    with pytest.raises(
        CorpusError,
        match=r"t, row group 1: a page of its column `text` expands to 2 MiB, and at most 1 MiB",
    ):
        list(read_file(file, "t"))


def test_a_list_with_too_many_values_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_LIST_VALUES", 1000)
    file = write_rows(tmp_path, "parquet", [{"text": "x", "metadata": {"a": [None] * 2000}}])

    with pytest.raises(
        CorpusError, match=r"column `metadata.a.list.element` has 2,000 values, and at most 1,000"
    ):
        list(read_file(file, "t"))


def test_a_line_with_too_many_values_is_not_read(tmp_path: Path) -> None:
    rows = b'{"text": "fine"}\n{"text": "x", "more": [' + b"[]," * (1 << 19) + b"[]]}\n"

    with pytest.raises(CorpusError, match="t, line 2: more than 262,144 values at once"):
        list(read_file(write(tmp_path / "t.jsonl", rows), "t"))

    many_commas = json.dumps({"text": 'a, "b", [c], ' * (1 << 18)})
    assert len(list(read_file(write(tmp_path / "t.jsonl", many_commas), "t"))) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"compression": "none", "write_page_checksum": True, "write_page_index": True},
        {"row_group_size": 100, "data_page_size": 1000},
    ],
)
def test_every_page_is_found_in_any_layout(tmp_path: Path, options: dict[str, Any]) -> None:
    texts = [f"row {i} " * (1 + i % 50) for i in range(2000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "t.parquet", **options)

    assert [document.text for document in read_file(tmp_path / "t.parquet", "t")] == texts


def test_a_page_without_a_header_is_damaged(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "parquet", [{"text": "one"}])
    content = bytearray(file.read_bytes())
    content[4:20] = b"\xff" * 16
    file.write_bytes(content)

    with pytest.raises(
        CorpusError, match="t, row group 1 is damaged: it has a page without a header"
    ):
        list(read_file(file, "t"))


def test_reading_a_table_can_be_cancelled_at_any_row(tmp_path: Path) -> None:
    file = write_rows(tmp_path, "jsonl", [{"text": "one"}, *[{"text": None}] * 1000])

    class CancelledError(Exception):
        pass

    for last in (1, 500, 1500):
        checks = iter(range(last))

        def check_cancelled(checks: Any = checks) -> None:
            if next(checks, None) is None:
                raise CancelledError

        with pytest.raises(CancelledError):
            list(read_file(file, "t", check_cancelled=check_cancelled))
