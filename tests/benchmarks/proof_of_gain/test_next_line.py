"""The next line: what counts, how it is scored, and that an adapter writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters import Trainer, TrainerConfig, TrainingRequest
from benchmarks.proof_of_gain.next_line import (
    LineWriter,
    edit_similarity,
    first_line,
    is_exact,
    is_worth_asking,
)


def test_the_first_line_that_is_not_blank_counts() -> None:
    assert first_line("\n\n    return values\nelse:") == "return values"
    assert first_line("\n  ") == ""


def test_brackets_and_long_lines_are_not_worth_asking() -> None:
    assert is_worth_asking("return values")
    assert not is_worth_asking("}),")
    assert not is_worth_asking("x" * 200)


def test_white_space_does_not_count() -> None:
    assert is_exact("a  = 1", "a = 1")
    assert not is_exact("a = 2", "a = 1")


@pytest.mark.parametrize(
    ("line", "wanted", "similarity"),
    [("", "", 1), ("same", "same", 1), ("kitten", "sitting", 1 - 3 / 7), ("", "abc", 0)],
)
def test_similarity_is_the_levenshtein_distance_over_the_length(
    line: str, wanted: str, similarity: float
) -> None:
    assert edit_similarity(line, wanted) == pytest.approx(similarity)
    assert edit_similarity(wanted, line) == pytest.approx(similarity)


def test_an_adapter_writes_what_it_learnt_and_the_model_is_as_before(
    nano: str, tokenizer: Any, tmp_path: Path
) -> None:
    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = tokens("apples cost zorkmids")
    whole = [*prompt, *tokens("\nreturn zorkmids * apples\n")]
    trainer = Trainer(TrainerConfig(nano))
    adapter = trainer.train(TrainingRequest([whole] * 40)).adapter
    assert adapter is not None
    writer = LineWriter(nano, trainer.scale)
    before = writer.write(prompt)

    line = writer.write(prompt, adapter.weights)

    assert line == "return zorkmids * apples"
    assert writer.write(prompt) == before != line
