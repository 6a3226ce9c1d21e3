"""Compares the base model with an adapter on one passage: a continuation by each, and the score of
the true one. All requests go through the server's HTTP API.

One passage proves nothing; `benchmarks/quality/main.py` has many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.cli.console import PlainConsole
from serving.cli.demo.passage import PREFIX, Passage
from serving.cli.progress import Status
from serving.errors import AdaptationFailedError

if TYPE_CHECKING:
    import httpx

# Greedy, so that the answers are the same every time.
_SAMPLING = {"max_tokens": 96, "temperature": 0}


@dataclass(frozen=True)
class Result:
    """The result of the demonstration.

    Attributes:
        passage: the passage that was continued.
        model: name of the served model.
        base_answer, adapted_answer: the continuations by the base model and by the adapter.
        base_bits_per_byte, adapted_bits_per_byte: the scores of the true continuation.
        adaptation: the server's report.
    """

    passage: Passage
    model: str
    base_answer: str
    adapted_answer: str
    base_bits_per_byte: float
    adapted_bits_per_byte: float
    adaptation: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The result for the last line of `--json`."""
        report = self.adaptation
        return {
            "model": self.model,
            "base_bits_per_byte": round(self.base_bits_per_byte, 4),
            "adapted_bits_per_byte": round(self.adapted_bits_per_byte, 4),
            "steps": report["spent"]["steps"],
            "stop": report["stop"],
            "sigma": report["uncertainty"],
            "sources": report["sources"],
            "prompt_loss": report["prompt_loss"],
            "seconds": report["seconds"],
        }


def run(url: str, model: str, corpus: str, passage: Passage, console: PlainConsole) -> Result:
    """Request a continuation and a score of the true one, with the budgets `none` and `auto`.

    Args:
        url: base URL of the server.
        model: name of the served model.
        corpus: name of the corpus to learn from.
        passage: the passage.
        console: where the progress is shown.

    Raises:
        AdaptationFailedError: the server answers with an error.
    """
    import httpx

    replies: dict[str, dict[str, Any]] = {}
    with httpx.Client(base_url=url, timeout=300) as client:
        for budget in ("none", "auto"):
            with Status(f"answering with Compute-Budget: {budget}", console):
                replies[budget] = _complete(client, model, corpus, budget, passage)
    answers = {budget: reply["choices"][0]["text"] for budget, reply in replies.items()}
    scores = {
        budget: _bits_per_byte(reply["choices"][1]["prompt_logprobs"], passage)
        for budget, reply in replies.items()
    }
    report = replies["auto"]["adaptation"]
    return Result(
        passage, model, answers["none"], answers["auto"], scores["none"], scores["auto"], report
    )


def _complete(
    client: httpx.Client, model: str, corpus: str, budget: str, passage: Passage
) -> dict[str, Any]:
    """Complete the prefix and the whole passage, with one adapter for both."""
    reply = client.post(
        "/v1/completions",
        headers={"Compute-Budget": budget},
        json={
            "model": model,
            "prompt": [list(passage.tokens[:PREFIX]), list(passage.tokens)],
            "prompt_logprobs": 0,
            # Only the prefix is adapted to, even though the true continuation is scored.
            "adaptation": {"corpus": corpus, "prompt": passage.prefix},
            **_SAMPLING,
        },
    )
    if reply.status_code != 200:
        raise AdaptationFailedError(f"the server answered {reply.status_code}: {reply.text[:500]}")
    return dict(reply.json())


def _bits_per_byte(logprobs: list[dict[str, dict[str, float]] | None], passage: Passage) -> float:
    scored = [next(iter(entry.values()))["logprob"] for entry in logprobs[PREFIX:] if entry]
    assert len(scored) == len(passage.tokens) - PREFIX
    return -sum(scored) / math.log(2) / len(passage.suffix.encode())
