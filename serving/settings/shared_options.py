"""The options that mean the same in each command: the folder of the corpora, the base model, the
embedder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path, typer.Option("--home", envvar="MAYFLY_HOME", help="The folder that holds the corpora.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="MAYFLY_MODEL",
        help="Base model: a hub id or a folder, as vLLM takes it.",
        show_default="the bundled one",
    ),
]
EmbedderName = Annotated[
    str,
    typer.Option(
        "--embedder",
        envvar="MAYFLY_EMBEDDER",
        help="A sentence-transformers hub id or folder, or 'base-model' for its hidden states.",
    ),
]
HOME = Path.home() / ".mayfly"
EMBEDDER = "all-MiniLM-L6-v2"
