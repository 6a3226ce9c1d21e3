"""Near copies among the sequences that a request could learn from."""

from __future__ import annotations

from benchmarks.proof_of_gain.splits import without_near_copies
from benchmarks.quality.passages import Passage
from selection import Selector
from selection.embedding import Prompt
from selection.ingest.ingest import Document

# The nearest sequences among which near copies are counted, from which the server chooses.
_NEAREST = 200


def share_of_copies(selector: Selector, passage: Passage, corpus: str) -> float:
    """Share of near copies of each other among the sequences nearest to the prompt."""
    targets_TD = selector.embedder.embed(selector.embedder.windows(Prompt(passage.prefix)))
    with selector.corpora.open(corpus) as opened:
        ids_N, _ = opened.nearest(targets_TD, _NEAREST)
        read = opened.read(ids_N.tolist())
    texts = [Document(str(i), each.source.text, {}) for i, each in read.items()]
    return 1 - len(without_near_copies(texts)) / len(texts)
