"""Options that several commands share: where the corpora are, the base model, the embedder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from serving.errors import SettingsError

if TYPE_CHECKING:
    from selection.location import Location

Home = Annotated[
    Path, typer.Option("--home", envvar="MAYFLY_HOME", help="Folder that contains the corpora.")
]
Corpora = Annotated[
    str | None,
    typer.Option(
        "--corpora",
        envvar="MAYFLY_CORPORA",
        help="PostgreSQL database of the corpora, postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
        show_default="the folder corpora in --home",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="MAYFLY_MODEL",
        help="Base model: a name of `mayfly model list`, a hub id or a folder.",
        show_default="smollm2 if it is installed, otherwise nano",
    ),
]
EmbedderName = Annotated[
    str,
    typer.Option(
        "--embedder",
        envvar="MAYFLY_EMBEDDER",
        help="Sentence-transformers model (hub id or folder), or `base-model` for the base model.",
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        help="File of the chat template of examples, if the server has one after `--`.",
        show_default="the model's own",
    ),
]
HOME = Path.home() / ".mayfly"
EMBEDDER = "all-MiniLM-L6-v2"
VllmFlags = Annotated[
    list[str] | None,
    typer.Argument(
        help="Flags of `vllm serve`, after `--`: `mayfly serve ... -- --chat-template FILE`.",
        metavar="[-- VLLM FLAGS]",
        show_default="none",
    ),
]


def location_of(home: Path, corpora: str | None) -> Location:
    """Where the corpora are: in a database, if there is one, or else in the home folder.

    Raises:
        SettingsError: the database is not named by a URL; it is not quoted, since it may contain a
            password.
    """
    from selection.location import SCHEMES, DatabaseLocation

    if not corpora:
        return home / "corpora"
    if not corpora.startswith(SCHEMES):
        raise SettingsError(
            "--corpora must be a URL of PostgreSQL, such as postgresql://USER:PASSWORD@HOST:PORT/"
            "DATABASE; corpora in a folder are in that of --home"
        )
    return DatabaseLocation(corpora, home / "cache")


def has_password(url: str) -> bool:
    """Whether a URL of a database contains a password, or cannot be read."""
    try:
        parts = urlsplit(url)
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:
        return True


def refuse_recorded_password(context: typer.Context, corpora: str | None) -> None:
    """Refuse a password in the command line of a command that Ray records.

    Raises:
        SettingsError: `--corpora` has one.
    """
    source = context.get_parameter_source("corpora")
    if source is not None and source.name == "COMMANDLINE" and has_password(corpora or ""):
        raise SettingsError(
            "Ray shows and logs a password in the command line: set MAYFLY_CORPORA in the "
            "environment instead of --corpora"
        )
