"""Files and packages -> documents -> sequences of the model's tokens, embedded and added to a corpus.

Reads text, Markdown, source code (any UTF-8 file), JSON lines and Parquet (a `text` field or column). A
document is cut into sequences of at most `max_length` tokens, at the end of a line where one is near. A file
that is not UTF-8 text is skipped and named. Embedding is one process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selection.corpus import Corpus, CorpusError, Piece
from selection.embedding import Embedder

_SKIPPED_FOLDERS = {"__pycache__", "node_modules", ".git", ".venv", ".cache"}
_TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg"}
    | {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift"}
    | {".js", ".jsx", ".ts", ".tsx", ".css", ".php", ".rb", ".pl", ".lua", ".sh", ".sql", ".r", ".jl", ".hs", ".ml"}
)
_TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
_BATCH = 64


@dataclass(frozen=True)
class Document:
    """A named text."""

    name: str
    text: str


@dataclass(frozen=True)
class Added:
    """What an ingest did; `unchanged` documents were there already, `empty` ones hold no two tokens."""

    documents: int
    sequences: int
    unchanged: int
    empty: int


def package_folder(name: str) -> Path:
    """The folder of an installed Python package, found without importing it.

    Raises:
        CorpusError: no such package, or one without a folder.
    """
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"no installed Python package {name!r} with a folder of its own (give the import name)")
    return Path(next(iter(spec.submodule_search_locations)))


def find_files(path: Path) -> list[Path]:
    """The files to read under a path: the file itself, or a folder's text and table files, sorted.

    Raises:
        CorpusError: nothing is there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CorpusError(f"{path} does not exist")
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _TEXT_SUFFIXES | _TABLE_SUFFIXES
        and not _SKIPPED_FOLDERS.intersection(file.relative_to(path).parts)
        and file.is_file()
    )


def read_file(file: Path, name: str) -> Iterator[Document]:
    """The documents of a file: one, or one a row of JSON lines or Parquet, named NAME#ROW or by the row's `id`.

    Raises:
        CorpusError: not UTF-8, not JSON, or rows without a `text`; the message names the file and row.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _rows(_parquet_rows(file, name), name)
    elif suffix in _TABLE_SUFFIXES:
        yield from _rows(_json_rows(file, name), name)
    else:
        try:
            yield Document(name, file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as problem:
            raise CorpusError(f"{name} is not UTF-8 text: {problem.reason} at byte {problem.start}") from problem


def split(text: str, tokenizer: Any, max_length: int) -> list[Piece]:
    """Cut a text into sequences of at most `max_length` tokens, at a line's end in the second half where there is one.

    A last sequence of a single token is dropped: it has nothing to predict.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    pieces = []
    start = 0
    while start < len(ids):
        end = min(start + max_length, len(ids))
        if end < len(ids):
            for cut in range(end, start + max_length // 2, -1):
                if text[offsets[cut - 1][1] - 1] == "\n":
                    end = cut
                    break
        if end - start > 1:
            first, last = offsets[start][0], offsets[end - 1][1]
            pieces.append(Piece(first, text[first:last], tuple(ids[start:end])))
        start = end
    return pieces


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits that two tokenizers share only if they give the same tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def ingest(
    corpus: Corpus,
    documents: Iterable[Document],
    embedder: Embedder,
    tokenizer: Any,
    *,
    max_length: int = 256,
    on_progress: Callable[[Document, int], None] = lambda document, sequences: None,
) -> Added:
    """Cut, embed and add documents; those already there unchanged are passed over, so a broken-off run resumes.

    `on_progress` is called with each document and its number of sequences, once it is durable or passed over.
    """
    corpus.check(embedder, tokenizer_digest(tokenizer))
    added = sequences = unchanged = empty = 0
    waiting: list[tuple[Document, str, list[Piece]]] = []

    def flush() -> None:
        nonlocal added, sequences
        vectors = embedder.embed([piece.text for _, _, pieces in waiting for piece in pieces])
        row = 0
        for document, digest, pieces in waiting:
            corpus.add(document.name, digest, pieces, vectors[row : row + len(pieces)])
            row += len(pieces)
            added, sequences = added + 1, sequences + len(pieces)
            on_progress(document, len(pieces))
        waiting.clear()

    for document in documents:
        digest = hashlib.sha256(f"{max_length}\n{document.text}".encode()).hexdigest()
        if corpus.has(document.name, digest):
            unchanged += 1
            on_progress(document, 0)
            continue
        pieces = split(document.text, tokenizer, max_length)
        if not pieces:
            empty += 1
            corpus.delete(document.name)  # it may have held something before
            on_progress(document, 0)
            continue
        waiting.append((document, digest, pieces))
        if sum(len(pieces) for _, _, pieces in waiting) >= _BATCH:
            flush()
    if waiting:
        flush()
    corpus.build_index()
    return Added(added, sequences, unchanged, empty)


def _rows(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or not _is_unicode(text):
            raise CorpusError(f"{name}, row {number}: expected a field `text` that holds a string of Unicode text")
        given = row.get("id")
        title = f"{name}#{number if given is None else given}"
        if not _is_unicode(title):
            raise CorpusError(f"{name}, row {number}: its `id` is not Unicode text")
        yield Document(title, text)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _json_rows(file: Path, name: str) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as problem:
                    raise CorpusError(f"{name}, line {number}: not JSON in UTF-8 ({problem})") from problem


def _parquet_rows(file: Path, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = [column for column in ("id", "text") if column in table.schema_arrow.names]
        for batch in table.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise CorpusError(f"{name} is not a Parquet file that can be read: {problem}") from problem
