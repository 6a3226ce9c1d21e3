"""The command `mayfly corpus add`: finds the files, shows the progress and reports the result.

`selection.ingest` reads, splits and embeds the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from serving.cli.console import err, out, plain_line, say
from serving.cli.corpus.ingest_progress import IngestProgress
from serving.cli.progress import ProgressLines, Status
from serving.errors import InstallationError
from serving.settings.shared_options import (
    EMBEDDER,
    HOME,
    ChatTemplate,
    Corpora,
    EmbedderName,
    Home,
    Model,
    location_of,
    refuse_recorded_password,
)

if TYPE_CHECKING:
    from selection.corpus.corpus import Corpus
    from selection.embedding import Embeddings
    from selection.ingest.examples import ExampleChunker
    from selection.ingest.files import FileListing, SourceFile
    from selection.ingest.ingest import Document, IngestCounts
    from selection.location import DatabaseLocation, Location
    from selection.threaded_embedder import ThreadedEmbedder

_EmbedBatches = Callable[[Iterable[list[str]]], Iterator["Embeddings"]]

_BAR_WIDTH = 12
_NAMED_DOCUMENTS = 3  # in a note


def corpus_add(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name of the corpus; it is created if it does not exist.")
    ],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files and folders: text, Markdown, source code, notebooks; JSON Lines, Parquet: "
            "rows of texts or examples."
        ),
    ] = None,
    package: Annotated[
        list[str] | None,
        typer.Option("--package", help="Installed Python package to add, by its import name."),
    ] = None,
    model: Model = None,
    chat_template: ChatTemplate = None,
    embedder: EmbedderName = EMBEDDER,
    max_length: Annotated[
        int, typer.Option("--max-length", min=8, help="Maximum tokens of a training sequence.")
    ] = 256,
    overlap: Annotated[
        int,
        typer.Option(
            "--overlap",
            min=0,
            help="Tokens that consecutive sequences share; at most half of --max-length.",
        ),
    ] = 0,
    unique: Annotated[
        bool,
        typer.Option(
            "--unique", help="Skip sequences whose exact tokens are already in the corpus."
        ),
    ] = False,
    use_ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Embed on the Ray cluster at RAY_ADDRESS, or on a local one with all cores, and "
            "write from its nodes if the corpora are in a database.",
        ),
    ] = False,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Add documents to a corpus. An interrupted run continues where it stopped.

    Examples: [cyan]mayfly corpus add mine ./src notes.md[/] and [cyan]mayfly corpus add nx
    --package networkx[/]
    """
    if not paths and not package:
        raise typer.BadParameter("name files, folders or --package", param_hint="PATH")
    from selection.corpus.corpus import Corpus
    from selection.corpus.lookup import check_name
    from selection.examples.templates import set_chat_template
    from selection.ingest.examples import ExampleChunker, context_tokens
    from selection.ingest.files import list_files
    from selection.ingest.ingest import Chunking, IngestCounts, ingest, tokenizer_digest
    from selection.ingest.parallel import ingest_in_parallel
    from serving.local.checks import check_writable

    check_name(name)
    location = location_of(home, corpora)
    if use_ray:
        refuse_recorded_password(context, corpora)
    shared = _shared(location, unique) if use_ray else None
    chunking = Chunking(max_length, overlap, unique)
    listing = list_files(paths or [], package or [])
    counts, problems = IngestCounts(), list(listing.problems)
    if not listing.files:
        _print_summary(name, listing, counts, problems)
        raise typer.Exit(1)
    if isinstance(location, Path):
        check_writable(location / name)
    try:
        from serving.models.catalogue import model_folder
        from serving.settings.model_files import check_embedder, check_model, load_tokenizer

        base = model_folder(model)
        check_model(base)
        check_embedder(embedder, base)
        with Status("loading the embedder and the tokenizer"):
            from selection.embedding import load_embedder
            from selection.threaded_embedder import ThreadedEmbedder

            tokenizer = load_tokenizer(base)
            set_chat_template(tokenizer, chat_template)
            examples = ExampleChunker(tokenizer, context_tokens(base))
            loaded = ThreadedEmbedder(partial(load_embedder, embedder, base_model=base))
            corpus = Corpus.create(location, name, loaded, tokenizer_digest(tokenizer))
        with _show_progress(listing.files) as progress:
            documents = _Documents(corpus, listing.files, examples, progress, counts, problems)
            if shared is not None:
                with _ray_installed():
                    from serving.cli.corpus.ray_writing import ClusterWriter
                corpus.check(loaded, tokenizer_digest(tokenizer), examples.digest)
                writer = ClusterWriter(
                    shared, corpus.name, embedder, base, tokenizer, context_tokens(base), chunking
                )
                ingest_in_parallel(
                    corpus,
                    documents.read(),
                    writer.write,
                    chunking=chunking,
                    counts=counts,
                    on_progress=documents.finish_embedded,
                    check_cancelled=progress.refresh,
                )
            else:
                with _embed_function(embedder, base, loaded, progress, use_ray) as embed:
                    ingest(
                        corpus,
                        documents.read(),
                        loaded,
                        tokenizer,
                        chunking=chunking,
                        examples=examples,
                        on_progress=documents.finish,
                        embed=embed,
                        counts=counts,
                        check_cancelled=progress.refresh,
                    )
    except KeyboardInterrupt:
        say(f"\ninterrupted: {_kept(counts, at_least=shared is not None)}")
        raise typer.Exit(130) from None
    except Exception:
        if counts.added or counts.replaced:
            say(f"stopped by an error: {_kept(counts, at_least=shared is not None)}")
        raise
    _print_summary(name, listing, counts, problems)
    if former := documents.outdated_names():
        listed = ", ".join(former[:_NAMED_DOCUMENTS])
        more = ", ..." if len(former) > _NAMED_DOCUMENTS else ""
        say(
            f"note: the corpus still has {len(former)} documents under names that earlier versions "
            f"of Mayfly gave them, with other content: {listed}{more}; if they are out of date, "
            f"remove them with `mayfly corpus remove {name} --document NAME`"
        )
    corpus.close()
    if not counts.added and not counts.replaced and not counts.unchanged:
        raise typer.Exit(1)


