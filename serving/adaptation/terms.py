"""The server's terms of adaptation: what a request gets that names none, and what none may exceed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.budget import Budget


@dataclass(frozen=True)
class Terms:
    """The server's terms of adaptation.

    Attributes:
        auto: the budget of `Compute-Budget: auto`, and of a request without a budget.
        limits: what no request may exceed.
        corpus: the corpus of requests that name none; None answers those with the base model.
    """

    auto: Budget
    limits: Budget
    corpus: str | None = None

    def within(self, limits: Budget | None) -> Budget:
        """What no request may exceed: the server's limits, or an API key's within them."""
        return self.limits if limits is None else self.limits.cut_to(limits)[0]

    def as_dict(self, limits: Budget | None) -> dict[str, Any]:
        """What clients are told of adaptation before they ask for it, with an API key's limits or
        without.

        Whether requests that name no corpus have one; not its name, which is not for every key.
        """
        within = self.within(limits)
        auto, _ = self.auto.cut_to(within)
        return {
            "auto": auto.as_dict(),
            "limits": within.as_dict(),
            "corpus": self.corpus is not None,
        }
