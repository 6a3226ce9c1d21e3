"""Parquet: the rows of a file as JSON values, with bounds on the memory that the file expands to.

A few kilobytes can expand to gigabytes: a page is compressed, and a dictionary can refer to one
long text a million times. So the size of every page is read from its header before the page is. The
longer the longest page, the fewer rows are read at once, since no value is larger than the page
that it comes from.

Dates and times become ISO strings, decimals numbers; the fields of a struct that are null are left
out, since rows that lack them have them as nulls. This module does not validate rows (see
`tables`). The only module that imports pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from selection.corpus.sqlite_store import CorpusError

_BUFFER_BYTES = 1 << 20  # read from disk at once
# Uncompressed; pyarrow writes 1,024 texts into one page, for example of 128 KiB each.
_MAX_PAGE_BYTES = 128 << 20
_MAX_BATCH_BYTES = 64 << 20  # values read at once, except for a single row
_MAX_BATCH_ROWS = 64
# Values of a column in a row group: some encodings need four bytes for each, all at once.
_MAX_GROUP_VALUES = 1 << 24
# Values of a column of lists in a row group: one row may contain them all.
_MAX_LIST_VALUES = 1 << 20


def parquet_rows(
    file: Path, name: str, wanted: Sequence[str], check_cancelled: Callable[[], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, each with its number from 1.

    Args:
        file: path of the file.
        name: the file's name in errors.
        wanted: the columns to read, of those that the file has.
        check_cancelled: called for each page; an exception that it raises ends the reading.

    Raises:
        CorpusError: the file is not a Parquet file, has none of the columns that contain data, has
            a value without a JSON counterpart, or expands to too much memory at once.
        OSError: the file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            file.open("rb") as pages,
            pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table,
        ):
            names = table.schema_arrow.names
            if not {"text", "messages"}.intersection(names) and not (
                {"prompt", "completion"}.issubset(names)
            ):
                raise CorpusError(
                    f"{name}: expected a field `text`, `messages`, or `prompt` and `completion`; "
                    f"its columns are {', '.join(names) or 'none'}"
                )
            columns = [column for column in wanted if column in names]
            if repeated := [column for column in columns if names.count(column) > 1]:
                raise CorpusError(f"{name} has several columns `{repeated[0]}`: rename all but one")
            number = 0
            for group in range(table.num_row_groups):
                where = f"{name}, row group {group + 1}"
                longest = 0
                for size in _page_sizes(table, group, columns, pages, where):
                    check_cancelled()
                    longest = max(longest, size)
                rows = max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // max(longest, 1)))
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
        # pyarrow's own errors are OSErrors without an errno.
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
        return _json_value(scalar)
    except (pyarrow.ArrowException, ValueError, OverflowError, LookupError) as problem:
        raise CorpusError(f"{where}: its `{column}` cannot be read: {problem}") from problem


def _text(scalar: Any) -> Any:
    """A string or None; for another type of value, that type."""
    import pyarrow

    kind = scalar.type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    strings = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    return scalar.as_py() if kind in strings or not scalar.is_valid else kind


def _json_value(scalar: Any) -> Any:
    """An Arrow value as a JSON value; one without a JSON counterpart is returned as it is."""
    import pyarrow
    from pyarrow import types

    kind = scalar.type
    if not scalar.is_valid:
        return None
    if types.is_dictionary(kind):
        return _json_value(scalar.value)
    if types.is_struct(kind):
        fields = [i for i in range(kind.num_fields) if scalar[i].is_valid]
        return {kind.field(i).name: _json_value(scalar[i]) for i in fields}
    if types.is_list(kind) or types.is_large_list(kind):
        return [_json_value(each) for each in scalar.values]
    if types.is_map(kind):
        return {_json_value(entry[0]): _json_value(entry[1]) for entry in scalar.values}
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
    """The uncompressed size of each page of these columns in a row group.

    Raises:
        CorpusError: a page, or the group, is too large.
    """
    metadata = table.metadata.row_group(group)
    for index in range(metadata.num_columns):
        column, path = metadata.column(index), metadata.column(index).path_in_schema
        if path.split(".")[0] not in columns:
            continue
        limit = (
            _MAX_LIST_VALUES
            if table.schema.column(index).max_repetition_level
            else _MAX_GROUP_VALUES
        )
        if column.num_values > limit:
            raise CorpusError(
                f"{where}: its column `{path}` has {column.num_values:,} values, and at most "
                f"{limit:,} are allowed: "
                "write the file with smaller row groups"
            )
        offset = min(
            column.data_page_offset, column.dictionary_page_offset or column.data_page_offset
        )
        end = offset + column.total_compressed_size
        while offset < end:
            pages.seek(offset)
            uncompressed, compressed = _page_header(pages, where)
            if uncompressed > _MAX_PAGE_BYTES:
                raise CorpusError(
                    f"{where}: a page of its column `{path}` expands to "
                    f"{uncompressed >> 20} MiB, and at most {_MAX_PAGE_BYTES >> 20} MiB are "
                    "allowed: write the file with smaller pages, or as JSON lines"
                )
            yield uncompressed
            offset = pages.tell() + compressed


def _page_header(pages: IO[bytes], where: str) -> tuple[int, int]:
    """Read a page's header, in Thrift's compact protocol: its uncompressed and compressed size."""
    try:
        header = _struct(pages)
        uncompressed, compressed = header[2], header[3]
    except (IndexError, KeyError) as problem:
        raise CorpusError(f"{where} is damaged: it has a page without a header") from problem
    if uncompressed < 0 or compressed < 0:
        raise CorpusError(f"{where} is damaged: it has a page of negative size")
    return uncompressed, compressed


def _struct(stream: IO[bytes], depth: int = 0) -> dict[int, int]:
    """Read a struct: its integers by field id."""
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
    else:
        # A page header has no lists, sets or maps.
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
