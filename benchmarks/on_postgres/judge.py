"""The requests of the run with kills of the database, and what right responses to them are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.server import MODEL

CORPUS = "asked"
# Seconds of a budget, and of a search.
SECONDS, SEARCH_SECONDS = 5.0, 5.0
TEXTS = (
    "def moving_average(values, window):\n",
    "class Index:\n",
    "import numpy as np\n",
    "# The selector\n",
)


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        name: its name in the result.
        path: of the API.
        budget: its Compute-Budget; None for a search.
        seconds: within which it is to be answered.
        share: how often it is sent, relative to the others.
    """

    name: str
    path: str
    budget: str | None
    seconds: float
    share: int = 1

    @property
    def is_search(self) -> bool:
        """Whether it searches the vector store."""
        return self.budget is None

    def body(self, text: str) -> dict[str, Any]:
        """Body of the request about a text."""
        if self.is_search:
            return {"query": text, "max_num_results": 5}
        prompt: dict[str, Any] = {"prompt": text}
        if "chat" in self.path:
            prompt = {"messages": [{"role": "user", "content": text}]}
        corpus = {"adaptation": {"corpus": CORPUS}}
        return {"model": MODEL, "max_tokens": 8, "temperature": 0, **prompt, **corpus}


_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_STEPS = f"steps=2, seconds={SECONDS:g}"
# `auto` has the server's --max-seconds.
KINDS = (
    Kind("completion with steps", _COMPLETIONS, _STEPS, SECONDS, 3),
    Kind("completion with auto", _COMPLETIONS, "auto", SECONDS),
    Kind("completion with none", _COMPLETIONS, "none", 0.0),
    Kind("chat with steps", _CHAT, _STEPS, SECONDS, 2),
    Kind("chat with auto", _CHAT, "auto", SECONDS),
    Kind("chat with none", _CHAT, "none", 0.0),
    Kind("search", f"/v1/vector_stores/{CORPUS}/search", None, SEARCH_SECONDS, 3),
)


@dataclass
class Known:
    """What right answers are made of.

    Attributes:
        sources: starts of the sequences of each document, by its id and name.
        answers: what the base model, or a search, answered before the first kill; by path and text.
    """

    sources: dict[tuple[int, str], set[int]] = field(default_factory=dict)
    answers: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def judge(
        self, kind: Kind, text: str, status: int, headers: Mapping[str, str], body: Any
    ) -> tuple[str, str | None]:
        """What a response is, and what is wrong with it; None for nothing.

        The first is "adapted", "found", "unavailable", the status, or "base model" or "shown" with
        what ended the adaptation.
        """
        try:
            if kind.is_search:
                return self._judge_search(kind, text, status, headers, body)
            if status != 200:
                return str(status), f"status {status}: {body}"
            return self._judge_answer(kind, text, body)
        except (LookupError, TypeError, AttributeError) as problem:
            return str(status), f"a malformed response ({problem!r}): {body}"

    def _judge_search(
        self, kind: Kind, text: str, status: int, headers: Mapping[str, str], body: Any
    ) -> tuple[str, str | None]:
        if status == 503 and body["error"]["code"] == "corpora_unavailable":
            after = headers.get("retry-after", "")
            is_clear = after.isdecimal() and int(after) > 0
            return "unavailable", None if is_clear else f"Retry-After is {after!r}"
        if status != 200:
            return str(status), f"status {status}: {body}"
        is_known = answer_of(kind, body) in self.answers[kind.path, text]
        return "found", None if is_known else f"other results: {body['data']}"

    def _judge_answer(self, kind: Kind, text: str, body: Any) -> tuple[str, str | None]:
        report, answer = body["adaptation"], answer_of(kind, body)
        sources, shown = report["sources"], (report["shown"] or {}).get("documents", [])
        outcome = f"{'shown' if shown else 'base model'}, {report['stop']}"
        if report["adapted"]:
            outcome = "adapted"
        names = {name for _, name in self.sources}
        if foreign := [
            each
            for each in sources
            if each["start"] not in self.sources.get((each["document"], each["name"]), ())
        ] + [name for name in shown if name not in names]:
            return outcome, f"sources that are not of the corpus: {foreign}"
        if outcome == "adapted":
            if not report["adapter"] or kind.budget == "none":
                return outcome, f"an adapter of unknown name, or one too many: {report}"
            if report["corpus"] != CORPUS or (report["spent"]["steps"] and not sources):
                return outcome, f"trained on nothing that the report names: {report}"
        elif not report["reason"]:
            return outcome, f"no adapter, and no reason: {report}"
        elif not shown and answer not in self.answers[kind.path, text]:
            return outcome, f"{answer!r}, not one of {self.answers[kind.path, text]}"
        return outcome, None


def answer_of(kind: Kind, body: Any) -> str:
    """The text of an answer, or what a search found, as text."""
    if kind.is_search:
        return json.dumps([[each["filename"], each["content"][0]["text"]] for each in body["data"]])
    choice = body["choices"][0]
    answer = choice["message"]["content"] if "chat" in kind.path else choice["text"]
    return str(answer)
