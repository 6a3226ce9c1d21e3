"""Readers: a file becomes documents. A text, Markdown or source file is one document, a notebook is
one, and each row of a table is one.

The size of what a file expands to is bounded: a text has at most 16 MiB, in any format. An error
names the file that cannot be read, and the reason. This module does not depend on where a file
comes from (see `files`) or on what its documents are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selection.corpus.filters import Scalar
from selection.corpus.sqlite_store import CorpusError
from selection.examples.example import Example
from selection.ingest.tables import MAX_TEXT_BYTES, is_unicode, read_json, read_rows

TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
NOTEBOOK_SUFFIX = ".ipynb"
# Files in a folder are read if they have one of these suffixes, or one of the names below; a file
# that is named itself is read unless its suffix is in UNREADABLE.
_PROSE = (
    ".txt .text .md .mdx .mdown .mkd .markdown .rst .adoc .asciidoc .org .textile .tex .sty "
    ".bib .qmd .rmd .log .srt"
)
_DATA = (
    ".csv .tsv .json .jsonc .json5 .yaml .yml .toml .ini .cfg .conf .properties .xml .xsd "
    ".xsl .xslt .html .htm .xhtml .sql .graphql .gql .proto .thrift .avsc .fbs .prisma .tf "
    ".hcl .nix .rego .csproj .props .diff .patch .po"
)
_CODE = (
    ".py .pyi .pyx .pxd .c .h .cc .cpp .cxx .hh .hpp .hxx .inl .cu .cuh .cl .m .mm .ino .cs "
    ".csx .cshtml .razor .fs .fsi .fsx .vb .vbs .bas .java .kt .kts .scala .sbt .groovy "
    ".gradle .clj .cljs .cljc .edn .rs .go .zig .nim .d .v .sv .vhd .vhdl .swift .dart .js "
    ".jsx .mjs .cjs .ts .tsx .mts .cts .coffee .vue .svelte .astro .css .scss .sass .less "
    ".styl .php .rb .erb .rake .pl .pm .pod .lua .r .jl .ml .mli .hs .elm .purs .ex .exs .eex "
    ".heex .erl .hrl .lisp .el .scm .rkt .lean .agda .idr .f .f90 .f95 .f03 .pas .asm .s .sol "
    ".gd .hx .cr .tcl .awk .sh .bash .zsh .fish .ps1 .psm1 .psd1 .bat .cmd .cmake .mk .mak "
    ".bzl .bazel .j2 .jinja .jinja2 .hbs .ejs .pug .haml .glsl .vert .frag .hlsl .wgsl .metal "
    ".wat"
)
_TEXT_SUFFIXES = frozenset(f"{_PROSE} {_DATA} {_CODE}".split())
_READ_SUFFIXES = _TEXT_SUFFIXES | TABLE_SUFFIXES | {NOTEBOOK_SUFFIX}
_PLAIN = (
    "readme changelog changes history news todo authors contributors contributing install "
    "license copying notice dockerfile containerfile makefile gnumakefile jenkinsfile "
    "vagrantfile procfile justfile rakefile gemfile brewfile caddyfile tiltfile build "
    "workspace"
)
_PLAIN_NAMES = frozenset(_PLAIN.split())
_NAMES_WITH_VARIANTS = ("dockerfile.", "containerfile.", "makefile.", "jenkinsfile.")
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
    """A named text or example with metadata.

    Attributes:
        name: unique in a corpus.
        text: the whole text; of an example, in a form for readers.
        metadata: flat; filters compare its values.
        former: the name that earlier versions gave the document. If a corpus contains the same
            document under that name, it is kept.
        example: the example, if it is one.
    """

    name: str
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    former: str | None = field(default=None, compare=False)
    example: Example | None = None


@dataclass
class IngestCounts:
    """How many documents were handled, and how; updated as it happens, so that it is accurate for
    an interrupted run.

    Attributes:
        added: documents that the corpus did not contain.
        replaced: documents whose text, metadata or chunking had changed.
        unchanged: documents that the corpus already contained.
        empty: documents with fewer than two tokens.
        skipped: rows without a text or an example.
        chunks: chunks of the documents that were added or replaced.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    empty: int = 0
    skipped: int = 0
    chunks: int = 0

    def documents(self) -> dict[str, int]:
        """The counts of documents and rows, by name."""
        return {name: count for name, count in asdict(self).items() if name != "chunks"}


