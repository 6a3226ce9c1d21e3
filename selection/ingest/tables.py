"""Tables: the rows of JSON lines and Parquet, each a text with an `id` and `metadata` if its writer
likes.

A file is looked at as a whole before its first row is given: one bad row, or an `id` that is there
twice, and it gives none. A null is an absent key. A row without a text is passed over and counted.

It knows nothing of documents or corpora.
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
from selection.corpus.sqlite_store import CorpusError
from selection.ingest.parquet import parquet_rows

LARGEST_TEXT = 16 << 20  # bytes in UTF-8: of a text, of a line of JSON, of a row's metadata
_LONGEST_ID = 4096  # characters
_MANY_VALUES = 1 << 18  # in one line of JSON, each of which is an object in memory
_LONG_LINE = 1 << 20  # bytes; a shorter one cannot hold enough values to matter
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_FIELDS = 8  # of a row, named in an error
_BLANK_LINES = 1024  # between looks whether the reading goes on


@dataclass(frozen=True)
class Row:
    """A row that has a text.

    Attributes:
        number: from 1 on.
        given: its `id` as text; None where it has none.
        text: not empty.
        metadata: what filters compare.
    """

    number: int
    given: str | None
    text: str
    metadata: Mapping[str, Scalar]

    @property
    def label(self) -> str:
        """What tells it from the file's other rows: its number, or its `id`, quoted where that
        looks like a number.
        """
        if self.given is None:
            return str(self.number)
        like_a_number = re.fullmatch("[0-9]+", self.given) or self.given.startswith('"')
        return json.dumps(self.given, ensure_ascii=False) if like_a_number else self.given

    @property
    def former_label(self) -> str:
        """What earlier versions told it by: an `id` of 2 and the second row had the same label."""
        return str(self.number) if self.given is None else self.given


def read_rows(
    file: Path, name: str, alive: Callable[[], None], on_skipped: Callable[[], None]
) -> Iterator[Row]:
    """The rows of a file that have a text.

    Args:
        file: Parquet if its name says so, else JSON lines.
        name: what errors call it.
        alive: called for each row; what it raises ends the reading.
        on_skipped: called for each row without a text.

    Raises:
        CorpusError: the file, or a row of it, is not as it should be; no row was given then.
        OSError: it cannot be read.
    """
    _check(_raw_rows(file, name, alive), name)
    for number, raw in _raw_rows(file, name, alive):
        row = _row(number, raw, name)
        if row is None:
            on_skipped()
        else:
            yield row


def read_json(content: bytes, where: str) -> Any:
    """A JSON text that does not unfold to much more memory than it is long.

    Raises:
        CorpusError: it is none in UTF-8, or it holds too many values; the message begins with
            `where`.
    """
    if len(content) > _LONG_LINE:
        bare = _STRING.sub(b"", content)
        values = sum(bare.count(mark) for mark in (b",", b"[", b"{"))
        if values > _MANY_VALUES:
            raise CorpusError(f"{where}: more than {_MANY_VALUES:,} values at once")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise CorpusError(f"{where}: not JSON in UTF-8 ({problem})") from problem


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which no UTF-8 can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _check(rows: Iterable[tuple[int, Any]], name: str) -> None:
    """Raises for the first row that is not as it should be, and where no row has a text."""
    seen: dict[bytes, int] = {}
    fields: list[str] | None = None
    texts = False
    for number, raw in rows:
        row = _row(number, raw, name)
        if fields is None:
            fields = [str(key)[:40].encode(errors="backslashreplace").decode() for key in raw][
                :_FIELDS
            ]
        if row is None:
            continue
        texts = True
        if row.given is not None:
            key = hashlib.blake2b(row.given.encode(), digest_size=16).digest()
            before = seen.setdefault(key, number)
            if before != number:
                raise CorpusError(
                    f"{name}, rows {before} and {number} have the same `id` {row.given!r}: an `id` is of one row alone"
                )
    if fields is not None and not texts:
        raise CorpusError(
            f"{name}, row 1: expected a field `text`; no row of the file holds a text "
            f"(the fields of row 1: {', '.join(fields) or 'none'})"
        )


def _row(number: int, raw: Any, name: str) -> Row | None:
    """A row if it has a text.

    Raises:
        CorpusError: it is not as it should be.
    """
    where = f"{name}, row {number}"
    if not isinstance(raw, dict):
        raise CorpusError(f"{where}: expected a field `text` in an object, not {_kind(raw)}")
    text = raw.get("text")
    if text is None:
        return None
    if not isinstance(text, str):
        raise CorpusError(
            f"{where}: expected a field `text` that holds a string, not {_kind(text)}"
        )
    if not is_unicode(text):
        raise CorpusError(
            f"{where}: expected a field `text` that holds a string of Unicode text, not half a character"
        )
    text = text.removeprefix("\ufeff")
    if not text:
        return None
    if len(text) > LARGEST_TEXT or (
        len(text) > LARGEST_TEXT // 4 and len(text.encode()) > LARGEST_TEXT
    ):
        raise CorpusError(
            f"{where}: its `text` has {len(text.encode()) >> 20} MiB; a text has {LARGEST_TEXT >> 20} at most: split it"
        )
    return Row(number, _identity(raw.get("id"), where), text, _metadata(raw.get("metadata"), where))


def _identity(given: Any, where: str) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str | int | float) or (
        isinstance(given, float) and not math.isfinite(given)
    ):
        raise CorpusError(f"{where}: its `id` is a string or a number, not {_kind(given)}")
    identity = str(given)
    if not is_unicode(identity):
        raise CorpusError(f"{where}: its `id` is not Unicode text")
    if len(identity) > _LONGEST_ID:
        raise CorpusError(
            f"{where}: its `id` has {len(identity):,} characters; {_LONGEST_ID:,} at most"
        )
    return identity


def _metadata(given: Any, where: str) -> dict[str, Scalar]:
    expected = f"{where}: `metadata` is an object of strings, finite numbers, true and false"
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise CorpusError(f"{expected}, not {_kind(given)}")
    metadata = {key: value for key, value in given.items() if value is not None}
    for key, value in metadata.items():
        finite = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        if not isinstance(key, str) or not finite:
            raise CorpusError(f"{expected}; {key!r} holds {_kind(value)}")
    described = json.dumps(metadata, ensure_ascii=False)
    if not is_unicode(described):
        raise CorpusError(f"{expected}, in Unicode")
    if len(described) > LARGEST_TEXT:
        raise CorpusError(f"{where}: its `metadata` has more than {LARGEST_TEXT >> 20} MiB")
    return metadata


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON; of a number that is not finite, and of Arrow's types,
    their own name.
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
    own = isinstance(value, float) or type(value).__module__.startswith("pyarrow")
    return str(value) if own else type(value).__name__


def _raw_rows(file: Path, name: str, alive: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    rows = (
        parquet_rows(file, name, alive)
        if file.suffix.lower() == ".parquet"
        else _json_rows(file, name, alive)
    )
    for row in rows:
        alive()
        yield row


def _json_rows(file: Path, name: str, alive: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    number = 0
    with file.open("rb") as lines:
        for line_number, line in enumerate(
            iter(lambda: lines.readline(LARGEST_TEXT + 1), b""), start=1
        ):
            if len(line) > LARGEST_TEXT:
                raise CorpusError(f"{name}, line {line_number}: more than {LARGEST_TEXT >> 20} MiB")
            if line.removeprefix(codecs.BOM_UTF8).strip():
                number += 1
                yield number, read_json(line, f"{name}, line {line_number}")
            elif line_number % _BLANK_LINES == 0:
                alive()
