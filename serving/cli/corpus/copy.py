"""The command `mayfly corpus copy`: copies a corpus between a folder and a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.console import out, say
from serving.cli.progress import progress_counter, report_interrupt
from serving.settings.shared_options import HOME, Corpora, Home, location_of

if TYPE_CHECKING:
    from selection.location import Location

_PLACE = "a folder, as --home, or the URL of a PostgreSQL database"


def corpus_copy(
    name: Annotated[str, typer.Argument(help="Name of the corpus.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help=f"Where it is: {_PLACE}.", show_default="where corpora are by default"
        ),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            "--to", help=f"Where to copy it: {_PLACE}.", show_default="where corpora are by default"
        ),
    ] = None,
    home: Home = HOME,
    corpora: Corpora = None,
) -> None:
    """Copy a corpus to another place, such as from a folder to a database, and compare both.

    The copy is there at once at the end; an interrupted run leaves nothing. Example: [cyan]mayfly
    corpus copy nx --from ~/.mayfly[/], with the database in MAYFLY_CORPORA
    """
    from selection.corpus.copying import copy_corpus

    if source is None and destination is None:
        raise typer.BadParameter("name --from, --to or both", param_hint="--from")
    to = _location(home, corpora, destination)
    with report_interrupt(lambda: "nothing was copied"):
        copied = copy_corpus(_location(home, corpora, source), name, to, _show)
    say(
        f"corpus {copied.name}: copied {copied.documents} documents, {copied.sequences} sequences "
        f"to {to}; SHA-256 {copied.sha256}",
        to=out,
    )


def _location(home: Path, corpora: str | None, place: str | None) -> Location:
    """Where corpora are: at a place, or else by default."""
    if place is None:
        return location_of(home, corpora)
    if "://" in place:
        return location_of(home, place)
    return location_of(Path(place).expanduser(), None)


@contextmanager
def _show(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress_counter(what, "sequences", total) as counter:
        yield counter.advance
