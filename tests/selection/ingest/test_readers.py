"""From files to documents: every format and every error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from selection.corpus.sqlite_store import CorpusError
from selection.ingest.readers import Document, read_file


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "README", "a.TXT"])
def test_any_utf8_file_is_one_document(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "# Größe\n\nzwei Zeilen\n")

    assert list(read_file(file, "the name")) == [Document("the name", "# Größe\n\nzwei Zeilen\n")]


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "latin.txt", "Größe".encode("latin-1"))

    with pytest.raises(CorpusError, match=r"^latin is not UTF-8 text: .* at byte 2$"):
        list(read_file(file, "latin"))


def test_an_empty_file_is_an_empty_document(tmp_path: Path) -> None:
    assert list(read_file(write(tmp_path / "a.txt", ""), "a")) == [Document("a", "")]
    assert list(read_file(write(tmp_path / "a.jsonl", "\n\n"), "a")) == []


@pytest.mark.parametrize(
    "content", [b"\x7fELF\x02\x01\x01\x00\xff\xfe", b"GIF89a\x01\x00\x01\x00", b"\0" * 5000]
)
def test_a_binary_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path / "a.txt", content)

    with pytest.raises(CorpusError, match=r"^the name is not (UTF-8 )?text: "):
        list(read_file(file, "the name"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a.txt",
            "the name has 1024 MiB, and a text has at most 16 MiB: split it",
        ),
        ("a.jsonl", "the name, line 1: more than 16 MiB"),
        ("a.parquet", "the name is not a Parquet file"),
    ],
)
def test_a_file_of_a_gigabyte_is_refused(tmp_path: Path, name: str, message: str) -> None:
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

    with pytest.raises(
        CorpusError, match=r"^'gr\\udcfc\\udcdfe.txt' has a name that is not UTF-8: rename it$"
    ):
        list(read_file(file, file.name))


@pytest.mark.parametrize("name", ["a.md", "a.py", "a.csv", "a.ipynb", "a.jsonl"])
def test_a_byte_order_mark_is_removed_in_every_format(tmp_path: Path, name: str) -> None:
    cell = {"cell_type": "markdown", "source": "words"}
    content = {"a.ipynb": json.dumps({"cells": [cell]}), "a.jsonl": '{"text": "words\\n"}\n'}.get(
        name, "words\n"
    )
    file = write(tmp_path / name, b"\xef\xbb\xbf" + content.encode())

    (document,) = read_file(file, "a")

    assert document.text == "words\n"


def test_utf16_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match="a is not UTF-8 text: it begins with a UTF-16 byte order mark; save"
    ):
        list(read_file(write(tmp_path / "a.txt", "words".encode("utf-16")), "a"))


def test_line_ends_become_newlines(tmp_path: Path) -> None:
    assert list(read_file(write(tmp_path / "a.txt", b"a\r\nb\rc\n"), "a")) == [
        Document("a", "a\nb\nc\n")
    ]


def test_the_cells_of_a_notebook_are_read_without_their_output(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["# Whales\n", "\n", "They are mammals."]},
        {"cell_type": "code", "source": "print(1)\n", "outputs": [{"text": ["a secret"]}]},
        {"cell_type": "raw", "source": "unread"},
        {"cell_type": "code", "source": [], "outputs": []},
        {"cell_type": "code", "source": ["x = 1\n", "y = 2"], "outputs": []},
    ]
    file = write(tmp_path / "a.ipynb", json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": "x = 1"}]}], "nbformat": 3}
    older = write(tmp_path / "old.ipynb", json.dumps(old))

    assert list(read_file(file, "n")) == [
        Document("n", "# Whales\n\nThey are mammals.\n\nprint(1)\n\nx = 1\ny = 2\n")
    ]
    assert list(read_file(older, "n")) == [Document("n", "x = 1\n")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "n: not JSON in UTF-8"),
        ("[]", "n is not a notebook: it has no list of `cells`"),
        ('{"cells": {}}', "n is not a notebook: it has no list of `cells`"),
        ('{"cells": [{"cell_type": "code", "source": 5}]}', "n, cell 1: expected a `source`"),
        (
            r'{"cells": [{"cell_type": "code", "source": "\ud800"}]}',
            "n, cell 1: its `source` is not Unicode text",
        ),
        (
            r'{"cells": [{"cell_type": "code", "source": "\u0000"}]}',
            "n is not text: it contains a null character",
        ),
        ('{"cells": [' + '{"a":[]},' * 300_000 + "{}]}", "n: more than 262,144 values at once"),
    ],
)
def test_an_invalid_notebook_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        list(read_file(write(tmp_path / "n.ipynb", content), "n"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.docx", "convert it to text first"),
        ("a.PDF", "convert it to text first"),
        ("a.xlsx", "convert it to text first"),
        ("a.pptx", "convert it to text first"),
        ("a.jsonl.gz", "unpack it first"),
        ("a.zip", "unpack it first"),
    ],
)
def test_office_files_and_archives_are_refused(tmp_path: Path, name: str, remedy: str) -> None:
    file = write(tmp_path / name, "perhaps text")

    message = f"the name is not text, and {file.suffix.lower()} files are not supported: {remedy}"
    with pytest.raises(CorpusError, match=f"^{message}"):
        list(read_file(file, "the name"))
