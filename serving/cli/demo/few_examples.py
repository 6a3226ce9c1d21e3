"""Compares three ways to answer held-out questions in an invented format: the base model, the base
model with ten examples in its prompt, and a model trained on the ten. No corpus takes part.

All requests go through the server's HTTP API, one after the other. The trained adapter is made for
the first question and kept for the others (`"reuse": "examples"`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from serving.cli.console import PlainConsole
from serving.cli.demo.invented_format import EXAMPLES, QUESTIONS, Pair, draw_pairs
from serving.cli.progress import progress_counter
from serving.errors import AdaptationFailedError

if TYPE_CHECKING:
    import httpx

# Greedy, so that the answers are the same every time. The right ones have at most 24 tokens.
_SAMPLING = {"max_tokens": 40, "temperature": 0}
BASE, SHOWN, TRAINED = "base", "shown", "trained"


@dataclass(frozen=True)
class Arm:
    """One way to answer.

    Attributes:
        answers: one for each question.
        right: whether each is exactly the right one.
        seconds: from the request to the whole answer, for each question.
        report: the server's report on the first question.
    """

    answers: tuple[str, ...]
    right: tuple[bool, ...]
    seconds: tuple[float, ...]
    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The counts and times, for the last line of `--json`."""
        return {
            "exact": sum(self.right),
            "first_seconds": round(self.seconds[0], 3),
            "median_seconds": round(median(self.seconds[1:]), 3),
            "steps": self.report["spent"]["steps"],
        }


@dataclass(frozen=True)
class FewExamples:
    """The questions, and what each arm made of them.

    Attributes:
        examples: the pairs that were shown or trained on.
        questions: the held-out pairs.
        arms: by name.
    """

    examples: tuple[Pair, ...]
    questions: tuple[Pair, ...]
    arms: dict[str, Arm]

    def as_dict(self) -> dict[str, Any]:
        """The result for the last line of `--json`."""
        arms = {name: arm.as_dict() for name, arm in self.arms.items()}
        return {"examples": len(self.examples), "questions": len(self.questions), "arms": arms}


def answer_questions(url: str, model: str, console: PlainConsole) -> FewExamples:
    """Let each arm answer every question.

    Args:
        url: base URL of the server.
        model: name of the served model.
        console: where the progress is shown.

    Raises:
        AdaptationFailedError: the server answers with an error.
    """
    import httpx

    examples, questions = draw_pairs()
    arms: dict[str, Arm] = {}
    with httpx.Client(base_url=url, timeout=300) as client:
        chats = client.get("/v1/models").json()["data"][0]["chat_template"]
        # In a chat, the template separates the answer from the question.
        end = "" if chats else "\n"
        rows = [{"prompt": f"{pair.question}{end}", "completion": pair.answer} for pair in examples]
        taught = {"corpus": None, "examples": rows}
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            BASE: ("none", {}),
            SHOWN: ("none", {**taught, "show": EXAMPLES}),
            TRAINED: ("auto", {**taught, "reuse": "examples"}),
        }
        for name, (budget, adaptation) in ways.items():
            body = {"model": model, "adaptation": adaptation, **_SAMPLING}
            replies = []
            with progress_counter(
                f"{name} answers", "questions", QUESTIONS, console=console
            ) as counter:
                for pair in questions:
                    replies.append(_ask(client, budget, body, f"{pair.question}{end}", chats))
                    counter.advance()
            answers, seconds, reports = zip(*replies, strict=True)
            right = (text == pair.answer for text, pair in zip(answers, questions, strict=True))
            arms[name] = Arm(answers, tuple(right), seconds, reports[0])
    return FewExamples(examples, questions, arms)


def _ask(
    client: httpx.Client, budget: str, body: dict[str, Any], prompt: str, chats: bool
) -> tuple[str, float, dict[str, Any]]:
    """The answer without the blanks around it, the seconds it took, and the server's report."""
    path = "/v1/chat/completions" if chats else "/v1/completions"
    asked = {"messages": [{"role": "user", "content": prompt}]} if chats else {"prompt": prompt}
    started = time.monotonic()
    reply = client.post(path, headers={"Compute-Budget": budget}, json={**body, **asked})
    seconds = time.monotonic() - started
    if reply.status_code != 200:
        raise AdaptationFailedError(f"the server answered {reply.status_code}: {reply.text[:500]}")
    fields = reply.json()
    choice = fields["choices"][0]
    text = choice["message"]["content"] if chats else choice["text"]
    return (text or "").strip(), seconds, dict(fields["adaptation"])
