"""Parquet: a file's rows, as values that JSON knows, with bounds on what the file unfolds to.

A few kilobytes can unfold to gigabytes: a page is compressed, and a dictionary names one long text
a million times. So the size of every page is read off its header before the page is, and the longer
the longest one, the fewer rows are read at once: no value is larger than the page that it comes
from.

Dates and times become ISO strings, decimals numbers. It knows nothing of what rows must hold (see
`tables`). The only module that imports pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from selection.corpus.sqlite_store import CorpusError

_COLUMNS = ("id", "text", "metadata")
_BUFFER = 1 << 20  # bytes read from disk at once
# Bytes, unfolded; such as 1,024 texts of 128 KiB, which pyarrow writes into one.
_LARGEST_PAGE = 128 << 20
_AT_ONCE = 64 << 20  # bytes of values at most, but for one row
_ROWS = 64  # read at once at most
# Values of a column in a row group: some encodings need four bytes each, all at once.
_LARGEST_GROUP = 1 << 24
_LONGEST_LISTS = 1 << 20  # values of a column of lists in a row group: one row may hold them all


def parquet_rows(
    file: Path, name: str, alive: Callable[[], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their number, from 1 on; of each the columns `id`, `text` and
    `metadata`.

    Args:
        file: where it is.
        name: what errors call it.
        alive: called before each page is looked at; what it raises ends the reading.

    Raises:
        CorpusError: not a Parquet file, no column `text`, a value that has no counterpart, or too
            much at once.
        OSError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            file.open("rb") as pages,
            pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table,
        ):
            names = table.schema_arrow.names
            if "text" not in names:
                raise CorpusError(
                    f"{name}: expected a field `text`; its columns are {', '.join(names) or 'none'}"
                )
            columns = [column for column in _COLUMNS if column in names]
            if twice := [column for column in columns if names.count(column) > 1]:
                raise CorpusError(f"{name} has several columns `{twice[0]}`: rename one")
            number = 0
            for group in range(table.num_row_groups):
                where = f"{name}, row group {group + 1}"
                longest = 0
                for size in _page_sizes(table, group, columns, pages, where):
                    alive()
                    longest = max(longest, size)
                rows = max(1, min(_ROWS, _AT_ONCE // max(longest, 1)))
                batches = table.iter_batches(
                    rows, row_groups=[group], columns=columns, use_threads=False
                )
                for batch in batches:
                    for row in range(batch.num_rows):
                        number += 1
                        yield (
                            number,
                            {
                                c: _value(batch.column(c)[row], c, f"{name}, row {number}")
                                for c in columns
                            },
                        )
    except (pyarrow.ArrowException, UnicodeDecodeError) as problem:
        raise CorpusError(f"{name} is not a Parquet file that can be read: {problem}") from problem
    except OSError as problem:
        # pyarrow's own complaints are of this kind, too; a file that cannot be opened has an error
        # number.
        if problem.errno is None:
            raise CorpusError(
                f"{name} is not a Parquet file that can be read: {problem}"
            ) from problem
        raise


def _value(scalar: Any, column: str, where: str) -> Any:
    import pyarrow

    try:
        if column == "text":
            return _text(scalar)
        return _plain(scalar)
    except (pyarrow.ArrowException, ValueError, OverflowError, LookupError) as problem:
        raise CorpusError(f"{where}: its `{column}` cannot be read: {problem}") from problem


def _text(scalar: Any) -> Any:
    """A string, None, or what shows that it is neither."""
    import pyarrow

    kind = scalar.type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    strings = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    return scalar.as_py() if kind in strings or not scalar.is_valid else kind


def _plain(scalar: Any) -> Any:
    """A value of Arrow's as JSON has it; what has no counterpart there stays what it is."""
    import pyarrow
    from pyarrow import types

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_dictionary(kind):
        return _plain(scalar.value)
    if types.is_struct(kind):
        return {kind.field(i).name: _plain(scalar[i]) for i in range(kind.num_fields)}
    if types.is_map(kind):
        return {_plain(entry[0]): _plain(entry[1]) for entry in scalar.values}
    if types.is_timestamp(kind):
        return scalar.cast(pyarrow.timestamp("us", kind.tz), safe=False).as_py().isoformat()
    if types.is_time(kind):
        return scalar.cast(pyarrow.time64("us"), safe=False).as_py().isoformat()
    if types.is_date(kind):
        return scalar.as_py().isoformat()
    if types.is_duration(kind):
        return scalar.cast(pyarrow.duration("us"), safe=False).as_py().total_seconds()
    value = scalar.as_py()
    if types.is_decimal(kind):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value) if type(value).__name__ == "UUID" else value


