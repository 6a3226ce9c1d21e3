"""Options that several commands share: the folder of the corpora, the base model, the embedder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path, typer.Option("--home", envvar="MAYFLY_HOME", help="Folder that contains the corpora.")
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
