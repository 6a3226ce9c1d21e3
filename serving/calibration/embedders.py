"""Other embedders for a corpus: its sequences embedded by one of them, and the rule by which one is
better than the corpus's own.

The corpus itself is only read: the other embeddings are held in memory.

Shapes: N sequences, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.index.faiss_index import Ids, Index
from selection.corpus.sequences import embedded_text
from selection.embedding import Embedder, Embeddings
from serving.calibration.setting import Setting

# Sequences that are embedded at once: so few that the progress soon tells how long all will take.
_BATCH = 8


class OtherEmbedding:
    """All sequences of a corpus as another embedder embeds them, searched as a corpus is.

    Args:
        corpus: the corpus.
        embedder: the other embedder.
        on_embedded: called with the number of sequences just embedded.
    """

    def __init__(
        self, corpus: Corpus, embedder: Embedder, on_embedded: Callable[[int], None]
    ) -> None:
        self.embedder = embedder
        ids: list[int] = []
        batches = [np.empty((0, embedder.dimension), np.float32)]
        sources = (
            sequence.source
            for document in corpus.documents()
            for sequence in corpus.sequences_of(document.id)
        )
        while batch := list(islice(sources, _BATCH)):
            texts = [embedded_text(each.text, each.example, embedder) for each in batch]
            batches.append(embedder.embed(texts))
            ids += [each.sequence for each in batch]
            on_embedded(len(batch))
        ascending_N = np.argsort(ids)
        self._index = Index.build(
            np.array(ids, np.int64)[ascending_N], np.concatenate(batches)[ascending_N]
        )

    def nearest(self, targets_TD: Embeddings, k: int) -> tuple[Ids, Embeddings]:
        """As `Corpus.nearest`."""
        ids_K, embeddings_KD, _ = self._index.nearest(targets_TD, k)
        return ids_K, embeddings_KD


@dataclass(frozen=True)
class EmbedderLosses:
    """The losses with one embedder and the best settings found for it, with nothing shown.

    Attributes:
        embedder: Its name.
        setting: These settings.
        searching, judging: Mean loss after all steps on the documents that search, and on those
            that judge, in per cent of the base model's; the latter is None if the corpus's own
            embedder is as good on the former.
    """

    embedder: str
    setting: Setting
    searching: float
    judging: float | None

    def is_better_than(self, own: EmbedderLosses) -> bool:
        """Whether it is better than the corpus's own embedder on both halves of the documents."""
        if self.judging is None or own.judging is None:
            return False
        return self.searching < own.searching and self.judging < own.judging


def better_embedder(own: EmbedderLosses, others: Sequence[EmbedderLosses]) -> str | None:
    """The best on the documents that judge of those that are better than the corpus's own
    embedder; None if none is.
    """
    better = [each for each in others if each.is_better_than(own)]
    return min(better, key=lambda each: each.judging or 0.0).embedder if better else None
