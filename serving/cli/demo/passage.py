"""The corpus of the demonstration, and the passage that it does not contain.

The corpus is a folder of an installed package: vLLM's parsers of reasoning models, of which vLLM
had none when SmolLM2 was trained (late 2024), and which the bundled model was not trained on. The
passage is the middle of its last file that is long enough. Neither was chosen by its result, but
the files resemble one another, as those of one project do: adaptation helps less on other text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.cli.console import PlainConsole, say
from serving.cli.progress import Status, progress_counter

if TYPE_CHECKING:
    from selection.ingest.ingest import Document

PACKAGE, FOLDER = "vllm", "reasoning"
HELD_OUT = "step3_reasoning_parser.py"
PREFIX, SUFFIX = 128, 128  # tokens


@dataclass(frozen=True)
class Passage:
    """A passage of the held-out file.

    Attributes:
        name: name of the file.
        tokens: PREFIX + SUFFIX tokens of the base model.
        prefix: text of the first PREFIX tokens, which is the prompt.
        suffix: text of the rest, which is the true continuation.
    """

    name: str
    tokens: tuple[int, ...]
    prefix: str
    suffix: str


def prepare(home: Path, name: str, model: str, console: PlainConsole) -> Passage:
    """Build the corpus of the demonstration, unless it exists, and return the held-out passage.

    Args:
        home: the folder that contains the corpora.
        name: name of the corpus.
        model: hub id or folder of the base model.
        console: where the progress is shown.

    Raises:
        CorpusError: a corpus of the same name exists and cannot be used.
        ModelFilesError: the tokenizer of the model cannot be loaded.
    """
    from selection.corpus.corpus import Corpus
    from selection.corpus.sqlite_store import CorpusError
    from selection.embedding import load_embedder
    from selection.ingest.ingest import ingest, package_folder, tokenizer_digest
    from serving.settings.model_files import load_tokenizer

    with Status("loading the embedder and the tokenizer", console):
        tokenizer = load_tokenizer(model)
        embedder = load_embedder()
    try:
        corpus = Corpus.create(home / "corpora", name, embedder, tokenizer_digest(tokenizer))
    except CorpusError as problem:
        raise CorpusError(
            f"{problem}; the demonstration needs a corpus of this name: remove the existing one "
            f"with `mayfly corpus remove {name}`, or use another folder with --home"
        ) from problem
    folder = package_folder(PACKAGE) / FOLDER
    say(f"building the corpus from {PACKAGE}/{FOLDER} ...", "dim", console)
    with progress_counter("embedding", "sequences", console=console) as counter:
        ingest(
            corpus,
            _documents(folder),
            embedder,
            tokenizer,
            on_progress=lambda _document, sequences: counter.advance(sequences),
        )
    count, sequences = corpus.counts()
    say(
        f"corpus: {count} documents, {sequences} sequences; held out: {_name(folder / HELD_OUT)}",
        "dim",
        console,
    )
    corpus.close()
    return _passage(folder / HELD_OUT, tokenizer)


def _documents(folder: Path) -> Iterator[Document]:
    from selection.ingest.ingest import find_files, read_file

    for file in find_files(folder):
        if file.name != HELD_OUT:
            yield from read_file(file, _name(file))


def _name(file: Path) -> str:
    return f"{PACKAGE}/{FOLDER}/{file.name}"


def _passage(file: Path, tokenizer: Any) -> Passage:
    text = file.read_text()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start = len(encoded["input_ids"]) // 3
    ids = encoded["input_ids"][start : start + PREFIX + SUFFIX]
    offsets = encoded["offset_mapping"][start : start + PREFIX + SUFFIX]
    first, middle, last = offsets[0][0], offsets[PREFIX][0], offsets[-1][1]
    return Passage(_name(file), tuple(ids), text[first:middle], text[middle:last])
