"""SelectionRequest: what data is chosen for, from which corpus, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selection.access import OPERATOR, Principal
from selection.corpus.filters import Filter
from selection.embedding import Prompt


@dataclass(frozen=True)
class SelectionRequest:
    """One choice of training data; the same in this process and across processes.

    Attributes:
        prompts: one prompt, or several that share an adapter; each is embedded by its last windows
            (`selection.embedding.split_windows`), and all windows are targets, up to a bound
            (`selection.targets`).
        corpus: name or id of the corpus to choose from.
        steps: maximum number of sequences.
        alpha: stopping parameter of Adaptive SIFT (paper section 6); None to choose `steps`
            sequences.
        strategy: one of `selection.STRATEGIES`.
        filter: filter on the documents' metadata (`selection.corpus.filters`).
        seed: seed of the strategy "random".
        principal: on whose behalf; corpora that they may not see do not exist for the request.
    """

    prompts: Sequence[Prompt]
    corpus: str
    steps: int
    alpha: float | None = None
    strategy: str = "sift"
    filter: Filter | None = None
    seed: int = 0
    principal: Principal = OPERATOR
