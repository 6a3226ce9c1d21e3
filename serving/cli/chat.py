"""The command `mayfly chat`: chat with a running server in the terminal.

The answer goes to standard output as it streams in. The progress of the adaptation and a one-line
report about it go to standard error. `serving.client` parses what the server sends.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from serving.cli.console import err, out, read_input, say
from serving.cli.progress import Status
from serving.client import AdaptationProgress, AnswerError, Report, Server, StreamItem, TextDelta
from serving.errors import MayflyError

URL = "http://127.0.0.1:8000/v1"
# For --completion, where OpenAI's API would stop after 16 tokens.
_COMPLETION_TOKENS = 256
_NAMED_SOURCES = 3  # in the report line
# All control characters except tab and newline: a model must not control the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = """\
/budget steps=20, seconds=5   set the compute budget: none, auto, steps, seconds, gain, alpha
/corpus NAME                  set the corpus to learn from
/help                         show this help
/quit                         end the chat, as Ctrl-D does
Ctrl-C stops an answer; pressed twice, it ends the chat.
A line that starts with a space is never a command."""


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
            help="Compute budget, such as `steps=20, seconds=5`.",
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
    base: Annotated[
        bool, typer.Option("--base", help="Show the base model's answer as well.")
    ] = False,
    completion: Annotated[
        bool, typer.Option("--completion", help="Continue each prompt instead of answering it.")
    ] = False,
) -> None:
    """Chat with a running server and see what each adaptation did.

    Examples: [cyan]mayfly chat --corpus nx[/] and [cyan]mayfly chat --completion "def
    shortest_path("[/]
    """
    if prompt is None and not sys.stdin.isatty():
        prompt = read_input()
    if prompt is not None and not prompt.strip():
        raise AnswerError("the prompt is empty: give it as an argument or on standard input")
    try:
        with closing(Server(url, key)) as server:
            session = ChatSession(
                server, model or server.first_model(), corpus, budget, base, completion
            )
            if prompt is None:
                session.run()
            else:
                session.answer(prompt)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@dataclass
class ChatSession:
    """The options of a chat and the messages so far.

    Attributes:
        server: the server that answers.
        model: name of the served model.
        corpus: corpus to learn from; None for the server's.
        budget: compute budget; None for the server's.
        base: whether the base model's answer is shown first.
        completion: whether prompts are continued instead of answered.
        messages: previous messages, in OpenAI's format.
    """

    server: Server
    model: str
    corpus: str | None = None
    budget: str | None = None
    base: bool = False
    completion: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)

    def run(self) -> None:
        """Answer line by line until the user ends the chat."""
        with suppress(ImportError):
            # Importing readline gives `input` line editing and a history.
            import readline  # noqa: F401
        _note(f"chatting with {self.model}; /help lists the commands")
        interrupted = False
        while True:
            try:
                line = input("> ")
                interrupted = False
                if line.startswith("/"):
                    if not self._run_command(line):
                        return
                elif line.strip():
                    self.answer(line)
            except EOFError:
                return
            except MayflyError as problem:
                _note(f"mayfly: {problem}", "red")
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                _note("\npress Ctrl-C again to end the chat")

    def answer(self, prompt: str) -> None:
        """Print the answer to a prompt, after the base model's answer if `base` is set.

        Raises:
            AnswerError: there is no answer, or it is incomplete.
        """
        if self.base:
            say("base model:", "dim", out)
            self._print(self._request(prompt, "none"), [])
            say("adapted:", "dim", out)
        parts: list[str] = []
        try:
            report = self._print(self._request(prompt, self.budget), parts)
        finally:
            # A stopped answer is kept, too: the user has read it.
            if parts:
                self.messages += [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": "".join(parts)},
                ]
        if report is not None:
            _note(format_report(report))

    def _request(self, prompt: str, budget: str | None) -> Generator[StreamItem, None, None]:
        adaptation: dict[str, Any] = {"progress": True}
        if self.corpus is not None:
            adaptation["corpus"] = self.corpus
        body: dict[str, Any] = {"model": self.model, "adaptation": adaptation}
        if budget is not None:
            body["compute_budget"] = budget
        if self.completion:
            body |= {"prompt": prompt, "max_tokens": _COMPLETION_TOKENS}
            return self.server.stream("completions", body)
        messages = [*self.messages, {"role": "user", "content": prompt}]
        return self.server.stream("chat/completions", {**body, "messages": messages})

    def _run_command(self, line: str) -> bool:
        """Run a command such as "/help"; False if it ends the chat."""
        command, _, value = line[1:].partition(" ")
        value = value.strip()
        match command:
            case "quit":
                return False
            case "budget":
                self.budget = value or self.budget
                _note(f"budget: {self.budget or 'the default of the server'}")
            case "corpus":
                self.corpus = value or self.corpus
                _note(f"corpus: {self.corpus or 'the default of the server'}")
            case "help":
                _note(_HELP)
            case _:
                _note(f"unknown command /{command}; /help lists the commands")
        return True

    def _print(
        self, events: Generator[StreamItem, None, None], parts: list[str]
    ) -> dict[str, Any] | None:
        """Print an answer as it streams in, append its text to `parts` and return its report."""
        report = None
        try:
            with closing(events), Status("waiting", err, announce=False) as status:
                for event in events:
                    match event:
                        case AdaptationProgress(words):
                            status.update(words)
                        case Report(facts):
                            report = facts
                        case TextDelta(text):
                            status.stop()
                            parts.append(text)
                            # Not with rich, which expands tabs and breaks lines.
                            out.file.write(_CONTROL.sub("", text))
                            out.file.flush()
        finally:
            if parts:
                out.file.write("\n")
        return report


def format_report(report: dict[str, Any]) -> str:
    """The report of an answer in one line: cost, gain and sources of the adaptation."""
    sigma, steps, prompt = report["uncertainty"], len(report["losses"]), report.get("prompt_loss")
    parts = [f"stop {report['stop']}" if report["adapted"] else f"base model: {report['reason']}"]
    if steps:
        parts.insert(
            0, f"{steps} step{'' if steps == 1 else 's'} in {report['spent']['seconds']:.2f} s"
        )
        parts.append(f"sigma {sigma[0]:.2f} to {sigma[-1]:.2f}")
    if prompt:
        loss = format_prompt_loss(prompt["before"], prompt["after"], prompt["at"], len(sigma) - 1)
        parts.insert(0, loss)
    if report["degraded"]:
        parts.append(report["degraded"])
    times: Counter[str] = Counter()
    for source in report["sources"]:
        times[source["name"]] += source["times"]
    if times:
        listed = ", ".join(f"{name} x{count}" for name, count in times.most_common(_NAMED_SOURCES))
        rest = len(times) - _NAMED_SOURCES
        parts.append(f"from {listed}" + (f" and {rest} more" if rest > 0 else ""))
    return " · ".join(parts)


def format_prompt_loss(before: float, after: float, best: int, sequences: int) -> str:
    """The loss on the prompt itself before and after training.

    Args:
        before, after: mean loss per token with the base model and with the adapter.
        best: sequences that the kept adapter was trained on.
        sequences: sequences that were trained on in all.
    """
    note = (
        "" if best == sequences else f" (best adapter kept: after {best} of {sequences} sequences)"
    )
    return f"prompt loss {before:.2f} -> {after:.2f}{note}"


def _note(line: str, style: str = "dim") -> None:
    say(line, style)
