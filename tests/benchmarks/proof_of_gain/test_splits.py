"""Passages of held-out documents: what is scored of them is in no corpus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.proof_of_gain.next_line import first_line
from benchmarks.proof_of_gain.splits import (
    Cut,
    Split,
    first_bytes,
    split,
    verbatim,
    without_near_copies,
)
from benchmarks.quality.passages import Passage
from selection.ingest.ingest import Document

_ANY = re.compile(".*")
_CUT = Cut(prefix=40, suffix=20, at_line_end=False)


def _text(topic: str, lines: int = 60) -> str:
    return "\n".join(f"    {topic}_{n} = {n * n} * price of {topic}" for n in range(lines))


def _documents(*names: str) -> list[Document]:
    return [Document(f"shop/{name}.py", _text(name), {"domain": "shop"}) for name in names]


def _split(
    documents: Sequence[Document], tokenizer: Any, cut: Cut = _CUT, held_out: str = ".*"
) -> Split:
    return split(documents, re.compile(held_out), 4, 2, cut, tokenizer)


def test_documents_are_held_out_whole_and_most_stay(tokenizer: Any) -> None:
    documents = _documents("apple", "pear", "plum", "fig", "quince", "medlar")

    made = _split(documents, tokenizer)

    held_out = {passage.name for passage in made.passages}
    assert len(held_out) == 2
    assert len(made.passages) == 4
    assert {each.name for each in made.rest} == {each.name for each in documents} - held_out
    assert made == _split(documents, tokenizer)


def test_passages_of_a_document_do_not_overlap(tokenizer: Any) -> None:
    made = _split(_documents("apple", "pear", "plum"), tokenizer)

    # There are more of each than two, since only one document may be held out.
    starts = sorted(passage.start for passage in made.passages)
    assert len(starts) == 4
    length = _CUT.prefix + _CUT.suffix
    assert all(second - first >= length for first, second in pairwise(starts))
    for passage in made.passages:
        assert len(passage.tokens) == _CUT.prefix + _CUT.suffix
        assert tokenizer.decode(passage.tokens[_CUT.prefix :]).strip() == passage.suffix.strip()


def test_in_code_a_prefix_ends_where_a_line_ends(tokenizer: Any) -> None:
    documents = _documents("apple", "pear", "plum")

    made = _split(documents, tokenizer, Cut(prefix=40, suffix=60, at_line_end=True))

    assert made.passages
    texts = {document.name: document.text for document in documents}
    for passage in made.passages:
        assert passage.suffix.startswith("\n")
        assert first_line(passage.suffix) in map(str.strip, texts[passage.name].split("\n"))


def test_what_another_document_has_verbatim_is_not_scored(tokenizer: Any) -> None:
    newest = Document("shop==2/a.py", f"{_text('apple')}\n{_text('new')}", {"domain": "shop"})
    # The older release is indented otherwise.
    older = Document("shop==1/a.py", _text("apple").replace("    ", "  "), {"domain": "shop"})
    others = [
        Document(f"shop==2/{name}.py", _text(name), {"domain": "shop"}) for name in ("b", "c")
    ]

    made = _split([older, newest, *others], tokenizer, held_out=r"shop==2/.*")

    assert verbatim(made.passages, made.rest) == 0
    if newest.name in {passage.name for passage in made.passages}:
        assert older in made.rest
        assert all("new" in p.suffix for p in made.passages if p.name == newest.name)
    copies = [Document("copy", passage.suffix, {}) for passage in made.passages[:1]]
    assert verbatim(made.passages, [*made.rest, *copies]) == 1


@pytest.mark.parametrize("limit", [None, 12_000])
def test_a_limited_corpus_has_releases_side_by_side(limit: int | None, tokenizer: Any) -> None:
    documents = [
        Document(f"shop=={release}/{name}.py", _text(f"{name}_{release}"), {"domain": "shop"})
        for release in (1, 2, 3, 4, 5)
        for name in ("a", "b", "c", "d", "e", "f")
    ]
    made = split(documents, re.compile(r"shop==5/.*"), 1, 1, _CUT, tokenizer)

    kept = first_bytes(made.rest, made.passages, limit)

    if limit is None:
        assert kept == [*made.rest]
        return
    (passage,) = made.passages
    sizes = {each.name: len(each.text.encode()) for each in kept}
    _, _, path = passage.name.partition("/")
    siblings = {name for name in sizes if name.endswith(path)}
    assert siblings
    assert sum(sizes[name] for name in siblings) <= limit / 2 < sum(sizes.values()) <= limit
    # Of another document, several releases are kept.
    assert len({*sizes} - siblings) > len({name[-4:] for name in {*sizes} - siblings})


def test_other_releases_fill_a_corpus_that_has_nothing_else() -> None:
    documents = [Document(f"shop=={release}/a.py", "12345", {}) for release in (1, 2, 3)]
    held_out = [Passage("shop", "shop==4/a.py", 0, (), "", "")]

    assert first_bytes(documents, held_out, 15) == documents
    assert first_bytes(documents, held_out, 14) == documents[:2]


def test_near_copies_of_earlier_documents_are_left_out() -> None:
    newest, other = _documents("apple", "pear")
    older = Document("older", f"{newest.text}\n# the end of an older release", {})

    assert without_near_copies([newest, older, other]) == [newest, other]


def test_documents_that_are_too_short_give_no_passage(tokenizer: Any) -> None:
    made = split([Document("a", "short", {"domain": "x"})], _ANY, 1, 1, _CUT, tokenizer)

    assert made.passages == ()
    assert len(made.rest) == 1
