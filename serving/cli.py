"""The command `mayfly`: corpora, the server, the demonstration.

Errors a user can mend are one line that says how; everything else keeps its traceback. What the commands do
lives elsewhere: `selection`, `serving.app`, `serving.demo`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import serving

if TYPE_CHECKING:
    from selection.documents import Document
    from selection.embedding import Embeddings
    from serving.config import Config
    from serving.demo import Result

app = typer.Typer(
    name="mayfly",
    help="Answer each request with an adapter trained for it. Begin with `mayfly demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
corpus_app = typer.Typer(
    help="Make, fill and look at corpora: the data that adapters are trained on.", no_args_is_help=True
)
app.add_typer(corpus_app, name="corpus")
out = Console()
err = Console(stderr=True)

Home = Annotated[Path, typer.Option("--home", envvar="MAYFLY_HOME", help="The folder that holds the corpora.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Base model: a hub id or a folder, as vLLM takes it.", show_default="the bundled one"),
]
EmbedderName = Annotated[
    str,
    typer.Option("--embedder", help="A sentence-transformers hub id or folder, or 'base-model' for its hidden states."),
]
_HOME = Path.home() / ".mayfly"
_EMBEDDER = "all-MiniLM-L6-v2"


def main() -> None:
    """Entry point; turns errors that a user can mend into one line and exit status 1."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars: ours say more
    from serving.errors import MayflyError

    try:
        app()
    except (ValueError, MayflyError) as problem:
        err.print(f"[red]mayfly:[/] {problem}", highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Say the version, or go on to a command."""
    if version:
        out.print(f"mayfly {serving.__version__}", highlight=False)
        raise typer.Exit


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
    embedder: EmbedderName = _EMBEDDER,
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
    home: Home = _HOME,
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
def corpus_list(home: Home = _HOME) -> None:
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
def corpus_show(name: str, home: Home = _HOME) -> None:
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
    home: Home = _HOME,
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
def corpus_reembed(name: str, model: Model = None, embedder: EmbedderName = _EMBEDDER, home: Home = _HOME) -> None:
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


@app.command()
def serve(
    model: Model = None,
    corpus: Annotated[str | None, typer.Option("--corpus", help="The corpus of requests that name none.")] = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            "--served-model-name", help="The name clients use.", show_default="as --model; nano for the bundled one"
        ),
    ] = None,
    embedder: EmbedderName = _EMBEDDER,
    budget: Annotated[
        str, typer.Option("--budget", help="What `auto` and no header mean, in the words of the Compute-Budget header.")
    ] = "",
    max_steps: Annotated[int, typer.Option("--max-steps", min=0, help="The most steps any request may take.")] = 50,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.01, help="The most seconds any adaptation may take.")
    ] = 60.0,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Of Adam.", show_default="by model size")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, max=512, help="Of the LoRA adapters.")] = 16,
    regularisation: Annotated[
        float | None, typer.Option("--regularisation", help="lambda' of SIFT.", show_default="for the default embedder")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the engine; auto is float32 on a CPU.")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Context in tokens.", show_default="the model's")
    ] = None,
    home: Home = _HOME,
) -> None:
    """Serve the OpenAI API, an adapter trained for each request. Ctrl-C ends it."""
    from dataclasses import replace

    from serving.app import running
    from serving.budget import parse_budget

    config = make_config(home, model, corpus, port=port, host=host, embedder=embedder, name=served_model_name)
    limits = replace(config.limits, steps=max_steps, seconds=max_seconds)
    auto = parse_budget(budget or None, default=config.auto, auto=config.auto, limits=limits)
    config = replace(
        config,
        limits=limits,
        auto=auto.cut_to(limits)[0],
        trainer=replace(config.trainer, learning_rate=learning_rate, rank=rank),
        engine=replace(config.engine, rank=rank, dtype=dtype, max_model_len=max_model_len),
    )
    if regularisation is not None:
        config = replace(config, selector=replace(config.selector, regularisation=regularisation))
    _check(config)
    try:
        with running(config, lambda stage: err.print(f"[dim]{stage} ...[/]")) as url:
            err.print(f"[green]ready[/] {config.engine.served_name} at {url}/v1 (Ctrl-C ends it)", highlight=False)
            threading.Event().wait()
    except KeyboardInterrupt:
        err.print("ended")


@app.command()
def demo(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up afterwards.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    home: Home = _HOME,
) -> None:
    """Bring everything up, answer one request with the base model and with an adapter, and show the difference."""
    from serving.app import running
    from serving.demo import CORPUS, demonstrate, prepare, show

    console = err if json else out
    result: Result | None = None
    try:
        passage = prepare(home, console)
        config = make_config(home, None, CORPUS, port=port)
        with running(config, lambda stage: console.print(f"[dim]{stage} ...[/]")) as url:
            result = demonstrate(url, passage, console)
            show(result, url, console)
            if keep:
                console.print("[dim]The server stays up; Ctrl-C ends it.[/]")
                threading.Event().wait()
            console.print("[dim]ending ...[/]")
    except KeyboardInterrupt:
        err.print("ended")
        if result is None:
            sys.exit(130)
    if json and result is not None:
        print(result.as_json())  # not through rich: the terminal's width must not break the line


def make_config(
    home: Path,
    model: str | None,
    corpus: str | None,
    *,
    port: int,
    host: str = "127.0.0.1",
    embedder: str = _EMBEDDER,
    name: str | None = None,
) -> Config:
    """The configuration of a server on this machine, everything else at its default."""
    from adapters.trainer import TrainerConfig
    from selection.selector import SelectorConfig
    from serving.config import Config, EngineConfig, bundled_model

    base = model or bundled_model()
    trainer = TrainerConfig(base)
    return Config(
        engine=EngineConfig(base, name or model or "nano", trainer.rank, trainer.targets),
        trainer=trainer,
        selector=SelectorConfig(home / "corpora", embedder, base),
        corpus=corpus,
        host=host,
        port=port,
        threads=os.cpu_count() or 1,
    )


def _check(config: Config) -> None:
    """What would otherwise fail minutes later, in another process: the model's name, the corpus."""
    from transformers import AutoTokenizer

    from selection.corpus import Corpus
    from selection.documents import tokenizer_digest

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.engine.model)
    except (OSError, ValueError) as problem:
        raise ValueError(f"cannot load the model {config.engine.model!r}: {str(problem).splitlines()[0]}") from problem
    if config.corpus is not None:
        corpus = Corpus.open(config.selector.root, config.corpus)
        corpus.check_tokenizer(tokenizer_digest(tokenizer))
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
