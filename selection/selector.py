"""Selector: one prompt in, the sequences to train on out.

Embeds the prompt, takes the nearest candidates of a corpus, and lets SIFT choose among them, stopping where
ADAPTIVE SIFT says so. It holds the embedder and the open corpora. One call at a time: the caller locks.

lambda' belongs to the embedder and the corpus. The default was chosen for all-MiniLM-L6-v2 on Python source
(benchmarks/README.md); the paper's 0.01 belongs to its own embedder.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selection.baselines import nearest_neighbours
from selection.corpus import Corpus, Source
from selection.documents import tokenizer_digest
from selection.embedding import DEFAULT, load_embedder
from selection.sift import sift

STRATEGIES = {"sift": sift, "nn": nearest_neighbours}


@dataclass(frozen=True)
class SelectorConfig:
    """Where corpora are and how data is chosen from them.

    Attributes:
        root: the folder of all corpora.
        embedder: as in `selection.embedding.load_embedder`.
        base_model: hub id or folder; its tokenizer must be the corpora's. None leaves that unchecked.
        candidates: K, how many nearest sequences SIFT chooses from.
        regularisation: lambda' of SIFT.
        device: where the embedder computes.
    """

    root: Path
    embedder: str = DEFAULT
    base_model: str | None = None
    candidates: int = 200
    regularisation: float = 0.1
    device: str = "cpu"


@dataclass(frozen=True)
class Selection:
    """What to train on, in order.

    Attributes:
        ids: sequence ids, repeats allowed.
        sequences: their tokens, one tuple an id.
        sources: each distinct sequence with the times it was chosen, most used first.
        uncertainty: sigma_0 .. sigma_n, one more than ids.
        stop: "steps", "alpha", or "corpus" when the corpus is empty.
        seconds: per stage: embed, search, select.
    """

    ids: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[Source, int], ...]
    uncertainty: tuple[float, ...]
    stop: str
    seconds: dict[str, float]


class Selector:
    """Chooses training data for prompts."""

    def __init__(self, config: SelectorConfig) -> None:
        self.config = config
        self.embedder = load_embedder(config.embedder, base_model=config.base_model, device=config.device)
        self._tokenizer = None if config.base_model is None else _tokenizer_of(config.base_model)
        self._open: dict[str, tuple[int, Corpus]] = {}
        self.embedder.embed(["a first text, so that no request pays for the first call"])

    def corpus(self, name: str) -> Corpus:
        """The corpus of that name, kept open, opened anew when it was removed and made again.

        Raises:
            CorpusNotFoundError: there is none.
            CorpusError: it was made with another embedder or tokenizer.
        """
        path = self.config.root / name / "corpus.db"
        held = self._open.get(name)
        if held is not None and path.is_file() and path.stat().st_ino == held[0]:
            return held[1]
        if held is not None:
            held[1].close()
            del self._open[name]
        corpus = Corpus.open(self.config.root, name)
        corpus.check(self.embedder, self._tokenizer)
        self._open[name] = (path.stat().st_ino, corpus)
        return corpus

    def select(
        self, prompts: Sequence[str], corpus: str, *, steps: int, alpha: float | None = None, strategy: str = "sift"
    ) -> Selection:
        """Choose up to `steps` sequences for one prompt, or for several that share an adapter.

        Args:
            prompts: texts; of one that is longer than the embedder's window the end counts.
            corpus: its name.
            steps: the most sequences.
            alpha: the stop of ADAPTIVE SIFT, or None.
            strategy: "sift" or "nn".

        Raises:
            CorpusError: as `corpus`.
            ValueError: an unknown strategy, or an alpha that is not positive.
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
        opened = self.corpus(corpus)
        started = time.perf_counter()
        targets_TD = self.embedder.embed([self.embedder.tail(prompt) for prompt in prompts])
        embedded = time.perf_counter()
        while True:
            candidates_K, candidates_KD = opened.nearest(targets_TD, self.config.candidates)
            searched = time.perf_counter()
            choice = STRATEGIES[strategy](
                candidates_KD, targets_TD, steps=steps, alpha=alpha, regularisation=self.config.regularisation
            )
            ids = tuple(int(candidates_K[pick]) for pick in choice.picks)
            found = opened.read(ids)
            if all(i in found for i in ids):  # else a document was deleted meanwhile: choose again without it
                break
        counts = Counter(ids)
        return Selection(
            ids=ids,
            sequences=tuple(found[i][1] for i in ids),
            sources=tuple((found[i][0], times) for i, times in counts.most_common()),
            uncertainty=choice.uncertainty,
            stop=choice.stop if len(candidates_K) else "corpus",
            seconds={
                "embed": embedded - started,
                "search": searched - embedded,
                "select": time.perf_counter() - searched,
            },
        )


def _tokenizer_of(base_model: str) -> str:
    from transformers import AutoTokenizer

    return tokenizer_digest(AutoTokenizer.from_pretrained(base_model))
