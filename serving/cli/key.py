"""The command `mayfly key`: a new API key, and what the key file must know of it. Nothing is
written or kept here.
"""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

key_app = typer.Typer(help="Make API keys for `mayfly serve --api-key-file`.", no_args_is_help=True)


@key_app.command("new")
def key_new(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, '_' and '-'.")],
) -> None:
    """Make a key: the secret, shown once, on standard error; its table for the key file on standard
    output.

    Example: [cyan]mayfly key new alice >> keys.toml[/]
    """
    from serving.api_keys import NAME, digest

    if not NAME.fullmatch(name):
        raise typer.BadParameter("use letters, digits, '_' and '-', 64 at most", param_hint="NAME")
    secret = f"mf-{secrets.token_urlsafe(24)}"
    # Not through rich, which takes a TOML table for markup and breaks lines.
    typer.echo(f"the secret of {name}, shown this once: {secret}", err=True)
    table = f'[keys.{name}]\nsha256 = "{digest(secret)}"'
    typer.echo(f'{table}\ncorpora = []  # what the key sees beside its own; ["*"] is everything\n')
