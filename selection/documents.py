"""Files and packages -> documents -> sequences of the model's tokens, embedded and added to a corpus.

Reads text, Markdown, source code (any UTF-8 file), JSON lines and Parquet (a `text` field or column). A
document is cut into sequences of at most `max_length` tokens: at a definition or paragraph where one is near, else at
the end of a line, else anywhere. A file that cannot be read is named with the reason. Embedding is one process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from selection.corpus import Corpus
from selection.embedding import Embedder, Embeddings
from selection.errors import SelectionOptionError
from selection.filters import Scalar
from selection.store import CorpusError, Piece

_SKIPPED_FOLDERS = {"__pycache__", "node_modules", ".git", ".venv", ".cache"}
_TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg"}
    | {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift"}
    | {".js", ".jsx", ".ts", ".tsx", ".css", ".php", ".rb", ".pl", ".lua", ".sh", ".sql", ".r", ".jl", ".hs", ".ml"}
)
_TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
_BATCH = 64  # sequences
_LARGEST_TEXT = 16 << 20  # bytes, of a text file or of a line of JSON
_BOUNDARY = re.compile(r"\n\s*\n|\n(?=(?:async def|def|class|fn|func|function|public|private|@|#{1,6} ))")


@dataclass(frozen=True)
class Document:
    """A named text, and what filters may ask of it."""

    name: str
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """How documents become sequences.

    Attributes:
        max_length: tokens of a sequence at most.
        overlap: tokens at the end of a sequence that begin the next one, too.
        unique: leave out a sequence whose very tokens the corpus holds already. It then belongs to the document that
            brought it first, and goes with it.
    """

    max_length: int = 256
    overlap: int = 0
    unique: bool = False

    def __post_init__(self) -> None:
        if not self.max_length >= 2:
            raise SelectionOptionError(f"a sequence has at least 2 tokens, not {self.max_length}")
        if not 0 <= self.overlap <= self.max_length // 2:
            raise SelectionOptionError(
                f"sequences of {self.max_length} tokens can overlap by 0 to {self.max_length // 2}"
            )


@dataclass(frozen=True)
class Added:
    """What an ingest did; `unchanged` documents were there already, `empty` ones hold no two tokens."""

    documents: int
    sequences: int
    unchanged: int
    empty: int


_Batch: TypeAlias = list[tuple[Document, str, list[Piece]]]


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
        CorpusError: unreadable, too large, not UTF-8, not text, not JSON, or rows without a `text`; the message names
            the file and row.
    """
    if not _is_unicode(name):
        raise CorpusError(f"{name!r} has a name that is not UTF-8: rename it")
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _rows(_parquet_rows(file, name), name)
        elif suffix in _TABLE_SUFFIXES:
            yield from _rows(_json_rows(file, name), name)
        else:
            yield Document(name, _text(file, name))
    except OSError as problem:
        raise CorpusError(f"{name} cannot be read: {problem.strerror}") from problem


