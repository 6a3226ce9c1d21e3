"""The commands `mayfly corpus`: make, fill, look at and remove corpora. The work is done in `selection`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from serving.terminal import EMBEDDER, HOME, EmbedderName, Home, Model, err, out

if TYPE_CHECKING:
    from selection.documents import Document
    from selection.embedding import Embeddings

corpus_app = typer.Typer(
    help="Make, fill and look at corpora: the data that adapters are trained on.", no_args_is_help=True
)


@corpus_app.command("add")
def corpus_add(
    name: Annotated[str, typer.Argument(help="The corpus; made if there is none of that name.")],
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders: text, Markdown, source code, JSON lines, Parquet.")
    ] = None,
    package: Annotated[
        list[str] | None, typer.Option("--package", help="An installed Python package, by import name.")
    ] = None,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    max_length: Annotated[int, typer.Option("--max-length", min=8, help="Longest training sequence, in tokens.")] = 256,
    overlap: Annotated[
        int,
        typer.Option("--overlap", min=0, help="Tokens a sequence shares with the one before, half its length at most."),
    ] = 0,
    unique: Annotated[
        bool, typer.Option("--unique", help="Leave out sequences whose very tokens the corpus holds already.")
    ] = False,
    spread: Annotated[
        bool, typer.Option("--ray", help="Embed on the Ray cluster at RAY_ADDRESS, or on one made here of all cores.")
    ] = False,
    home: Home = HOME,
) -> None:
    """Add documents; a run that was broken off goes on where it was.

    Examples: [cyan]mayfly corpus add mine ./src notes.md[/] and [cyan]mayfly corpus add nx --package networkx[/]
    """
    if not paths and not package:
        raise typer.BadParameter("name files, folders or --package", param_hint="PATH")
    from transformers import AutoTokenizer

    from selection.corpus import Corpus
    from selection.documents import Cut, find_files, ingest, package_folder, tokenizer_digest
    from selection.embedding import load_embedder
    from serving.config import bundled_model

    cut = Cut(max_length, overlap, unique)
    roots = [path.resolve() for path in paths or []] + [package_folder(p) for p in package or []]
    files = [(root, file) for root in roots for file in find_files(root)]
    base = model or bundled_model()
    with err.status("loading the embedder and the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(base)
        vectors = load_embedder(embedder, base_model=base)
        corpus = Corpus.create(home / "corpora", name, vectors, tokenizer_digest(tokenizer))
    skipped: list[str] = []
    with _bar("files") as progress:
        task = progress.add_task("adding", total=len(files), sequences=0)
        total = 0

        def count(_document: Document, sequences: int) -> None:
            nonlocal total
            total += sequences
            progress.update(task, sequences=total)

        def documents() -> Iterator[Document]:
            for root, file in files:
                yield from _read(root, file, skipped)
                progress.advance(task)

        with _embedding(embedder, base) if spread else nullcontext() as embed:
            added = ingest(corpus, documents(), vectors, tokenizer, cut=cut, on_progress=count, embed=embed)
    for problem in skipped:
        err.print(f"[yellow]skipped:[/] {problem}", highlight=False, soft_wrap=True)
    rest = f"; {added.unchanged} were there already" if added.unchanged else ""
    rest += f"; {added.empty} were empty" if added.empty else ""
    rest += f"; {len(skipped)} could not be read" if skipped else ""
    out.print(f"corpus {name}: added {added.documents} documents, {added.sequences} sequences{rest}", highlight=False)
    corpus.close()
    if skipped and not added.documents and not added.unchanged:
        raise typer.Exit(1)


@corpus_app.command("list")
def corpus_list(home: Home = HOME) -> None:
    """List the corpora."""
    from selection.corpus import Corpus, list_corpora

    table = Table("corpus", "documents", "sequences", "embedder", box=None, pad_edge=False)
    for name in list_corpora(home / "corpora"):
        corpus = Corpus.open(home / "corpora", name)
        documents, sequences = corpus.counts()
        table.add_row(name, str(documents), str(sequences), corpus.embedder)
        corpus.close()
    out.print(table if table.row_count else f"no corpora in {home}; `mayfly corpus add NAME PATH` makes one")


@corpus_app.command("show")
def corpus_show(name: str, home: Home = HOME) -> None:
    """List a corpus's documents with their number of sequences."""
    from selection.corpus import Corpus

    corpus = Corpus.open(home / "corpora", name)
    table = Table("id", "document", "sequences", box=None, pad_edge=False)
    for entry in corpus.documents():
        table.add_row(str(entry.id), entry.name, str(entry.sequences))
    out.print(table)
    corpus.close()