class _Documents:
    """Reads the documents of the files and tracks which of them are finished."""

    def __init__(
        self,
        corpus: Corpus,
        files: Iterable[SourceFile],
        examples: ExampleChunker,
        progress: IngestProgress,
        counts: IngestCounts,
        problems: list[str],
    ) -> None:
        self._corpus, self._files, self._progress = corpus, files, progress
        self._counts, self._problems, self._examples = counts, problems, examples
        self._former_names: list[str] = []

    def read(self) -> Iterator[Document]:
        """The documents of all files; a file that cannot be read adds to the problems."""
        from selection.corpus.sqlite_store import CorpusError
        from selection.ingest.ingest import read_file

        for file in self._files:
            self._progress.open_file(file.bytes)
            try:
                for document in read_file(
                    file.path,
                    file.name,
                    former=file.former,
                    counts=self._counts,
                    check_cancelled=self._progress.refresh,
                    check_example=self._examples.chunk,
                ):
                    self._progress.read_document(document.name, len(document.text.encode()))
                    yield document
            except CorpusError as problem:
                self._problems.append(str(problem))
            self._progress.close_file()

    def finish(self, document: Document, sequences: int) -> None:
        """A document is in the corpus; with 0 new sequences it was there before."""
        self._progress.finish_document(document.name, sequences)
        former = document.former
        if sequences and former not in (None, document.name) and self._corpus.has_name(former):
            self._former_names.append(former)

    def finish_embedded(self, document: Document, sequences: int) -> None:
        """As `finish`, for sequences that were not counted when they were embedded."""
        self._progress.add_embedded(sequences)
        self.finish(document, sequences)

    def outdated_names(self) -> list[str]:
        """Former names that are still in the corpus and that no file has today."""
        return [name for name in self._former_names if not Path(name.split("#")[0]).exists()]


