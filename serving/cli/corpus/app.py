"""The commands `mayfly corpus`, which create, fill, list and remove corpora."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer
from rich.text import Text

from serving.cli.console import out, plain_line, row, say, show, table
from serving.cli.corpus.add import corpus_add
from serving.cli.corpus.copy import corpus_copy
from serving.cli.corpus.train import corpus_train
from serving.cli.progress import Status, progress_counter, report_interrupt
from serving.errors import in_full
from serving.settings.shared_options import (
    EMBEDDER,
    HOME,
    ChatTemplate,
    Corpora,
    EmbedderName,
    Home,
    Model,
    location_of,
)

corpus_app = typer.Typer(
    help="Manage corpora: the data that adapters are trained on.",
    no_args_is_help=True,
)


CorpusName = Annotated[str, typer.Argument(help="Name of the corpus.")]

corpus_app.command("add")(corpus_add)
corpus_app.command("train")(corpus_train)
corpus_app.command("copy")(corpus_copy)


@corpus_app.command("list")
def corpus_list(home: Home = HOME, corpora: Corpora = None) -> None:
    """List the corpora; the exit status is 1 if one of them cannot be opened."""
    from selection.corpus.corpus import Corpus
    from selection.corpus.lookup import list_corpora
    from selection.errors import CorpusError, CorpusNotFoundError

    listing, unusable = table("corpus", "documents", "sequences", "embedder", "adapter"), []
    location = location_of(home, corpora)
    for name in list_corpora(location):
        try:
            with closing(Corpus.open(location, name)) as corpus:
                documents, sequences = corpus.counts()
                adapter = str(corpus.training.status(check_weights=True))
                row(listing, name, str(documents), str(sequences), corpus.embedder, adapter)
        except CorpusNotFoundError:  # removed in the meantime
            continue
        except CorpusError as problem:
            row(listing, name, "-", "-", "cannot be opened", "-")
            unusable.append(problem)
    if listing.row_count:
        show(listing)
    else:
        where = location if corpora else home
        say(f"no corpora in {where}; `mayfly corpus add NAME PATH` creates one", to=out)
    for each in unusable:
        say(Text.assemble(("mayfly: ", "red"), plain_line(in_full(each))))
    if unusable:
        raise typer.Exit(1)


@corpus_app.command("show")
def corpus_show(name: CorpusName, home: Home = HOME, corpora: Corpora = None) -> None:
    """List the documents of a corpus with their number of sequences."""
    from selection.corpus.corpus import Corpus

    documents = table("id", "document", "sequences")
    with closing(Corpus.open(location_of(home, corpora), name)) as corpus:
        for entry in corpus.documents():
            row(documents, str(entry.id), entry.name, str(entry.sequences))
    show(documents)


@corpus_app.command("remove")
def corpus_remove(
    name: CorpusName,
    document: Annotated[
        str | None, typer.Option("--document", help="Remove only this document, by name or id.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Remove a corpus, or one document of it."""
    from selection.corpus.corpus import Corpus
    from selection.errors import CorpusError

    with closing(Corpus.open(location_of(home, corpora), name)) as corpus:
        if document is None:
            documents, sequences = corpus.counts()
            if not yes:
                question = f"Remove corpus {name} ({documents} documents, {sequences} sequences)?"
                typer.confirm(plain_line(question), abort=True)
            corpus.remove()
            say(f"removed corpus {name}", to=out)
        elif corpus.delete(document) or (document.isdecimal() and corpus.delete(int(document))):
            corpus.build_index()
            say(f"corpus {name}: removed {plain_line(document)}", to=out)
        else:
            raise CorpusError(
                f"corpus {name!r} has no document {document!r}; "
                f"`mayfly corpus show {name}` lists its documents"
            )


@corpus_app.command("reembed")
def corpus_reembed(
    name: CorpusName,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Embed a corpus again with another embedder. An interrupted run continues where it stopped."""
    from selection.corpus.corpus import Corpus
    from serving.models.catalogue import model_folder
    from serving.settings.model_files import check_embedder

    base = model_folder(model)
    with closing(Corpus.open(location_of(home, corpora), name)) as corpus:
        check_embedder(embedder, base)
        with Status("loading the embedder"):
            from selection.embedding import load_embedder

            loaded = load_embedder(embedder, base_model=base)
        done, (_, total) = 0, corpus.counts()
        with (
            report_interrupt(
                lambda: (
                    f"{done:,} of {total:,} new embeddings were kept; "
                    "run the same command again to continue"
                )
            ),
            progress_counter("embedding", "sequences", total) as counter,
        ):

            def advance(count: int, _total: int) -> None:
                nonlocal done
                done += count
                counter.update(done)

            done = corpus.reembedded_count(loaded)
            counter.resume(done)
            corpus.reembed(loaded, advance)
        say(f"corpus {name}: embedded {total} sequences with {loaded.name}", to=out)


@corpus_app.command("retokenize")
def corpus_retokenize(
    name: CorpusName,
    model: Model = None,
    chat_template: ChatTemplate = None,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Give a corpus the tokens and the chat template of another model. Its texts and embeddings
    stay.

    The change is made at once at the end; an interrupted run changes nothing. A server of the
    former model refuses the corpus from then on.
    """
    from selection.corpus.corpus import Corpus
    from serving.models.catalogue import model_folder
    from serving.settings.model_files import check_model, load_tokenizer

    base = model_folder(model)
    with closing(Corpus.open(location_of(home, corpora), name)) as corpus:
        check_model(base)
        with Status("loading the tokenizer"):
            from selection.examples.templates import set_chat_template
            from selection.ingest.examples import context_tokens
            from selection.ingest.retokenizing import retokenize

            tokenizer = load_tokenizer(base)
            set_chat_template(tokenizer, chat_template)
        total = corpus.counts()[1]
        with (
            report_interrupt(lambda: "the corpus was not changed"),
            progress_counter("tokenizing", "sequences", total) as counter,
        ):
            removed = retokenize(corpus, tokenizer, context_tokens(base), counter.advance)
        line = f"corpus {name}: {corpus.counts()[1]} sequences have the tokens of {base}"
        if removed:
            line += f"; removed {removed} that have fewer than two tokens in it"
        say(line, to=out)


@corpus_app.command("shard")
def corpus_shard(
    name: CorpusName,
    shards: Annotated[int, typer.Option("--shards", min=1, max=64, help="Number of shards.")],
    home: Home = HOME,
) -> None:
    """Split a corpus into shards for `mayfly serve --shards`, or update its shards.

    The corpus itself is not changed. Each shard is a folder, such as shards/0-of-4, which may be
    copied to another machine.
    """
    from selection.corpus.corpus import Corpus
    from selection.corpus.shards import shard_folder, update_shards

    message = (
        "the documents copied so far were kept; run the same command again to continue. "
        "Until then the whole corpus is searched instead of its shards"
    )
    with closing(Corpus.open(home / "corpora", name)) as corpus:
        roots = [shard_folder(home, shard, shards) for shard in range(shards)]
        with (
            report_interrupt(lambda: message),
            progress_counter("copying to shards", "documents") as counter,
        ):
            update_shards(corpus, roots, counter.update)
        for root in roots:
            with closing(Corpus.open(root, corpus.name)) as shard_corpus:
                documents, sequences = shard_corpus.counts()
            say(f"{root}: {documents} documents, {sequences} sequences", to=out)
