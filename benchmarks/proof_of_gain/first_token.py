"""What an engine adds to the first token of an answer: its prompt, and the adapter to load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks.harness.server import mayfly_server
from serving.capacity.engine_profiler import profile_engine
from serving.client import Server

# Tokens of a prompt with shown text, as far as the context allows.
_PROMPT = 2048


@dataclass(frozen=True)
class FirstToken:
    """Costs of the engine, in seconds.

    Attributes:
        fixed: of an answer.
        per_token: of a token of the prompt.
        load: of an adapter that is not loaded yet.
    """

    fixed: float
    per_token: float
    load: float

    def seconds(self, arm: Mapping[str, Any]) -> float:
        """Seconds from a request to its first token.

        Args:
            arm: `seconds` that its adapter and what is shown take, `tokens` of its prompt, and
                whether its adapter `is_new`.
        """
        load = self.load if arm["is_new"] else 0.0
        return float(arm["seconds"] + load + self.fixed + self.per_token * arm["tokens"])


def measure_first_token(home: Path, model: str, corpus: str) -> dict[str, float]:
    """Measure the costs on a server of its own; returns the fields of `FirstToken`.

    Args:
        home: home of the corpus.
        model: folder of the base model.
        corpus: name of a corpus, to adapt to.

    Raises:
        RuntimeError: the server did not start, or loaded no adapter.
    """
    config = AutoConfig.from_pretrained(model)
    with mayfly_server(home, "--model", model, "--corpus", corpus) as server:
        prompt = min(_PROMPT, config.max_position_embeddings // 2)
        costs = profile_engine(Server(server.url), config.vocab_size, prompt)
    if costs.load is None:
        raise RuntimeError(f"the server loaded no adapter for corpus {corpus}")
    return {
        "fixed": costs.answer_fixed,
        "per_token": costs.prefill_per_token,
        "load": costs.load,
    }
