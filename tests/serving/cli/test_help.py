"""The help texts: every command and every option has one, and it is a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from serving.cli.main import app

# "Start an action." or "A noun phrase (with a remark).", but not "Of the adapter."
_SENTENCE = re.compile(r"(?!Of\b)[A-Z].*\.", re.DOTALL)


def _help_texts(command: Any, path: str) -> Iterator[tuple[str, str | None]]:
    """The help texts of a command, its parameters and its sub-commands, each with its place."""
    yield path, command.help
    for parameter in command.params:
        yield f"{path} {parameter.opts[0]}", getattr(parameter, "help", None)
    for name, child in getattr(command, "commands", {}).items():
        yield from _help_texts(child, f"{path} {name}")


_TEXTS = dict(_help_texts(typer.main.get_command(app), "mayfly"))


def test_the_walk_reaches_nested_commands_options_and_arguments() -> None:
    assert {"mayfly corpus add --ray", "mayfly corpus show name", "mayfly serve --rank"} <= set(
        _TEXTS
    )


@pytest.mark.parametrize("place", sorted(_TEXTS))
def test_every_help_text_is_a_sentence(place: str) -> None:
    text = _TEXTS[place]

    assert text, "there is no help text"
    first_paragraph = text.partition("\n\n")[0].strip()
    assert _SENTENCE.fullmatch(first_paragraph), first_paragraph
