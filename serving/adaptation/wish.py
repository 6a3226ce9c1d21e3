"""Wish: what a request asks of its adaptation, as a value. Parsing is
`serving.adaptation.request`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from selection.corpus.filters import Filter
from selection.embedding import Prompt
from selection.targets import Truncation
from serving.adaptation.admission import Place
from serving.budget import Budget


@dataclass(frozen=True)
class AdaptationRequest:
    """What a request asks of its adaptation.

    Attributes:
        prompts: what to adapt to.
        budget: within the server's limits.
        cut: names of the limits that were cut.
        corpus: to choose from; None for the base model.
        only: a filter on the documents' metadata.
        strategy: how to choose.
        plan: how to train.
        seed: of the adapter.
        required: fail rather than answer with the base model, and take no fewer steps while the
            server is busy.
        progress: tell in comments of the stream how far it is.
        reuse: begin from the adapter of the conversation's previous turn.
        named: whether the corpus is the request's own, and not the server's default.
        degraded: what a busy server took off it, told; None for nothing.
        tokens: the end of the longest prompt in the model's tokens, whose loss tells whether
            adapting has helped; none where nothing is to be adapted.
        left_out: how many of the request's prompts `prompts` are, if they are not all.
    """

    prompts: tuple[Prompt, ...]
    budget: Budget
    cut: tuple[str, ...]
    corpus: str | None
    only: Filter | None = None
    strategy: str = "sift"
    plan: str = "sequential"
    seed: int = 0
    required: bool = False
    progress: bool = False
    reuse: bool = False
    named: bool = True
    degraded: str | None = None
    tokens: tuple[int, ...] = ()
    truncation: Truncation | None = None

    def in_company(self, place: Place) -> AdaptationRequest:
        """This wish with the steps that it gets in the company it has found."""
        wished = self.budget.steps
        steps = wished if self.required else place.steps(wished)
        if steps == wished:
            return self
        told = f"{steps} of {wished} steps: {place.learning} adaptations are learning, {place.undegraded} get all"
        return replace(self, budget=replace(self.budget, steps=steps), degraded=told)