@contextmanager
def _show_progress(files: Iterable[SourceFile]) -> Iterator[IngestProgress]:
    """Show the progress as a bar on a terminal, as a line every few seconds elsewhere."""
    sizes = [file.bytes for file in files]
    if not err.is_terminal:
        lines = ProgressLines("adding", say)
        progress = IngestProgress(len(sizes), sum(sizes), lambda each: lines.report(str(each)))
        yield progress
        if lines.count:
            lines.report(str(progress), force=True)
        return
    columns = (BarColumn(_BAR_WIDTH), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=err) as bars:
        task = bars.add_task("", total=sum(sizes))
        yield IngestProgress(
            len(sizes),
            sum(sizes),
            lambda progress: bars.update(task, completed=progress.done, description=str(progress)),
        )


@contextmanager
def _embed_function(
    embedder: str,
    base_model: str,
    loaded: ThreadedEmbedder,
    progress: IngestProgress,
    use_ray: bool,
) -> Iterator[_EmbedBatches]:
    """A function that embeds batches of texts, in this process or on a Ray cluster."""

    def counted(vectors: Iterable[Embeddings]) -> Iterator[Embeddings]:
        for batch in vectors:
            progress.add_embedded(len(batch))
            yield batch

    if not use_ray:
        yield lambda batches: counted(loaded.embed_ahead(batches))
        return
    with _ray_installed():
        from serving.cli.corpus.ray_embedding import cluster
    with cluster(embedder, base_model) as workers:
        yield lambda batches: counted(workers.embed(batches))


@contextmanager
def _ray_installed() -> Iterator[None]:
    """Say what to install if Ray Data, which is imported within the `with` block, is missing."""
    try:
        yield
    except ImportError as problem:
        raise InstallationError(
            f"--ray needs Ray Data: install mayfly-serve[data] ({problem})"
        ) from problem


def _shared(location: Location, unique: bool) -> DatabaseLocation | None:
    """The database that the workers of a cluster write into; None if this process writes: which
    document has a sequence that must be unique would depend on the order in which they write.
    """
    from selection.location import DatabaseLocation

    return location if isinstance(location, DatabaseLocation) and not unique else None


def _print_summary(
    name: str, listing: FileListing, counts: IngestCounts, problems: list[str]
) -> None:
    """Print how many documents were added, replaced and skipped, and which files were left out."""
    for problem in problems:
        say(Text.assemble(("skipped: ", "yellow"), plain_line(problem)))
    left_out = [
        f"{count} {ending or 'without an ending'}" for ending, count in listing.skipped.items()
    ]
    left_out += [f"the folder {folder}" for folder in listing.skipped_folders]
    if left_out:
        say(f"left out: {', '.join(left_out)}")
    added = [f"added {counts.added} documents"]
    added += [f"replaced {counts.replaced}"] if counts.replaced else []
    added.append(f"{counts.chunks} sequences")
    rest = [
        (counts.unchanged, "were already there"),
        (counts.empty, "were empty"),
        (counts.skipped, "rows had no text"),
        (len(problems), "could not be read"),
    ]
    line = "; ".join([", ".join(added), *(f"{count} {what}" for count, what in rest if count)])
    say(f"corpus {name}: {line}", to=out)


def _kept(counts: IngestCounts, *, at_least: bool) -> str:
    """What is kept of an interrupted run; `at_least` if other processes may have added more."""
    kept = counts.added + counts.replaced
    if not kept:
        return f"nothing was {'reported as ' * at_least}added yet; run the same command again"
    return (
        f"{'at least ' * at_least}{kept} documents with {counts.chunks} sequences were added and "
        "are kept; run the same command again to continue"
    )
