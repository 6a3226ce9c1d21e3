"""A chat in the terminal, line by line.

The answer goes to standard output as it streams in. The progress of the adaptation and a one-line
report about it go to standard error. `serving.client` parses what the server sends.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selection.errors import SelectionError
from serving.budget import ExamplesAs, Reuse
from serving.cli.adaptation.examples import FileExamples, read_examples
from serving.cli.adaptation.report_line import format_report
from serving.cli.console import err, out, say
from serving.cli.progress import Status
from serving.client import AdaptationProgress, Report, Server, StreamItem, TextDelta
from serving.errors import MayflyError, SettingsError

# For --completion, where OpenAI's API would stop after 16 tokens, and many a model never.
COMPLETION_TOKENS = 256
# All control characters except tab and newline: a model must not control the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = """\
/budget steps=20, seconds=5   set the compute budget: none, instant, auto, steps, seconds, ...
/corpus NAME                  set the corpus to learn from
/examples FILE                learn from the examples in a file, one in each line; - for none
/show N                       put at most N of the chosen examples and passages into the prompt
/help                         show this help
/quit                         end the chat, as Ctrl-D does
Ctrl-C stops an answer; pressed twice, it ends the chat.
A line that starts with a space is never a command."""


@dataclass
class ChatSession:
    """The options of a chat and the messages so far.

    Attributes:
        server: the server that answers.
        model: name of the served model.
        corpus: corpus to learn from; None for the server's.
        budget: compute budget; None for the server's.
        examples: examples to learn from; None for none.
        examples_as: how these are trained on; None for the server's choice.
        reuse: which earlier adapter is used, where there is something to use it for; None for a new
            one for each answer.
        show: maximum number of sequences that are put into the prompt; None for the server's.
        max_tokens: maximum number of tokens of an answer; None for no limit of a chat's, and for
            COMPLETION_TOKENS of a completion's.
        base: whether the base model's answers are shown first: to the prompt alone, and to the
            prompt with what `show` adds.
        completion: whether prompts are continued instead of answered.
        messages: previous messages, in OpenAI's format.
    """

    server: Server
    model: str
    corpus: str | None = None
    budget: str | None = None
    examples: FileExamples | None = None
    examples_as: ExamplesAs | None = None
    reuse: Reuse | None = None
    show: int | None = None
    max_tokens: int | None = None
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
            except (MayflyError, SelectionError) as problem:
                _note(f"mayfly: {problem}", "red")
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                _note("\npress Ctrl-C again to end the chat")

    def answer(self, prompt: str) -> None:
        """Print the answer to a prompt, after the base model's answers if `base` is set.

        Raises:
            AnswerError: there is no answer, or it is incomplete.
        """
        if self.base:
            say("base model:", "dim", out)
            self._print(self._request(prompt, "none", {"show": 0}), [])
            if self.show:
                say("base model with what is shown:", "dim", out)
                self._print(self._request(prompt, "none", self._adaptation()), [])
            say("adapted:", "dim", out)
        parts: list[str] = []
        try:
            report = self._print(self._request(prompt, self.budget, self._adaptation()), parts)
        finally:
            # A stopped answer is kept, too: the user has read it.
            if parts:
                self.messages += [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": "".join(parts)},
                ]
        if report is not None:
            _note(format_report(report))

    def _adaptation(self) -> dict[str, Any]:
        """What a request asks of its adaptation, as far as the user has said."""
        options: dict[str, Any] = {"corpus": self.corpus, "show": self.show}
        if self.examples is not None:
            options |= {**self.examples.as_options(), "examples_as": self.examples_as}
        if self.examples is not None or self.reuse != "examples":
            options["reuse"] = self.reuse
        return {name: value for name, value in options.items() if value is not None}

    def _request(
        self, prompt: str, budget: str | None, adaptation: dict[str, Any]
    ) -> Generator[StreamItem, None, None]:
        body: dict[str, Any] = {
            "model": self.model,
            "adaptation": {"progress": True, **adaptation},
        }
        if budget is not None:
            body["compute_budget"] = budget
        limit = self.max_tokens or (COMPLETION_TOKENS if self.completion else None)
        if limit is not None:
            body["max_tokens"] = limit
        if self.completion:
            return self.server.stream("completions", {**body, "prompt": prompt})
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
            case "examples":
                if value:
                    self.examples = None if value == "-" else read_examples(Path(value))
                _note(f"examples: {self.examples or 'none'}")
            case "show":
                if value and not value.isdecimal():
                    raise SettingsError(f"invalid number {value!r}: /show takes one such as 8")
                self.show = int(value) if value else self.show
                _note(f"show: {'the default of the server' if self.show is None else self.show}")
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


def _note(line: str, style: str = "dim") -> None:
    say(line, style)
