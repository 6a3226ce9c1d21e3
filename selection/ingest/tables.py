"""Tables: the rows of JSON lines and Parquet files, each with a text or an example, and optional
`id` and `metadata`.

A whole file is validated before its first row is yielded: a file with an invalid row, or with an
`id` that occurs twice, yields none. A null is the same as an absent key. Rows whose text is empty
are skipped and counted; a row of unknown fields only is invalid.

This module is independent of documents and corpora.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selection.corpus.filters import Scalar
from selection.errors import CorpusError, ExampleError
from selection.examples.example import FIELDS, Example, parse_example
from selection.ingest.parquet import parquet_rows

MAX_TEXT_BYTES = 16 << 20  # UTF-8 bytes of a text, of a line of JSON, or of a row's metadata
_MAX_ID_CHARACTERS = 4096
_MAX_JSON_VALUES = 1 << 18  # in one line; each value is an object in memory
_LONG_LINE_BYTES = 1 << 20  # a shorter line cannot contain enough values to matter
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SHOWN_FIELDS = 8  # fields of a row named in an error
_ROW_FIELDS = ("id", "text", "metadata", *FIELDS)
_EXPECTED = "expected a field `text`, `messages`, or `prompt` and `completion`"
_BLANK_LINES = 1024  # blank lines between two checks for cancellation


@dataclass(frozen=True)
class Row:
    """A row that has a text or an example.

    Attributes:
        number: from 1.
        id: its `id` as text, if it has one.
        text: not empty; of an example, in a form for readers.
        metadata: values that filters compare.
        example: its example, if it is one.
    """

    number: int
    id: str | None
    text: str
    metadata: Mapping[str, Scalar]
    example: Example | None = None

    @property
    def label(self) -> str:
        """Identifies the row in its file: its number, or its `id`, quoted if it looks like a
        number.
        """
        if self.id is None:
            return str(self.number)
        ambiguous = re.fullmatch("[0-9]+", self.id) or self.id.startswith('"')
        return json.dumps(self.id, ensure_ascii=False) if ambiguous else self.id

    @property
    def former_label(self) -> str:
        """The label of earlier versions, where the `id` 2 and the second row had the same one."""
        return str(self.number) if self.id is None else self.id


def read_rows(
    file: Path,
    name: str,
    check_cancelled: Callable[[], None],
    on_skipped: Callable[[], None],
    check_example: Callable[[Example], object],
) -> Iterator[Row]:
    """The rows of a file that have a text or an example.

    Args:
        file: Parquet if its suffix is .parquet, else JSON lines.
        name: the file's name in errors.
        check_cancelled: called for each row; an exception that it raises ends the reading.
        on_skipped: called for each row without a text or an example.
        check_example: called for each example before the first row is yielded; an ExampleError that
            it raises makes the row invalid.

    Raises:
        CorpusError: the file or a row of it is invalid; no row was yielded then.
        OSError: the file cannot be read.
    """
    _check(_raw_rows(file, name, check_cancelled), name, check_example)
    for number, raw in _raw_rows(file, name, check_cancelled):
        row = _row(number, raw, name)
        if row is None:
            on_skipped()
        else:
            yield row


def read_json(content: bytes, where: str) -> Any:
    """The value of a JSON text, if that does not take much more memory than the text.

    Raises:
        CorpusError: the content is not JSON in UTF-8, or has too many values; the message begins
            with `where`.
    """
    if len(content) > _LONG_LINE_BYTES:
        bare = _STRING.sub(b"", content)
        values = sum(bare.count(mark) for mark in (b",", b"[", b"{"))
        if values > _MAX_JSON_VALUES:
            raise CorpusError(f"{where}: more than {_MAX_JSON_VALUES:,} values at once")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise CorpusError(f"{where}: not JSON in UTF-8 ({problem})") from problem


def is_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogate, which UTF-8 cannot encode."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _check(
    rows: Iterable[tuple[int, Any]], name: str, check_example: Callable[[Example], object]
) -> None:
    """Raise CorpusError for the first invalid row, or if no row has a text or an example."""
    seen: dict[bytes, int] = {}
    fields: list[str] | None = None
    has_text = False
    for number, raw in rows:
        row = _row(number, raw, name)
        if fields is None:
            fields = [_printable(str(key)) for key in raw][:_SHOWN_FIELDS]
        if row is None:
            continue
        has_text = True
        if row.example is not None:
            try:
                check_example(row.example)
            except ExampleError as problem:
                raise CorpusError(f"{name}, row {number}: {problem}") from problem
        if row.id is not None:
            key = hashlib.blake2b(row.id.encode(), digest_size=16).digest()
            first = seen.setdefault(key, number)
            if first != number:
                raise CorpusError(
                    f"{name}, rows {first} and {number} have the same `id` {row.id!r}: "
                    "give each row its own"
                )
    if fields is not None and not has_text:
        raise CorpusError(
            f"{name}, row 1: {_EXPECTED}; no row of the file has one "
            f"(the fields of row 1: {', '.join(fields) or 'none'})"
        )


def _row(number: int, raw: Any, name: str) -> Row | None:
    """The row, if it has a text or an example.

    Raises:
        CorpusError: the row is invalid.
    """
    where = f"{name}, row {number}"
    if not isinstance(raw, dict):
        raise CorpusError(f"{where}: {_EXPECTED} in an object, not {_json_type(raw)}")
    text, fields = raw.get("text"), {key: raw[key] for key in FIELDS if raw.get(key) is not None}
    if "messages" in fields or {"prompt", "completion"} <= fields.keys():
        return _example_row(number, raw, fields, where)
    if text is None:
        unknown = [key for key in raw if key not in _ROW_FIELDS and raw[key] is not None]
        if fields or ("text" not in raw and unknown):
            names = ", ".join(map(str, [*fields, *unknown][:_SHOWN_FIELDS]))
            raise CorpusError(f"{where}: {_EXPECTED}, and got {_printable(names)}")
        return None
    if not isinstance(text, str):
        raise CorpusError(f"{where}: expected a string in the field `text`, not {_json_type(text)}")
    if not is_unicode(text):
        raise CorpusError(
            f"{where}: expected Unicode text in the field `text`, not an unpaired surrogate"
        )
    _check_null_character(text, "text", where)
    text = text.removeprefix("\ufeff")
    if not text:
        return None
    if len(text) > MAX_TEXT_BYTES or (
        len(text) > MAX_TEXT_BYTES // 4 and len(text.encode()) > MAX_TEXT_BYTES
    ):
        raise CorpusError(
            f"{where}: its `text` has {len(text.encode()) >> 20} MiB, and a text has at most "
            f"{MAX_TEXT_BYTES >> 20} MiB: split it"
        )
    return Row(number, _row_id(raw.get("id"), where), text, _metadata(raw.get("metadata"), where))


def _example_row(number: int, raw: dict[str, Any], fields: dict[str, Any], where: str) -> Row:
    if raw.get("text"):
        raise CorpusError(f"{where}: it has both a `text` and an example: keep one of them")
    try:
        example = parse_example(fields, where)
    except ExampleError as problem:
        raise CorpusError(str(problem)) from problem
    _check_null_character(example.text, "example", where)
    row_id = _row_id(raw.get("id"), where)
    return Row(number, row_id, example.text, _metadata(raw.get("metadata"), where), example)


def _check_null_character(value: Scalar, field: str, where: str) -> None:
    """Refuse the character that PostgreSQL cannot store, wherever the corpus is, so that it can be
    copied.
    """
    if isinstance(value, str) and "\0" in value:
        raise CorpusError(f"{where}: its `{field}` contains the character U+0000: remove it")


def _printable(key: str) -> str:
    return key[:40].encode(errors="backslashreplace").decode()


def _row_id(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | int | float) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise CorpusError(
            f"{where}: expected a string or a number in `id`, not {_json_type(value)}"
        )
    row_id = str(value)
    if not is_unicode(row_id):
        raise CorpusError(f"{where}: its `id` is not Unicode text")
    _check_null_character(row_id, "id", where)
    if len(row_id) > _MAX_ID_CHARACTERS:
        raise CorpusError(
            f"{where}: its `id` has {len(row_id):,} characters, and at most "
            f"{_MAX_ID_CHARACTERS:,} are allowed"
        )
    return row_id


def _metadata(field: Any, where: str) -> dict[str, Scalar]:
    expected = (
        f"{where}: expected an object of strings, finite numbers, true and false in `metadata`"
    )
    if field is None:
        return {}
    if not isinstance(field, dict):
        raise CorpusError(f"{expected}, not {_json_type(field)}")
    metadata = {key: value for key, value in field.items() if value is not None}
    for key, value in metadata.items():
        finite = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        if not isinstance(key, str) or not finite:
            raise CorpusError(f"{expected}; {key!r} is {_json_type(value)}")
    described = json.dumps(metadata, ensure_ascii=False)
    if not is_unicode(described):
        raise CorpusError(f"{expected}, all in Unicode")
    for each in (*metadata.keys(), *metadata.values()):
        _check_null_character(each, "metadata", where)
    if len(described) > MAX_TEXT_BYTES:
        raise CorpusError(f"{where}: its `metadata` has more than {MAX_TEXT_BYTES >> 20} MiB")
    return metadata


def _json_type(value: Any) -> str:
    """The JSON type of a value; for a number that is not finite and for an Arrow type, its own
    name.
    """
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        bytes: "bytes",
    }
    if value is None:
        return "null"
    if type(value) in names:
        return names[type(value)]
    has_name = isinstance(value, float) or type(value).__module__.startswith("pyarrow")
    return str(value) if has_name else type(value).__name__


def _raw_rows(
    file: Path, name: str, check_cancelled: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    rows = (
        parquet_rows(file, name, _ROW_FIELDS, check_cancelled)
        if file.suffix.lower() == ".parquet"
        else _json_rows(file, name, check_cancelled)
    )
    for row in rows:
        check_cancelled()
        yield row


def _json_rows(
    file: Path, name: str, check_cancelled: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    number = 0
    with file.open("rb") as lines:
        for line_number, line in enumerate(
            iter(lambda: lines.readline(MAX_TEXT_BYTES + 1), b""), start=1
        ):
            if len(line) > MAX_TEXT_BYTES:
                raise CorpusError(
                    f"{name}, line {line_number}: more than {MAX_TEXT_BYTES >> 20} MiB"
                )
            if line.removeprefix(codecs.BOM_UTF8).strip():
                number += 1
                yield number, read_json(line, f"{name}, line {line_number}")
            elif line_number % _BLANK_LINES == 0:
                check_cancelled()
