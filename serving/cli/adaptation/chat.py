"""The command `mayfly chat`: chat with a running server in the terminal."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from serving.budget import Reuse
from serving.cli.adaptation.examples import ExamplesFile, ExamplesForm, read_examples
from serving.cli.adaptation.session import COMPLETION_TOKENS, ChatSession
from serving.cli.console import read_input
from serving.client import AnswerError, Server

URL = "http://127.0.0.1:8000/v1"


def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Prompt to answer; without one, the chat is interactive.",
            show_default="standard input, if it is not a terminal",
        ),
    ] = None,
    url: Annotated[str, typer.Option("--url", help="URL of the server or of its API.")] = URL,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="Corpus to learn from.", show_default="the server's"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Compute budget, such as `steps=20, seconds=5`, or `instant` for the adapter of "
            "the corpus alone.",
            show_default="the server's",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Name of a served model.", show_default="the server's first"),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", envvar=["MAYFLY_API_KEY", "OPENAI_API_KEY"], help="API key of the server."
        ),
    ] = None,
    examples: ExamplesFile = None,
    examples_as: ExamplesForm = None,
    reuse: Annotated[
        Reuse | None,
        typer.Option(
            "--reuse",
            help="Go on from the adapter of the turn before (conversation), or use that of the "
            "same examples again (examples).",
            show_default="a new adapter for each answer",
        ),
    ] = None,
    show: Annotated[
        int | None,
        typer.Option(
            "--show",
            min=0,
            help="Maximum number of chosen examples and passages to put into the prompt.",
            show_default="the server's",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Maximum number of tokens of an answer; --show and `auto` leave room for them.",
            show_default=f"no limit; {COMPLETION_TOKENS} with --completion",
        ),
    ] = None,
    base: Annotated[
        bool,
        typer.Option(
            "--base",
            help="Show the base model's answer as well, and with --show its answer to the longer "
            "prompt.",
        ),
    ] = False,
    completion: Annotated[
        bool, typer.Option("--completion", help="Continue each prompt instead of answering it.")
    ] = False,
) -> None:
    """Chat with a running server and see what each adaptation did.

    Examples: [cyan]mayfly chat --corpus nx[/], [cyan]mayfly chat --completion "def
    shortest_path("[/] and [cyan]mayfly chat --examples orders.jsonl --reuse examples[/]
    """
    if prompt is None and not sys.stdin.isatty():
        prompt = read_input()
    if prompt is not None and not prompt.strip():
        raise AnswerError("the prompt is empty: give it as an argument or on standard input")
    taught = None if examples is None else read_examples(examples)
    try:
        with closing(Server(url, key)) as server:
            session = ChatSession(
                server,
                model or server.first_model(),
                corpus,
                budget,
                examples=taught,
                examples_as=examples_as,
                reuse=reuse,
                show=show,
                max_tokens=max_tokens,
                base=base,
                completion=completion,
            )
            if prompt is None:
                session.run()
            else:
                session.answer(prompt)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
