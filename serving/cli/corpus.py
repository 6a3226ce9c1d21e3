"""The commands `mayfly corpus`: make, fill, look at and remove corpora. The work is done in
`selection`.
"""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer
from rich.text import Text

from serving.cli.console import out, plain_line, row, say, show, table
from serving.cli.corpus_add import corpus_add
from serving.cli.progress import kept_when_broken_off, reporting, working
from serving.errors import in_full
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

corpus_app = typer.Typer(
    help="Make, fill and look at corpora: the data that adapters are trained on.",
    no_args_is_help=True,
)


corpus_app.command("add")(corpus_add)


@corpus_app.command("list")
def corpus_list(home: Home = HOME) -> None:
    """List the corpora; exit status 1 where one of them cannot be opened."""
    from selection.corpus.corpus import Corpus
    from selection.corpus.lookup import list_corpora
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
    from selection.corpus.corpus import Corpus

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
    from selection.corpus.corpus import Corpus
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
            raise CorpusError(
                f"corpus {name!r} has no document {document!r}; `mayfly corpus show {name}` lists them"
            )


@corpus_app.command("reembed")
def corpus_reembed(
    name: str, model: Model = None, embedder: EmbedderName = EMBEDDER, home: Home = HOME
) -> None:
    """Embed a corpus anew, for another embedder; a run that was broken off goes on where it was."""
    from selection.corpus.corpus import Corpus
    from serving.config import bundled_model
    from serving.settings.model_files import check_embedder

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

            done = corpus.reembedded_count(vectors)
            progress.resume(done)
            corpus.reembed(vectors, advance)
        say(f"corpus {name}: {total} sequences embedded by {vectors.name}", to=out)


@corpus_app.command("shard")
def corpus_shard(
    name: str,
    shards: Annotated[int, typer.Option("--shards", min=1, max=64, help="Number of shards.")],
    home: Home = HOME,
) -> None:
    """Spread a corpus over shards, for `mayfly serve --shards`, or have its shards follow what has
    changed since.

    The corpus stays as it is. A shard is a folder of its own, shards/0-of-4 and so on, on any
    machine.
    """
    from selection.corpus.corpus import Corpus
    from selection.corpus.shards import shard_folder, update_shards

    kept = "what was spread is kept; run the same command again to go on. Until then the corpus is searched whole"
    with closing(Corpus.open(home / "corpora", name)) as corpus:
        roots = [shard_folder(home, shard, shards) for shard in range(shards)]
        with kept_when_broken_off(lambda: kept), reporting("spreading", "documents") as progress:
            update_shards(corpus, roots, progress.reach)
        for root in roots:
            with closing(Corpus.open(root, corpus.name)) as part:
                documents, sequences = part.counts()
            say(f"{root}: {documents} documents, {sequences} sequences", to=out)
