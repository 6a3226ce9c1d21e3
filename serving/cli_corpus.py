"""The commands `mayfly corpus`: make, fill, look at and remove corpora. The work is done in `selection`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from serving.errors import InstallationError, in_full
from serving.progress import kept_when_broken_off, reporting, working
from serving.terminal import EMBEDDER, HOME, EmbedderName, Home, Model, err, out, plain_line, row, say, show, table

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
    check_paths(paths or [])
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
    """List the corpora; exit status 1 where one of them cannot be opened."""
    from selection.corpus import Corpus, list_corpora
    from selection.errors import CorpusError, CorpusNotFoundError

    corpora, unusable = table("corpus", "documents", "sequences", "embedder"), []
    for name in list_corpora(home / "corpora"):
        try:
            with closing(Corpus.open(home / "corpora", name)) as corpus:
                documents, sequences = corpus.counts()
                row(corpora, name, str(documents), str(sequences), corpus.embedder)
        except CorpusNotFoundError:  # removed just now
            continue
        except CorpusError as problem:
            row(corpora, name, "-", "-", "cannot be opened")
            unusable.append(problem)
    if corpora.row_count:
        show(corpora)
    else:
        say(f"no corpora in {home}; `mayfly corpus add NAME PATH` makes one", to=out)
    for each in unusable:
        say(Text.assemble(("mayfly: ", "red"), plain_line(in_full(each))))
    if unusable:
        raise typer.Exit(1)


@corpus_app.command("show")
def corpus_show(name: str, home: Home = HOME) -> None:
    """List a corpus's documents with their number of sequences."""
    from selection.corpus import Corpus

    documents = table("id", "document", "sequences")
    with closing(Corpus.open(home / "corpora", name)) as corpus:
        for entry in corpus.documents():
            row(documents, str(entry.id), entry.name, str(entry.sequences))
    show(documents)


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
    from selection.errors import CorpusError

    with closing(Corpus.open(home / "corpora", name)) as corpus:
        if document is None:
            documents, sequences = corpus.counts()
            if not yes:
                asked = f"Remove corpus {name} with {documents} documents, {sequences} sequences?"
                typer.confirm(plain_line(asked), abort=True)
            corpus.remove()
            say(f"removed corpus {name}", to=out)
        elif corpus.delete(document) or (document.isdecimal() and corpus.delete(int(document))):
            corpus.build_index()
            say(f"corpus {name}: removed {plain_line(document)}", to=out)
        else:
            raise CorpusError(f"corpus {name!r} has no document {document!r}; `mayfly corpus show {name}` lists them")


@corpus_app.command("reembed")
def corpus_reembed(name: str, model: Model = None, embedder: EmbedderName = EMBEDDER, home: Home = HOME) -> None:
    """Embed a corpus anew, for another embedder; a run that was broken off goes on where it was."""
    from selection.corpus import Corpus
    from serving.config import bundled_model
    from serving.models import check_embedder

    base = model or bundled_model()
    with closing(Corpus.open(home / "corpora", name)) as corpus:
        check_embedder(embedder, base)
        with working("loading the embedder"):
            from selection.embedding import load_embedder

            vectors = load_embedder(embedder, base_model=base)
        done = 0

        def kept() -> str:
            return f"{done:,} of {total:,} new embeddings are kept; run the same command again to go on with them"

        total = corpus.counts()[1]
        with kept_when_broken_off(kept), reporting("embedding", "sequences", total) as progress:

            def advance(count: int, _total: int) -> None:
                nonlocal done
                done += count
                progress.reach(done)

            done = corpus.reembedded(vectors)
            progress.resume(done)
            corpus.reembed(vectors, advance)
        say(f"corpus {name}: {total} sequences embedded by {vectors.name}", to=out)


@corpus_app.command("shard")
def corpus_shard(
    name: str,
    shards: Annotated[int, typer.Option("--shards", min=1, max=64, help="Number of shards.")],
    home: Home = HOME,
) -> None:
    """Spread a corpus over shards, for `mayfly serve --shards`, or have its shards follow what has changed since.

    The corpus stays as it is. A shard is a folder of its own, shards/0-of-4 and so on, on any machine.
    """
    from selection.corpus import Corpus
    from selection.shards import folder_of, follow

    kept = "what was spread is kept; run the same command again to go on. Until then the corpus is searched whole"
    with closing(Corpus.open(home / "corpora", name)) as corpus:
        roots = [folder_of(home, shard, shards) for shard in range(shards)]
        with kept_when_broken_off(lambda: kept), reporting("spreading", "documents") as progress:
            follow(corpus, roots, progress.reach)
        for root in roots:
            with closing(Corpus.open(root, corpus.name)) as part:
                documents, sequences = part.counts()
            say(f"{root}: {documents} documents, {sequences} sequences", to=out)


def check_paths(paths: Iterable[Path]) -> None:
    """Whether all of these can be read, before anything is loaded.

    Raises:
        CorpusError: one cannot; the message names it.
    """
    from selection.errors import CorpusError

    for path in paths:
        try:
            path.resolve(strict=True)
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except RuntimeError as problem:  # of Python up to 3.12, for symbolic links that lead back to themselves
            raise CorpusError(f"cannot read {path}: {os.strerror(errno.ELOOP)}") from problem
        except FileNotFoundError as problem:
            raise CorpusError(f"{path} does not exist") from problem
        except OSError as problem:
            raise CorpusError(f"cannot read {path}: {problem.strerror}") from problem


@contextmanager
def _embedding(embedder: str, base_model: str) -> Iterator[Callable[[Iterable[list[str]]], Iterator[Embeddings]]]:
    try:
        from serving.spread import cluster
    except ImportError as problem:
        raise InstallationError(f"--ray needs Ray Data: install mayfly[data] ({problem})") from problem
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