def is_readable(file: Path) -> bool:
    """Whether the name of a file in a folder is one of those that are read."""
    name = file.name.lower()
    return (
        file.suffix.lower() in _READ_SUFFIXES
        or name in _PLAIN_NAMES
        or name.startswith(_NAMES_WITH_VARIANTS)
    )


def read_file(
    file: Path,
    name: str,
    *,
    former: str | None = None,
    counts: IngestCounts | None = None,
    check_cancelled: Callable[[], None] = lambda: None,
    check_example: Callable[[Example], object] = lambda example: None,
) -> Iterator[Document]:
    """The documents of a file: one, or one for each row of a table that has a text or an example.

    A row's document is named NAME#NUMBER, or NAME#ID if the row has an `id`; an id that looks like
    a number is quoted.

    Args:
        file: path of the file.
        name: the file's name in its documents' names and in errors.
        former: the file's name in earlier versions.
        counts: rows without a text or an example are counted here.
        check_cancelled: called repeatedly; an exception that it raises ends the reading.
        check_example: called for each example of a table before any document of it is yielded, such
            as `ExampleChunker.chunk`; an ExampleError that it raises makes the row invalid.

    Raises:
        CorpusError: the file cannot be read, or does not have the format of its suffix; the message
            names the file and the row. No document of a table was yielded then.
    """
    if not is_unicode(name):
        raise CorpusError(f"{name!r} has a name that is not UTF-8: rename it")
    suffix = file.suffix.lower()
    if suffix in UNREADABLE:
        raise CorpusError(
            f"{name} is not text, and {suffix} files are not supported: {UNREADABLE[suffix]}"
        )
    counts = counts or IngestCounts()

    def skip() -> None:
        counts.skipped += 1

    try:
        if suffix in TABLE_SUFFIXES:
            for row in read_rows(file, name, check_cancelled, skip, check_example):
                former_name = None if former is None else f"{former}#{row.former_label}"
                row_name = f"{name}#{row.label}"
                yield Document(row_name, row.text, row.metadata, former_name, row.example)
        elif suffix == NOTEBOOK_SUFFIX:
            yield Document(name, _notebook(_content(file, name), name), former=former)
        else:
            yield Document(name, _text(_content(file, name), name), former=former)
    except OSError as problem:
        raise CorpusError(f"{name} cannot be read: {problem.strerror or problem}") from problem


def _content(file: Path, name: str) -> bytes:
    """A file's bytes. Its stated size is not relied on, since that of a device or of a growing file
    is wrong.
    """
    with file.open("rb") as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        size = max(file.stat().st_size, len(content))
        raise CorpusError(
            f"{name} has {size >> 20} MiB, and a text has at most {MAX_TEXT_BYTES >> 20} MiB: "
            "split it, or supply its parts as JSON lines"
        )
    return content


def _text(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CorpusError(
            f"{name} is not UTF-8 text: it begins with a UTF-16 byte order mark; save it as UTF-8"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as problem:
        raise CorpusError(
            f"{name} is not UTF-8 text: {problem.reason} at byte {problem.start}"
        ) from problem
    if "\0" in text:
        raise CorpusError(f"{name} is not text: it contains a null character")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _notebook(content: bytes, name: str) -> str:
    """The sources of a notebook's text and code cells, without their outputs."""
    if not content.strip():
        return ""
    notebook = read_json(content, name)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if (
        cells is None
        and isinstance(notebook, dict)
        and isinstance(notebook.get("worksheets"), list)
    ):
        # Notebook format 3 was in use until 2014.
        sheets = [sheet for sheet in notebook["worksheets"] if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets for cell in sheet.get("cells") or []]
    if not isinstance(cells, list):
        raise CorpusError(f"{name} is not a notebook: it has no list of `cells`")
    sources = [
        _source(cell, f"{name}, cell {number}") for number, cell in enumerate(cells, start=1)
    ]
    text = "\n\n".join(source.strip("\n") for source in sources if source.strip())
    if "\0" in text:
        raise CorpusError(f"{name} is not text: it contains a null character")
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
