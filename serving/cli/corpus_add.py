"""The command `mayfly corpus add`: which files, how far it is, what became of them. The work is
done in `selection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from serving.cli.console import err, out, plain_line, say
from serving.cli.ingest_progress import EVERY_SECONDS, IngestProgress
from serving.cli.progress import working
from serving.errors import InstallationError
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from selection.corpus.corpus import Corpus
    from selection.embedding import Embedder, Embeddings
    from selection.ingest.files import FileListing, SourceFile
    from selection.ingest.ingest import Document, IngestCounts

_Embed = Callable[[Iterable[list[str]]], Iterator["Embeddings"]]

_REDRAW_SECONDS = 0.1
_BAR_WIDTH = 12
_PART = 32  # sequences embedded between two looks at the clock
_NAMED = 3  # documents named in a note


def corpus_add(
    name: Annotated[str, typer.Argument(help="The corpus; it is created if it does not exist.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files and folders: text, Markdown, source code, notebooks, JSON lines, Parquet."
        ),
    ] = None,
    package: Annotated[
        list[str] | None,
        typer.Option("--package", help="An installed Python package, by import name."),
    ] = None,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    max_length: Annotated[
        int, typer.Option("--max-length", min=8, help="Longest training sequence, in tokens.")
    ] = 256,
    overlap: Annotated[
        int,
        typer.Option(
            "--overlap",
            min=0,
            help="Tokens a sequence shares with the one before, half its length at most.",
        ),
    ] = 0,
    unique: Annotated[
        bool,
        typer.Option(
            "--unique", help="Leave out sequences whose very tokens the corpus holds already."
        ),
    ] = False,
    spread: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Embed on the Ray cluster at RAY_ADDRESS, or on one made here of all cores.",
        ),
    ] = False,
    home: Home = HOME,
) -> None:
    """Add documents to a corpus. A run that was interrupted goes on where it stopped.

    Examples: [cyan]mayfly corpus add mine ./src notes.md[/] and [cyan]mayfly corpus add nx
    --package networkx[/]
    """
    if not paths and not package:
        raise typer.BadParameter("name files, folders or --package", param_hint="PATH")
    from selection.corpus.corpus import Corpus
    from selection.corpus.lookup import check_name
    from selection.ingest.files import list_files
    from selection.ingest.ingest import Chunking, IngestCounts, ingest, tokenizer_digest

    check_name(name)
    cut = Chunking(max_length, overlap, unique)
    findings = list_files(paths or [], package or [])
    tally, unread = IngestCounts(), list(findings.problems)
    if not findings.files:
        _tell(name, findings, tally, unread)
        raise typer.Exit(1)
    try:
        from serving.config import bundled_model
        from serving.settings.model_files import check_embedder, check_model, load_tokenizer

        base = model or bundled_model()
        check_model(base)
        check_embedder(embedder, base)
        with working("loading the embedder and the tokenizer"):
            from selection.embedding import load_embedder

            tokenizer = load_tokenizer(base)
            vectors = load_embedder(embedder, base_model=base)
            corpus = Corpus.create(home / "corpora", name, vectors, tokenizer_digest(tokenizer))
        with (
            _progress(findings.files) as progress,
            _embedding(embedder, base, vectors, progress, spread) as embed,
        ):
            adding = _Adding(corpus, findings.files, progress, tally, unread)
            ingest(
                corpus,
                adding.documents(),
                vectors,
                tokenizer,
                chunking=cut,
                on_progress=adding.settled,
                embed=embed,
                counts=tally,
                check_cancelled=progress.tick,
            )
    except KeyboardInterrupt:
        say(f"\ninterrupted: {_kept(tally)}")
        raise typer.Exit(130) from None
    except Exception:
        if tally.added or tally.replaced:
            say(f"broken off: {_kept(tally)}")
        raise
    _tell(name, findings, tally, unread)
    if former := adding.outdated():
        named = ", ".join(former[:_NAMED]) + (", ..." if len(former) > _NAMED else "")
        say(
            f"note: {len(former)} documents are still there under the names that earlier versions gave them, with "
            f"other content: {named}; where they are out of date, remove them with `mayfly corpus remove {name} "
            "--document NAME`"
        )
    corpus.close()
    if not tally.added and not tally.replaced and not tally.unchanged:
        raise typer.Exit(1)


class _Adding:
    """Reads the files, and follows what becomes of their documents."""

    def __init__(
        self,
        corpus: Corpus,
        files: Iterable[SourceFile],
        progress: IngestProgress,
        tally: IngestCounts,
        unread: list[str],
    ) -> None:
        self._corpus, self._files, self._progress = corpus, files, progress
        self._tally, self._unread = tally, unread
        self._former: list[str] = []

    def documents(self) -> Iterator[Document]:
        """The documents of all files; of a file that cannot be read, the reason is kept."""
        from selection.corpus.sqlite_store import CorpusError
        from selection.ingest.ingest import read_file

        for file in self._files:
            self._progress.open_file(file.bytes)
            try:
                for document in read_file(
                    file.path,
                    file.name,
                    former=file.former,
                    counts=self._tally,
                    check_cancelled=self._progress.tick,
                ):
                    self._progress.document(document.name, len(document.text.encode()))
                    yield document
            except CorpusError as problem:
                self._unread.append(str(problem))
            self._progress.close_file()

    def settled(self, document: Document, sequences: int) -> None:
        """A document is in the corpus, or was there already."""
        self._progress.settled(document.name, sequences)
        former = document.former
        if sequences and former not in (None, document.name) and self._corpus.has_name(former):
            self._former.append(former)

    def outdated(self) -> list[str]:
        """Former names that are still there, and that no file has today."""
        return [former for former in self._former if not Path(former.split("#")[0]).exists()]


@contextmanager
def _progress(files: Iterable[SourceFile]) -> Iterator[IngestProgress]:
    """On a terminal a bar, elsewhere a line every few seconds."""
    sizes = [file.bytes for file in files]
    if not err.is_terminal:
        yield IngestProgress(
            len(sizes), sum(sizes), lambda line: say(f"adding: {line}"), EVERY_SECONDS
        )
        return
    columns = (BarColumn(_BAR_WIDTH), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=err) as bars:
        task = bars.add_task("", total=sum(sizes))
        progress = IngestProgress(
            len(sizes),
            sum(sizes),
            lambda line: bars.update(task, completed=progress.done, description=line),
            _REDRAW_SECONDS,
        )
        yield progress
        bars.update(task, completed=progress.done, description=str(progress))


@contextmanager
def _embedding(
    embedder: str, base_model: str, here: Embedder, progress: IngestProgress, spread: bool
) -> Iterator[_Embed]:
    """What embeds batches of texts, in this process or on a Ray cluster, and tells the progress."""
    import numpy as np

    def embed_here(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
        for texts in batches:
            parts = []
            for first in range(0, len(texts), _PART):
                parts.append(here.embed(texts[first : first + _PART]))
                progress.embedded(len(parts[-1]))
            yield np.concatenate(parts)

    if not spread:
        yield embed_here
        return
    try:
        from serving.cli.ray_embedding import cluster
    except ImportError as problem:
        raise InstallationError(
            f"--ray needs Ray Data: install mayfly[data] ({problem})"
        ) from problem
    with cluster(embedder, base_model) as workers:

        def embed_there(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
            for vectors in workers.embed(batches):
                progress.embedded(len(vectors))
                yield vectors

        yield embed_there


def _tell(name: str, findings: FileListing, tally: IngestCounts, unread: list[str]) -> None:
    """What became of the files, and what was left out."""
    for problem in unread:
        say(Text.assemble(("skipped: ", "yellow"), plain_line(problem)))
    left = [
        f"{count} {ending or 'without an ending'}" for ending, count in findings.skipped.items()
    ]
    left += [f"the folder {folder}" for folder in findings.skipped_folders]
    if left:
        say(f"left out: {', '.join(left)}")
    said = [f"added {tally.added} documents"]
    said += [f"replaced {tally.replaced}"] if tally.replaced else []
    said.append(f"{tally.chunks} sequences")
    rest = [
        (tally.unchanged, "were there already"),
        (tally.empty, "were empty"),
        (tally.skipped, "rows had no text"),
        (len(unread), "could not be read"),
    ]
    line = "; ".join([", ".join(said), *(f"{count} {what}" for count, what in rest if count)])
    say(f"corpus {name}: {line}", to=out)


def _kept(tally: IngestCounts) -> str:
    kept = tally.added + tally.replaced
    if not kept:
        return "nothing had been added yet; run the same command again"
    return (
        f"{kept} documents with {tally.chunks} sequences were added and are kept; "
        "the same command goes on from there"
    )
