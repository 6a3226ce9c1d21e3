"""Held-out passages: none is in the corpus, and near duplicates are marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.passages import PREFIX, SUFFIX, make_set, near_duplicates
from selection.corpus.corpus import Corpus
from selection.ingest.ingest import Chunking, Document
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
    passage_set = make_set("set", DOCUMENTS, 2, nano, selector)

    held_out = {passage.name for passage in passage_set.passages}
    corpus = Corpus.open(selector.config.root, passage_set.corpus)
    stored = {entry.name for entry in corpus.documents()}
    assert [
        sum(passage.group == group for passage in passage_set.passages) for group in DOCUMENTS
    ] == [
        2,
        2,
    ]
    assert len(held_out) == 4
    assert stored == {d.name for group in DOCUMENTS.values() for d in group} - held_out


def test_a_passage_is_its_documents_own_text(selector: Selector, nano: str, tokenizer: Any) -> None:
    texts = {document.name: document.text for group in DOCUMENTS.values() for document in group}

    passage_set = make_set("set", DOCUMENTS, 1, nano, selector)

    for passage in passage_set.passages:
        assert passage.prefix + passage.suffix in texts[passage.name]
        assert len(passage.tokens) == PREFIX + SUFFIX
        assert tokenizer.decode(passage.tokens[PREFIX:]).strip() == passage.suffix.strip()


def test_passages_of_another_length(selector: Selector, nano: str, tokenizer: Any) -> None:
    passage_set = make_set("set", DOCUMENTS, 1, nano, selector, prefix_tokens=40, suffix_tokens=10)

    for passage in passage_set.passages:
        assert len(passage.tokens) == 50
        assert tokenizer.decode(passage.tokens[40:]).strip() == passage.suffix.strip()


def test_a_set_is_the_same_every_time(selector: Selector, nano: str) -> None:
    assert make_set("set", DOCUMENTS, 1, nano, selector) == make_set(
        "set", DOCUMENTS, 1, nano, selector
    )


def test_the_corpus_takes_at_most_max_bytes_of_a_group(selector: Selector, nano: str) -> None:
    whole = make_set("set", DOCUMENTS, 1, nano, selector)

    part = make_set("set", DOCUMENTS, 1, nano, selector, max_bytes=len(text("apple").encode()))

    assert 0 < part.sequences < whole.sequences


def test_near_duplicates_can_be_left_out(selector: Selector, nano: str) -> None:
    copies = [Document(f"copy {number}", text("nut")) for number in range(3)]
    groups = {**DOCUMENTS, "copies": copies}

    made = make_set("set", groups, 1, nano, selector, near_left_out=True)

    corpus = Corpus.open(selector.config.root, made.corpus)
    stored = {entry.name for entry in corpus.documents()}
    assert len(stored) > 1
    assert not stored & {copy.name for copy in copies}


def test_the_length_of_sequences_can_be_chosen(selector: Selector, nano: str) -> None:
    whole = make_set("set", DOCUMENTS, 1, nano, selector)

    short = make_set("set", DOCUMENTS, 1, nano, selector, chunking=Chunking(max_length=16))

    assert short.passages == whole.passages
    assert short.sequences > 2 * whole.sequences


def test_a_group_with_too_few_documents_is_refused(selector: Selector, nano: str) -> None:
    with pytest.raises(ValueError, match="trees has only 3 documents"):
        make_set("set", DOCUMENTS, 4, nano, selector)


def test_near_duplicates_are_found_in_other_surroundings(selector: Selector, nano: str) -> None:
    passage_set = make_set("set", DOCUMENTS, 1, nano, selector)
    fruit = next(passage for passage in passage_set.passages if passage.group == "fruit")
    text_of_passage = fruit.prefix + fruit.suffix

    found = near_duplicates(
        passage_set.passages,
        [
            Document("whole", f"before\n{text_of_passage}\nafter"),
            Document("half again", text_of_passage[: 2 * len(text_of_passage) // 3]),
            Document("a line", text_of_passage[:60]),
            Document("another", text("medlar")),
        ],
    )

    assert found == {"whole", "half again"}
