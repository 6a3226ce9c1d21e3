"""Readers: a file becomes documents: text, Markdown and code one, a notebook one, each row of a
table one.

What a file unfolds to is bounded: a text has 16 MiB at most, whatever the format. A file that
cannot be read is named with the reason. It knows neither where a file comes from (see `files`) nor
what becomes of its documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selection.corpus.filters import Scalar
from selection.corpus.sqlite_store import CorpusError
from selection.ingest.tables import LARGEST_TEXT, is_unicode, read_json, read_rows

TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
NOTEBOOK_SUFFIX = ".ipynb"
_DOCUMENTS = (
    ".doc",
    ".docx",
    ".docm",
    ".dotx",
    ".odt",
    ".rtf",
    ".pages",
    ".pdf",
    ".djvu",
    ".epub",
    ".mobi",
    ".azw3",
)
_SHEETS = (".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".ppt", ".pptx", ".pptm", ".odp")
_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".jar", ".whl")
UNREADABLE: Mapping[str, str] = dict.fromkeys(
    _DOCUMENTS + _SHEETS, "convert it to text first"
) | dict.fromkeys(_PACKED, "unpack it first")


@dataclass(frozen=True)
class Document:
    """A named text, and what filters may ask of it.

    Attributes:
        name: unique in a corpus.
        text: all of it.
        metadata: flat.
        former: the name that earlier versions gave it: where a corpus holds this very document so
            named, it stays.
    """

    name: str
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    former: str | None = field(default=None, compare=False)


@dataclass
class Tally:
    """What became of the documents so far, counted as it happens: it tells the truth of work that
    is broken off, too.

    Attributes:
        added: documents that the corpus did not hold.
        replaced: documents whose text, metadata or chunking had changed.
        unchanged: documents that were there already.
        empty: documents without two tokens.
        skipped: rows without a text.
        sequences: of the documents that were added or replaced.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    empty: int = 0
    skipped: int = 0
    sequences: int = 0

    def documents(self) -> dict[str, int]:
        """All but the sequences, by name."""
        return {name: count for name, count in asdict(self).items() if name != "sequences"}


def read_file(
    file: Path,
    name: str,
    *,
    former: str | None = None,
    tally: Tally | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[Document]:
    """The documents of a file: one, or one for each row of a table that has a text.

    A row's document is named NAME#NUMBER, or NAME#ID where it has an `id`, in quotes where that
    looks like a number.

    Args:
        file: where it is.
        name: what its documents, and errors, call it.
        former: what earlier versions called it.
        tally: where rows without a text are counted.
        alive: called again and again; what it raises ends the reading.

    Raises:
        CorpusError: the file cannot be read, or is not what its ending says; the message names it,
            and the row. Of a table no document was given then.
    """
    if not is_unicode(name):
        raise CorpusError(f"{name!r} has a name that is not UTF-8: rename it")
    suffix = file.suffix.lower()
    if suffix in UNREADABLE:
        raise CorpusError(
            f"{name} is not text, and {suffix} files are not read: {UNREADABLE[suffix]}"
        )
    counted = tally or Tally()

    def skip() -> None:
        counted.skipped += 1

    try:
        if suffix in TABLE_SUFFIXES:
            for row in read_rows(file, name, alive, skip):
                before = None if former is None else f"{former}#{row.former_label}"
                yield Document(f"{name}#{row.label}", row.text, row.metadata, before)
        elif suffix == NOTEBOOK_SUFFIX:
            yield Document(name, _notebook(_content(file, name), name), former=former)
        else:
            yield Document(name, _text(_content(file, name), name), former=former)
    except OSError as problem:
        raise CorpusError(f"{name} cannot be read: {problem.strerror or problem}") from problem


def _content(file: Path, name: str) -> bytes:
    """A file's bytes. What it says of its own size is not believed: a device or a growing file has
    another.
    """
    with file.open("rb") as stream:
        content = stream.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT:
        size = max(file.stat().st_size, len(content))
        raise CorpusError(
            f"{name} has {size >> 20} MiB; a text has {LARGEST_TEXT >> 20} at most: "
            "split it, or give its parts as JSON lines"
        )
    return content


def _text(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CorpusError(f"{name} is not UTF-8 text: it begins as UTF-16 does; save it as UTF-8")
    try:
        text = content.decode()
    except UnicodeDecodeError as problem:
        raise CorpusError(
            f"{name} is not UTF-8 text: {problem.reason} at byte {problem.start}"
        ) from problem
    if "\0" in text:
        raise CorpusError(f"{name} is not text: it holds a null character")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _notebook(content: bytes, name: str) -> str:
    """The sources of a notebook's cells of text and of code; what they put out is left out."""
    if not content.strip():
        return ""
    notebook = read_json(content, name)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if (
        cells is None
        and isinstance(notebook, dict)
        and isinstance(notebook.get("worksheets"), list)
    ):
        # Notebooks of format 3, until 2014.
        sheets = [sheet for sheet in notebook["worksheets"] if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets for cell in sheet.get("cells") or []]
    if not isinstance(cells, list):
        raise CorpusError(f"{name} is not a notebook: it has no list of `cells`")
    sources = [
        _source(cell, f"{name}, cell {number}") for number, cell in enumerate(cells, start=1)
    ]
    text = "\n\n".join(source.strip("\n") for source in sources if source.strip())
    if "\0" in text:
        raise CorpusError(f"{name} is not text: it holds a null character")
    return f"{text}\n" if text else ""


def _source(cell: Any, where: str) -> str:
    kind = cell.get("cell_type") if isinstance(cell, dict) else None
    if kind not in ("markdown", "code", "heading"):
        return ""
    source = cell.get("source", cell.get("input", ""))
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise CorpusError(f"{where}: expected a `source` that is a string or a list of strings")
    text = "".join(lines)
    if not is_unicode(text):
        raise CorpusError(f"{where}: its `source` is not Unicode text")
    return text.replace("\r\n", "\n").replace("\r", "\n")
