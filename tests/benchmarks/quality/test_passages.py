"""Held-out passages: none of them lies in the corpus, and what nearly does says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import passages
from benchmarks.quality.passages import PREFIX, SUFFIX, make_set, near_duplicates
from selection.corpus.corpus import Corpus
from selection.ingest.ingest import Document
from selection.selector import Selector, SelectorConfig


def text(topic: str, lines: int = 150) -> str:
    return "\n".join(
        f"{topic} number {n} is followed by {topic} number {n * n}" for n in range(lines)
    )


DOCUMENTS = {
    "fruit": [Document(f"{name}.txt", text(name)) for name in ("apple", "pear", "plum", "fig")],
    "trees": [Document(f"{name}.txt", text(name)) for name in ("oak", "elm", "ash")]
    + [Document("short.txt", "a birch")],
}


@pytest.fixture
def selector(tmp_path: Path, nano: str) -> Selector:
    return Selector(SelectorConfig(tmp_path, "base-model", nano))


def test_held_out_documents_are_not_in_the_corpus(
    selector: Selector, nano: str, tokenizer: Any
) -> None:
    ground = make_set("set", DOCUMENTS, 2, nano, selector)

    held_out = {passage.name for passage in ground.passages}
    corpus = Corpus.open(selector.config.root, ground.corpus)
    kept = {entry.name for entry in corpus.documents()}
    assert [sum(passage.group == group for passage in ground.passages) for group in DOCUMENTS] == [
        2,
        2,
    ]
    assert len(held_out) == 4
    assert kept == {d.name for group in DOCUMENTS.values() for d in group} - held_out


def test_a_passage_is_its_documents_own_text(selector: Selector, nano: str, tokenizer: Any) -> None:
    texts = {document.name: document.text for group in DOCUMENTS.values() for document in group}

    ground = make_set("set", DOCUMENTS, 1, nano, selector)

    for passage in ground.passages:
        assert passage.prefix + passage.suffix in texts[passage.name]
        assert len(passage.tokens) == PREFIX + SUFFIX
        assert tokenizer.decode(passage.tokens[PREFIX:]).strip() == passage.suffix.strip()


def test_a_set_is_the_same_every_time(selector: Selector, nano: str) -> None:
    assert make_set("set", DOCUMENTS, 1, nano, selector) == make_set(
        "set", DOCUMENTS, 1, nano, selector
    )


def test_of_a_group_so_many_bytes_go_into_the_corpus(selector: Selector, nano: str) -> None:
    whole = make_set("set", DOCUMENTS, 1, nano, selector)

    part = make_set("set", DOCUMENTS, 1, nano, selector, most_bytes=len(text("apple").encode()))

    assert 0 < part.sequences < whole.sequences


def test_a_group_that_is_too_small_is_named(selector: Selector, nano: str) -> None:
    with pytest.raises(ValueError, match="trees has only 3 documents"):
        make_set("set", DOCUMENTS, 4, nano, selector)


def test_near_duplicates_are_found_whatever_surrounds_what_they_share(
    selector: Selector, nano: str
) -> None:
    ground = make_set("set", DOCUMENTS, 1, nano, selector)
    fruit = next(passage for passage in ground.passages if passage.group == "fruit")
    said = fruit.prefix + fruit.suffix

    found = near_duplicates(
        ground.passages,
        [
            Document("whole", f"before\n{said}\nafter"),
            Document("half again", said[: 2 * len(said) // 3]),
            Document("a line", said[:60]),
            Document("another", text("medlar")),
        ],
    )

    assert found == {"whole", "half again"}


def test_every_group_of_an_interval_is_drawn_whole() -> None:
    mean, low, high = passages.interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"])

    assert mean == 2.0
    assert (low, high) == (1.0, 5.0)
