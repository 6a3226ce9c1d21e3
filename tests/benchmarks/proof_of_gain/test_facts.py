"""Questions on the handbook, with the real trainer, selector and prompts."""

from __future__ import annotations

from pathlib import Path

from adapters import Trainer
from benchmarks.corpus_adapters.arms import FRESH, INSTANT
from benchmarks.corpus_adapters.learning import trained_shape, trainer_config
from benchmarks.proof_of_gain.arms import SHOWN_ALONE, TOGETHER
from benchmarks.proof_of_gain.facts import ARMS, ORACLE, FactsRunner, hold_out
from benchmarks.proof_of_gain.facts_summary import FactsRow
from benchmarks.proof_of_gain.handbook import is_right, make_handbook
from tests.trained_corpora import train_corpus


def test_all_arms_answer_a_question(tmp_path: Path, nano: str) -> None:
    made = hold_out(nano, tmp_path)
    trainer, shape = Trainer(trainer_config(nano)), trained_shape(nano)
    train_corpus(tmp_path / "corpora", made.corpus, trainer, shape)
    runner = FactsRunner(nano, tmp_path)

    found = runner.measure(made.passages[0], made.corpus)

    row = FactsRow(made.passages[0].name, **found)
    assert len(row.arms) == 2 * len(ARMS) + 1
    assert {SHOWN_ALONE.name, FRESH.name, INSTANT.name, TOGETHER.name, ORACLE} <= {*row.arms}
    assert row.question == make_handbook().questions[0].text
    for arm in row.arms.values():
        assert arm["right"] == is_right(arm["line"], row.answer)
        assert "\n" not in arm["line"]
    # What is trained on or shown is taken into account.
    base = row.arms["base"]["line"]
    assert base not in (row.arms[name]["line"] for name in (FRESH.name, SHOWN_ALONE.name))


def test_the_corpus_is_the_handbook_and_its_passages_are_the_questions(
    tmp_path: Path, nano: str
) -> None:
    handbook = make_handbook()

    made = hold_out(nano, tmp_path)

    assert made.facts["documents"] == len(handbook.documents) <= made.sequences
    assert [(each.prefix, each.suffix, each.name) for each in made.passages] == [
        (each.text, each.answer, each.document) for each in handbook.questions
    ]
    assert len({each.key for each in made.passages}) == len(made.passages)
    assert hold_out(nano, tmp_path) == made
