"""Variants: selection from a corpus with copies, computed from one without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.variants import with_copies
from selection.corpus.corpus import Corpus
from selection.embedding import Prompt
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.request import SelectionRequest
from selection.selector import Selector, SelectorConfig

TEXTS = [
    "A kitten plays with wool.",
    "The ship leaves the harbour.",
    "Knead flour and water into a dough.",
    "The dog barks.",
]
COPIES = 3


@pytest.fixture
def selector(tmp_path: Path, nano: str, tokenizer: Any) -> Selector:
    """A selector with the corpora "once" and "copies", which has COPIES of each text."""
    selector = Selector(SelectorConfig(tmp_path, "base-model", nano, candidates=None))
    for name, times in (("once", 1), ("copies", COPIES)):
        documents = [
            Document(f"{number}-{copy}", TEXTS[number])
            for number in range(len(TEXTS))
            for copy in range(times)
        ]
        corpus = Corpus.create(tmp_path, name, selector.embedder, tokenizer_digest(tokenizer))
        ingest(corpus, documents, selector.embedder, tokenizer)
        corpus.close()
    return selector


def test_nearest_neighbours_of_a_corpus_with_copies(selector: Selector) -> None:
    prompt, steps = [Prompt("My kitten is asleep")], 2 * COPIES

    in_copies = selector.select(SelectionRequest(prompt, "copies", steps=steps, strategy="nn"))
    computed = with_copies(
        selector.select(SelectionRequest(prompt, "once", steps=steps, strategy="nn")), COPIES, steps
    )

    assert computed.sequences == in_copies.sequences
    assert len(set(in_copies.sequences)) == 2


def test_sift_chooses_the_same_texts_with_copies_and_without(selector: Selector) -> None:
    prompt = [Prompt("My kitten is asleep")]

    in_copies = selector.select(SelectionRequest(prompt, "copies", steps=6))
    computed = selector.select(SelectionRequest(prompt, "once", steps=6))

    assert sorted(computed.sequences) == sorted(in_copies.sequences)
    assert computed.uncertainty == pytest.approx(in_copies.uncertainty)
