"""Variants: what stands for another corpus chooses what that corpus would have given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.variants import copied
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
    """Over "once", with each text once, and "copies", with each COPIES times."""
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

    there = selector.select(SelectionRequest(prompt, "copies", steps=steps, strategy="nn"))
    here = copied(
        selector.select(SelectionRequest(prompt, "once", steps=steps, strategy="nn")), COPIES, steps
    )

    assert here.sequences == there.sequences
    assert len(set(there.sequences)) == 2


def test_sift_chooses_the_same_texts_with_copies_and_without(selector: Selector) -> None:
    prompt = [Prompt("My kitten is asleep")]

    there = selector.select(SelectionRequest(prompt, "copies", steps=6))
    here = selector.select(SelectionRequest(prompt, "once", steps=6))

    assert sorted(here.sequences) == sorted(there.sequences)
    assert here.uncertainty == pytest.approx(there.uncertainty)
