"""The handbook of invented facts: its answers cannot be guessed, and what counts as right."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.proof_of_gain.facts import QUESTIONS
from benchmarks.proof_of_gain.handbook import Handbook, is_right, make_handbook, normalised
from benchmarks.quality.passages import shingles


@pytest.fixture(scope="module")
def handbook() -> Handbook:
    return make_handbook()


def test_a_seed_always_draws_the_same_handbook(handbook: Handbook) -> None:
    other = make_handbook(seed=1)

    assert make_handbook() == handbook
    assert {each.text for each in other.questions} == {each.text for each in handbook.questions}
    answers, others = (
        {each.text: each.answer for each in made.questions} for made in (handbook, other)
    )
    assert sum(answer == others[text] for text, answer in answers.items()) <= 2


def test_the_documents_are_prose_of_a_page(handbook: Handbook) -> None:
    assert len(handbook.documents) == 24
    for document in handbook.documents:
        assert 120 <= len(document.text.split()) <= 250, document.name
        assert not {*document.text} & {*"{}?="}, document.name


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_answer_is_once_in_one_document_and_in_no_question(seed: int) -> None:
    handbook = make_handbook(seed)

    assert len({normalised(each.answer) for each in handbook.questions}) == len(handbook.questions)
    for question in handbook.questions:
        having = [each for each in handbook.documents if is_right(each.text, question.answer)]
        (document,) = having
        assert document.name == question.document, question
        words = f" {normalised(document.text)} "
        assert words.count(f" {normalised(question.answer)} ") == 1, question
        assert not any(is_right(each.text, question.answer) for each in handbook.questions)


def test_questions_are_of_all_documents_in_turn_and_in_other_words(handbook: Handbook) -> None:
    by_document = Counter(each.document for each in handbook.questions)

    assert len(handbook.questions) >= 48
    assert len({each.text for each in handbook.questions}) == len(handbook.questions)
    assert {*by_document} == {each.name for each in handbook.documents}
    assert min(by_document.values()) >= 2
    few = [each.document for each in handbook.questions[: QUESTIONS["small"]]]
    assert len({*few}) == len(few) == 12
    runs = {each.name: shingles(each.text) for each in handbook.documents}
    assert not any(shingles(each.text) & runs[each.document] for each in handbook.questions)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("KV-4471", "KV-4471"),
        ("The code is kv 4471.", "KV-4471"),
        ("Call Ada Ruskersen, not Greta Stavigan!", "Ruskersen"),
        ("It holds **417** litres", "417"),
        ("in Alderhaven's harbour", "Alderhaven"),
    ],
)
def test_a_line_with_the_answer_is_right(line: str, answer: str) -> None:
    assert is_right(line, answer)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("", "417"),
        ("4417", "417"),
        ("KV-4472", "KV-4471"),
        ("KV and 4471", "KV-4471"),
        ("Ada", "Ruskersen"),
        ("Alder haven", "Alderhaven"),
    ],
)
def test_a_line_without_the_answer_is_wrong(line: str, answer: str) -> None:
    assert not is_right(line, answer)