def _page_sizes(
    table: Any, group: int, columns: Sequence[str], pages: IO[bytes], where: str
) -> Iterator[int]:
    """The unfolded size of each page of these columns in a row group.

    Raises:
        CorpusError: a page, or the group, is too large.
    """
    described = table.metadata.row_group(group)
    for index in range(described.num_columns):
        column, path = described.column(index), described.column(index).path_in_schema
        if path.split(".")[0] not in columns:
            continue
        most = _LONGEST_LISTS if table.schema.column(index).max_repetition_level else _LARGEST_GROUP
        if column.num_values > most:
            raise CorpusError(
                f"{where}: its column `{path}` has {column.num_values:,} values; {most:,} at most: "
                "write the file with smaller row groups"
            )
        offset = min(
            column.data_page_offset, column.dictionary_page_offset or column.data_page_offset
        )
        end = offset + column.total_compressed_size
        while offset < end:
            pages.seek(offset)
            unfolded, compressed = _page_header(pages, where)
            if unfolded > _LARGEST_PAGE:
                raise CorpusError(
                    f"{where}: a page of its column `{path}` unfolds to {unfolded >> 20} MiB; "
                    f"{_LARGEST_PAGE >> 20} at most: write the file with smaller pages, or as JSON lines"
                )
            yield unfolded
            offset = pages.tell() + compressed


def _page_header(pages: IO[bytes], where: str) -> tuple[int, int]:
    """Reads a page's header (Thrift's compact protocol): its size unfolded, and as it is in the
    file.
    """
    try:
        header = _struct(pages)
        unfolded, compressed = header[2], header[3]
    except (IndexError, KeyError) as problem:
        raise CorpusError(f"{where} is damaged: it has a page without a header") from problem
    if unfolded < 0 or compressed < 0:
        raise CorpusError(f"{where} is damaged: it has a page of negative size")
    return unfolded, compressed


def _struct(stream: IO[bytes], depth: int = 0) -> dict[int, int]:
    """Reads a struct; its whole numbers by field."""
    if depth > 8:
        raise KeyError("too deep")
    numbers: dict[int, int] = {}
    field = 0
    while head := stream.read(1)[0]:
        kind = head & 0x0F
        field = field + (head >> 4) if head >> 4 else _zigzag(stream)
        if kind in (4, 5, 6):
            numbers[field] = _zigzag(stream)
        else:
            _skip(stream, kind, depth)
    return numbers


def _skip(stream: IO[bytes], kind: int, depth: int) -> None:
    if kind in (1, 2):  # true and false
        return
    if kind == 3:
        stream.seek(1, 1)
    elif kind in (4, 5, 6):
        _varint(stream)
    elif kind == 7:
        stream.seek(8, 1)
    elif kind == 8:
        stream.seek(_varint(stream), 1)
    elif kind == 12:
        _struct(stream, depth + 1)
    else:  # page headers have no lists, sets or maps
        raise KeyError(kind)


def _zigzag(stream: IO[bytes]) -> int:
    number = _varint(stream)
    return (number >> 1) ^ -(number & 1)


def _varint(stream: IO[bytes]) -> int:
    number = shift = 0
    while True:
        byte = stream.read(1)[0]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
        shift += 7
        if shift > 63:
            raise KeyError("a number without end")
