"""`mayfly chat`: a conversation with a running server in the terminal.

The answer goes to standard output as it comes. What is told about it goes to standard error: how
far the adaptation is, then in one line what it was. What a server says is `serving.client`'s to
read.
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
from serving.cli.progress import Working
from serving.client import AdaptationProgress, AnswerError, Report, Server, StreamItem, TextDelta
from serving.errors import MayflyError

URL = "http://127.0.0.1:8000/v1"
_LENGTH = 256  # tokens of a plain continuation, which OpenAI's API else ends after 16
_SOURCES = 3  # named in the line of facts
# All but tab and newline: a model may not steer a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = """\
/budget steps=20, seconds=5   what an answer may cost: none, auto, steps, seconds, gain, alpha
/corpus NAME                  what to learn from
/help                         this
/quit                         end, as Ctrl-D does
Ctrl-C stops an answer, twice ends. A line that begins with a space is no command."""


def chat(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="To be answered once.", show_default="standard input, or a conversation"
        ),
    ] = None,
    url: Annotated[str, typer.Option("--url", help="URL of the server, or of its API.")] = URL,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="The corpus to learn from.", show_default="the server's"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="As the Compute-Budget header: `steps=20`.",
            show_default="the server's",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The name it is served under.", show_default="the server's first"
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar=["MAYFLY_API_KEY", "OPENAI_API_KEY"], help="The API key."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Show the base model's answer, too.")
    ] = False,
    completion: Annotated[
        bool, typer.Option("--completion", help="Continue each prompt, rather than chat.")
    ] = False,
) -> None:
    """Chat with a running server, and see what each adaptation did.

    Examples: [cyan]mayfly chat --corpus nx[/] and [cyan]mayfly chat --completion "def
    shortest_path("[/]
    """
    if prompt is None and not sys.stdin.isatty():
        prompt = read_input()
    if prompt is not None and not prompt.strip():
        raise AnswerError("the prompt is empty: give it as an argument or on standard input")
    try:
        with closing(Server(url, key)) as server:
            conversation = Conversation(
                server, model or server.first_model(), corpus, budget, base, completion
            )
            if prompt is None:
                conversation.go_on()
            else:
                conversation.answer(prompt)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@dataclass
class Conversation:
    """How a server is asked, and what was said."""

    server: Server
    model: str
    corpus: str | None = None
    budget: str | None = None
    base: bool = False
    completion: bool = False
    turns: list[dict[str, str]] = field(default_factory=list)

    def go_on(self) -> None:
        """Answer line by line until the user ends it."""
        with suppress(ImportError):
            import readline  # noqa: F401  # it gives `input` editing and history
        _tell(f"{self.model} answers; /help lists the commands")
        interrupted = False
        while True:
            try:
                line = input("> ")
                interrupted = False
                if line.startswith("/"):
                    if not self._obey(line):
                        return
                elif line.strip():
                    self.answer(line)
            except EOFError:
                return
            except MayflyError as problem:
                _tell(f"mayfly: {problem}", "red")
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                _tell("\nCtrl-C again ends")

    def answer(self, prompt: str) -> None:
        """Print the answer to a prompt, after the base model's where that is wanted.

        Raises:
            AnswerError: there is none, or not all of it.
        """
        if self.base:
            say("base model:", "dim", out)
            self._print(self._ask(prompt, "none"), [])
            say("adapted:", "dim", out)
        said: list[str] = []
        try:
            report = self._print(self._ask(prompt, self.budget), said)
        finally:
            if said:  # also of an answer that was stopped: the user has read it
                self.turns += [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": "".join(said)},
                ]
        if report is not None:
            _tell(facts_line(report))

    def _ask(self, prompt: str, budget: str | None) -> Generator[StreamItem, None, None]:
        adaptation: dict[str, Any] = {"progress": True}
        if self.corpus is not None:
            adaptation["corpus"] = self.corpus
        body: dict[str, Any] = {"model": self.model, "adaptation": adaptation}
        if budget is not None:
            body["compute_budget"] = budget
        if self.completion:
            return self.server.stream(
                "completions", {**body, "prompt": prompt, "max_tokens": _LENGTH}
            )
        messages = [*self.turns, {"role": "user", "content": prompt}]
        return self.server.stream("chat/completions", {**body, "messages": messages})

    def _obey(self, line: str) -> bool:
        """Do what a command says; False to end."""
        command, _, value = line[1:].partition(" ")
        value = value.strip()
        match command:
            case "quit":
                return False
            case "budget":
                self.budget = value or self.budget
                _tell(f"budget: {self.budget or 'as the server has it'}")
            case "corpus":
                self.corpus = value or self.corpus
                _tell(f"corpus: {self.corpus or 'as the server has it'}")
            case "help":
                _tell(_HELP)
            case _:
                _tell(f"there is no /{command}; /help lists the commands")
        return True

    def _print(
        self, answer: Generator[StreamItem, None, None], said: list[str]
    ) -> dict[str, Any] | None:
        """Print an answer as it comes, add its pieces to `said`, and return its report."""
        report = None
        try:
            with closing(answer), Working("waiting", err, at_once=False) as waiting:
                for told in answer:
                    match told:
                        case AdaptationProgress(words):
                            waiting.update(words)
                        case Report(facts):
                            report = facts
                        case TextDelta(text):
                            waiting.stop()
                            said.append(text)
                            out.file.write(
                                _CONTROL.sub("", text)
                            )  # not through rich, which changes tabs and breaks lines
                            out.file.flush()
        finally:
            if said:
                out.file.write("\n")
        return report


def facts_line(report: dict[str, Any]) -> str:
    """What an adaptation cost, what it gained and what taught it, from the report of an answer."""
    sigma, steps, prompt = report["uncertainty"], len(report["losses"]), report.get("prompt_loss")
    facts = [f"stop {report['stop']}" if report["adapted"] else f"base model: {report['reason']}"]
    if steps:
        facts.insert(
            0, f"{steps} step{'' if steps == 1 else 's'} in {report['spent']['seconds']:.2f} s"
        )
        facts.append(f"sigma {sigma[0]:.2f} to {sigma[-1]:.2f}")
    if prompt:
        facts.insert(0, told_loss(prompt["before"], prompt["after"], prompt["at"], len(sigma) - 1))
    if report["degraded"]:
        facts.append(report["degraded"])
    times: Counter[str] = Counter()
    for source in report["sources"]:
        times[source["name"]] += source["times"]
    if times:
        named = ", ".join(f"{name} x{count}" for name, count in times.most_common(_SOURCES))
        facts.append(
            f"from {named}"
            + (f" and {len(times) - _SOURCES} more" if len(times) > _SOURCES else "")
        )
    return " · ".join(facts)


def told_loss(before: float, after: float, at: int, of: int) -> str:
    """The prompt's own loss before and after, and which adapter was kept where that is not the last
    one.
    """
    kept = "" if at == of else f" (best after {at} of {of} sequences, which was kept)"
    return f"loss of the prompt itself: {before:.2f} -> {after:.2f}{kept}"


def _tell(line: str, style: str = "dim") -> None:
    say(line, style)
