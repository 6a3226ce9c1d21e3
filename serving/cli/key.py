"""The command `mayfly key`: makes an API key and its entry for the key file. It writes no file."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

key_app = typer.Typer(help="Make API keys for `mayfly serve --api-key-file`.", no_args_is_help=True)


@key_app.command("new")
def key_new(
    name: Annotated[str, typer.Argument(help="Name of the key: letters, digits, '_' and '-'.")],
) -> None:
    """Make an API key: print its entry for the key file on standard output, and the secret, which
    is shown only once, on standard error.

    Example: [cyan]mayfly key new alice >> keys.toml[/]
    """
    from serving.api_keys.key import NAME, digest

    if not NAME.fullmatch(name):
        raise typer.BadParameter("use at most 64 letters, digits, '_' and '-'", param_hint="NAME")
    secret = f"mf-{secrets.token_urlsafe(24)}"
    # Not with rich, which would read TOML's brackets as markup and break lines.
    typer.echo(f"secret key of {name}, shown only once: {secret}", err=True)
    entry = f'[keys.{name}]\nsha256 = "{digest(secret)}"'
    comment = '# corpora that the key may use besides its own; ["*"] for all'
    typer.echo(f"{entry}\ncorpora = []  {comment}\n")