@corpus_app.command("remove")
def corpus_remove(
    name: str,
    document: Annotated[
        str | None, typer.Option("--document", help="Remove this document only, by name or id.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = HOME,
) -> None:
    """Remove a corpus, or one document of it."""
    from selection.corpus import Corpus
    from selection.store import CorpusError

    corpus = Corpus.open(home / "corpora", name)
    if document is not None:
        if not (corpus.delete(document) or (document.isdecimal() and corpus.delete(int(document)))):
            raise CorpusError(f"corpus {name!r} has no document {document!r}; `mayfly corpus show {name}` lists them")
        corpus.build_index()
        out.print(f"corpus {name}: removed {document}", highlight=False)
    else:
        documents, sequences = corpus.counts()
        if not yes:
            typer.confirm(f"Remove corpus {name} with {documents} documents, {sequences} sequences?", abort=True)
        corpus.remove()
        out.print(f"removed corpus {name}", highlight=False)


@corpus_app.command("reembed")
def corpus_reembed(name: str, model: Model = None, embedder: EmbedderName = EMBEDDER, home: Home = HOME) -> None:
    """Embed a corpus anew, for another embedder; a run that was broken off goes on where it was."""
    from selection.corpus import Corpus
    from selection.embedding import load_embedder
    from serving.config import bundled_model

    corpus = Corpus.open(home / "corpora", name)
    with err.status("loading the embedder"):
        vectors = load_embedder(embedder, base_model=model or bundled_model())
    total = corpus.counts()[1]
    with _bar("sequences") as progress:
        task = progress.add_task("embedding", total=total, sequences=total)
        corpus.reembed(vectors, lambda done, _total: progress.advance(task, done))
    out.print(f"corpus {name}: {total} sequences embedded by {vectors.name}", highlight=False)
    corpus.close()


@corpus_app.command("shard")
def corpus_shard(
    name: str,
    shards: Annotated[int, typer.Option("--shards", min=1, max=64, help="How many.")],
    home: Home = HOME,
) -> None:
    """Spread a corpus over shards, for `mayfly serve --shards`, or have its shards follow what has changed since.

    The corpus stays as it is. A shard is a folder of its own, shards/0-of-4 and so on, on any machine.
    """
    from selection.corpus import Corpus
    from selection.shards import folder_of, follow

    corpus = Corpus.open(home / "corpora", name)
    roots = [folder_of(home, shard, shards) for shard in range(shards)]
    with _bar("documents") as progress:
        task = progress.add_task("spreading", total=None, sequences=corpus.counts()[1])
        follow(corpus, roots, lambda done, total: progress.update(task, completed=done, total=total))
    for root in roots:
        part = Corpus.open(root, corpus.name)
        documents, sequences = part.counts()
        out.print(f"{root}: {documents} documents, {sequences} sequences", highlight=False, soft_wrap=True)
        part.close()
    corpus.close()


@contextmanager
def _embedding(embedder: str, base_model: str) -> Iterator[Callable[[Iterable[list[str]]], Iterator[Embeddings]]]:
    try:
        from serving.spread import cluster
    except ImportError as problem:
        raise ValueError(f"--ray needs Ray Data: install mayfly[data] ({problem})") from problem
    with cluster(embedder, base_model) as spread:
        yield spread.embed


def _read(root: Path, file: Path, skipped: list[str]) -> Iterator[Document]:
    from selection.documents import read_file
    from selection.store import CorpusError

    name = file.name if root == file else f"{root.name}/{file.relative_to(root)}"
    try:
        yield from read_file(file, name)
    except CorpusError as problem:
        skipped.append(str(problem))


def _bar(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + ", {task.fields[sequences]} sequences in all"),
        TimeElapsedColumn(),
        console=err,
    )
