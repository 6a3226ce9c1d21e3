"""The commands `mayfly key`: make an API key, as an entry for a key file or in the database of the
corpora, and manage the keys of a database. No command shows a digest of one, or a secret twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from serving.cli.console import out, plain_line, row, say, show, table
from serving.settings.shared_options import HOME, location_of

if TYPE_CHECKING:
    from selection.location import DatabaseLocation

key_app = typer.Typer(
    help="Make API keys for `mayfly serve --api-key-file`, or keep them in a database.",
    no_args_is_help=True,
)

KeyName = Annotated[str, typer.Argument(help="Name of the key: letters, digits, '_' and '-'.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--corpora",
        envvar="MAYFLY_CORPORA",
        help="PostgreSQL database of corpora and keys, postgresql://USER:PASSWORD@HOST:PORT/"
        "DATABASE.",
        show_default="none",
    ),
]
# Entries of a key that limit it, in the order of the columns of a list.
_LIMITS = ("budget", "max_steps", "max_seconds", "requests_per_minute")


@key_app.command("new")
def key_new(
    name: KeyName,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="Corpus that the key sees beside its own, by name or id, or * for all; may be "
            "repeated."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Budget of requests without one, such as `steps=20, seconds=5`.",
            show_default="the server's",
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(help="Maximum training steps of a request.", show_default="the server's"),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="Maximum seconds of an adaptation.", show_default="the server's"),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Maximum requests a minute.", show_default="unlimited")
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Give a key of the database a new secret; its entries stay unless they are given.",
        ),
    ] = False,
    corpora: Database = None,
) -> None:
    """Make an API key. Its secret is shown only once, on standard error; its entry is stored in the
    database, or else printed for the key file on standard output.

    Examples: [cyan]mayfly key new alice >> keys.toml[/]; [cyan]mayfly key new alice --corpus
    nx[/], with the database in MAYFLY_CORPORA
    """
    from serving.api_keys.changes import add_key, new_secret
    from serving.api_keys.key import NAME, digest, parse_key

    if not NAME.fullmatch(name):
        raise typer.BadParameter("use at most 64 letters, digits, '_' and '-'", param_hint="NAME")
    given = {
        "corpora": corpus,
        "budget": budget,
        "max_steps": max_steps,
        "max_seconds": max_seconds,
        "requests_per_minute": requests_per_minute,
    }
    entries = {entry: value for entry, value in given.items() if value is not None}
    if corpora:
        location = _database(corpora)
        _show_secret(name, add_key(location, name, entries, replace))
        # Not on standard output, which may be redirected to a key file.
        say(f"key {name}: stored in {location}")
        return
    if replace:
        raise typer.BadParameter("edit the key file instead", param_hint="--replace")
    secret = new_secret()
    sha256 = digest(secret)
    parse_key(name, {**entries, "sha256": sha256})
    _show_secret(name, secret)
    # Not with rich, which would read TOML's brackets as markup and break lines.
    typer.echo("\n".join(_toml(name, sha256, entries)))


@key_app.command("load")
def key_load(
    file: Annotated[Path, typer.Argument(help="Key file.")], corpora: Database = None
) -> None:
    """Put the keys of a key file into the database, all or none. They replace keys of the same
    names; other keys there stay.
    """
    from serving.api_keys.changes import load_keys

    location = _database(corpora)
    loaded = load_keys(location, file.expanduser())
    counts = [
        f"{what} {len(names)}" + (f" ({', '.join(names)})" if names else "")
        for what, names in (("added", loaded.added), ("replaced", loaded.replaced))
    ]
    say(f"keys in {location}: {', '.join(counts)}, unchanged {len(loaded.unchanged)}", to=out)


@key_app.command("list")
def key_list(corpora: Database = None) -> None:
    """List the keys of the database; the exit status is 1 if one of them is invalid."""
    from serving.api_keys.changes import stored_keys

    location = _database(corpora)
    listing = table("key", "corpora", "budget", "steps", "seconds", "requests/min")
    tables, errors = stored_keys(location)
    for name, entries in tables.items():
        if name in errors:
            row(listing, name, *["invalid"] * 5)
            continue
        corpora_seen = entries.get("corpora", [])
        sees = "all" if "*" in corpora_seen else ", ".join(corpora_seen) or "-"
        row(listing, name, sees, *(_limit(entries.get(limit)) for limit in _LIMITS))
    if tables:
        show(listing)
    else:
        say(f"no keys in {location}; `mayfly key new NAME` makes one", to=out)
    for error in errors.values():
        say(Text.assemble(("mayfly: ", "red"), plain_line(error)))
    if errors:
        raise typer.Exit(1)


@key_app.command("remove")
def key_remove(name: KeyName, corpora: Database = None) -> None:
    """Remove a key from the database: within seconds, no server accepts it. What it has made stays,
    and belongs to a later key of that name.
    """
    from serving.api_keys.changes import remove_key

    left = remove_key(_database(corpora), name)
    say(f"removed key {name}", to=out)
    if not left:
        say("no key is left there; servers without other keys refuse every request")


def _database(corpora: str | None) -> DatabaseLocation:
    """The database of keys.

    Raises:
        SettingsError: it is not named by a URL.
    """
    if not corpora:
        raise typer.BadParameter(
            "name the database of the keys, or set MAYFLY_CORPORA; the keys of a key file are the "
            "entries in it",
            param_hint="--corpora",
        )
    location = location_of(HOME, corpora)
    assert not isinstance(location, Path)
    return location


def _limit(value: str | float | None) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _show_secret(name: str, secret: str) -> None:
    typer.echo(f"secret key of {name}, shown only once: {secret}", err=True)


def _toml(name: str, sha256: str, entries: dict[str, Any]) -> list[str]:
    """The lines of a key's entry in the key file."""
    comment = '# corpora that the key may use besides its own; ["*"] for all'
    corpora = json.dumps(entries.pop("corpora", []), ensure_ascii=False)
    return [
        f"[keys.{name}]",
        f'sha256 = "{sha256}"',
        f"corpora = {corpora}  {comment}",
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()),
        "",
    ]