def split(text: str, tokenizer: Any, cut: Cut) -> list[Piece]:
    """Cut a text into sequences.

    A sequence ends where the last definition or paragraph in its second half begins, else at the last line's end
    there, else when it is full. A last sequence of a single token is dropped: it has nothing to predict.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    boundaries = {match.end() for match in _BOUNDARY.finditer(text)}
    pieces = []
    start = 0
    while start < len(ids):
        end = min(start + cut.max_length, len(ids))
        if end < len(ids):
            ends = range(end, start + cut.max_length // 2, -1)
            at_line = [e for e in ends if text[offsets[e - 1][1] - 1] == "\n"]
            end = next((e for e in at_line if offsets[e - 1][1] in boundaries), at_line[0] if at_line else end)
        if end - start > 1:
            first, last = offsets[start][0], offsets[end - 1][1]
            pieces.append(Piece(first, text[first:last], tuple(ids[start:end])))
        if end == len(ids):
            break
        start = max(end - cut.overlap, start + 1)
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
    cut: Cut | None = None,
    on_progress: Callable[[Document, int], None] = lambda document, sequences: None,
    embed: Callable[[Iterable[list[str]]], Iterable[Embeddings]] | None = None,
    file: str | None = None,
) -> Added:
    """Cut, embed and add documents; those already there unchanged are passed over, so a broken-off run resumes.

    Args:
        corpus: made with this embedder and this tokenizer.
        documents: read as they are needed.
        embedder: of the corpus.
        tokenizer: the base model's.
        cut: how documents become sequences.
        on_progress: called with each document and its number of sequences, once it is durable or passed over.
        embed: batches of texts to their vectors, in order, by the same embedder elsewhere; None embeds here.
        file: the attachment that the documents belong to.
    """
    cut = cut or Cut()
    corpus.check(embedder, tokenizer_digest(tokenizer))
    held = Counter(corpus.token_sequences()) if cut.unique else Counter()
    added = sequences = unchanged = empty = 0
    waiting: deque[_Batch] = deque()

    def batches() -> Iterator[_Batch]:
        nonlocal unchanged, empty
        batch: _Batch = []
        for document in documents:
            digest = content_digest(document, cut)
            if corpus.has(document.name, digest):
                unchanged += 1
                on_progress(document, 0)
                continue
            pieces = split(document.text, tokenizer, cut)
            if cut.unique:
                held.subtract(corpus.token_sequences(document.name))  # what it replaces is no reason to leave it out
                pieces = _unseen(pieces, held)
            if not pieces:
                empty += 1
                corpus.delete(document.name)  # it may have held something before
                on_progress(document, 0)
                continue
            batch.append((document, digest, pieces))
            if sum(len(pieces) for _, _, pieces in batch) >= _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def texts() -> Iterator[list[str]]:
        for batch in batches():
            waiting.append(batch)
            yield [piece.text for _, _, pieces in batch for piece in pieces]

    for vectors in embed(texts()) if embed else map(embedder.embed, texts()):
        row = 0
        for document, digest, pieces in waiting.popleft():
            corpus.add(document.name, digest, pieces, vectors[row : row + len(pieces)], document.metadata, file)
            row += len(pieces)
            added, sequences = added + 1, sequences + len(pieces)
            on_progress(document, len(pieces))
    corpus.build_index()
    return Added(added, sequences, unchanged, empty)


def content_digest(document: Document, cut: Cut) -> str:
    """What changes when a document would be stored otherwise: its text, its metadata, how it is cut."""
    said = json.dumps([cut.max_length, cut.overlap, cut.unique, sorted(document.metadata.items())])
    return hashlib.sha256(f"{said}\n{document.text}".encode()).hexdigest()


def _unseen(pieces: Iterable[Piece], held: Counter[bytes]) -> list[Piece]:
    """The pieces that are not held yet; they are from now on."""
    kept = []
    for piece in pieces:
        tokens = np.array(piece.tokens, np.int32).tobytes()
        if held[tokens] <= 0:
            held[tokens] = 1
            kept.append(piece)
    return kept


def _text(file: Path, name: str) -> str:
    size = file.stat().st_size
    if size > _LARGEST_TEXT:
        raise CorpusError(
            f"{name} has {size >> 20} MiB; a text has {_LARGEST_TEXT >> 20} at most: "
            "split it, or give its parts as JSON lines"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise CorpusError(f"{name} is not UTF-8 text: {problem.reason} at byte {problem.start}") from problem
    if "\0" in text:
        raise CorpusError(f"{name} is not text: it holds a null character")
    return text


def _rows(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Document]:
    for number, row in enumerate(rows, start=1):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str) or not _is_unicode(text):
            raise CorpusError(f"{name}, row {number}: expected a field `text` that holds a string of Unicode text")
        given = row.get("id")
        title = f"{name}#{number if given is None else given}"
        if not _is_unicode(title):
            raise CorpusError(f"{name}, row {number}: its `id` is not Unicode text")
        metadata = {} if row.get("metadata") is None else row["metadata"]
        flat = isinstance(metadata, dict) and all(_is_scalar(value) for value in metadata.values())
        if not flat or not _is_unicode(json.dumps(metadata, ensure_ascii=False)):
            raise CorpusError(
                f"{name}, row {number}: `metadata` is an object of strings, finite numbers, true and false"
            )
        yield Document(title, text, metadata)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _json_rows(file: Path, name: str) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_LARGEST_TEXT + 1), b""), start=1):
            if len(line) > _LARGEST_TEXT:
                raise CorpusError(f"{name}, line {number}: more than {_LARGEST_TEXT >> 20} MiB")
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
        columns = [column for column in ("id", "text", "metadata") if column in table.schema_arrow.names]
        for batch in table.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise CorpusError(f"{name} is not a Parquet file that can be read: {problem}") from problem
