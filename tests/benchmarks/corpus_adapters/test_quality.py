"""The scores of arms on a passage, with the real trainer and selector."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters import Trainer
from benchmarks.corpus_adapters.arms import (
    BASE,
    COMBINED,
    INSTANT,
    Arm,
    Training,
    arms_of,
)
from benchmarks.corpus_adapters.learning import open_selector, trained_shape, trainer_config
from benchmarks.corpus_adapters.quality import open_runner
from benchmarks.corpus_scaling import FACTORS, Row, ScaledScorer, by_factor
from benchmarks.quality.passages import make_set
from selection.ingest.ingest import Document
from tests.trained_corpora import train_corpus

_PREFIX = 32
_TRAININGS = (Training("fresh", (10, 20)), Training("corpus", (2, 10)))


def _text(topic: str) -> str:
    return "\n".join(f"{topic} {n} costs {n * n} zorkmids in the {topic} shop" for n in range(60))


def test_each_arm_is_scored_with_the_adapter_that_it_names(tmp_path: Path, nano: str) -> None:
    documents = [Document(name, _text(name)) for name in ("apple", "pear", "plum")]
    selector = open_selector(tmp_path, nano)
    made = make_set("shop", {"fruit": documents}, 1, nano, selector, None, _PREFIX, _PREFIX)
    selector.corpora.close()
    runner = open_runner(nano, {"corpus": tmp_path}, _TRAININGS, _PREFIX)
    (passage,) = made.passages
    with pytest.raises(RuntimeError, match="no request starts from corpus"):
        runner.measure(passage, made.corpus)
    train_corpus(
        tmp_path / "corpora", made.corpus, Trainer(trainer_config(nano)), trained_shape(nano)
    )

    scores = runner.measure(passage, made.corpus)

    assert {*scores} == {arm.name for arm in arms_of(_TRAININGS)}
    bits = {name: bits for name, (bits, _) in scores.items()}
    # The adapter has learnt text like the prompt, so requests that compare start from it.
    compared = {name for name in bits if "if better" in name}
    assert bits["corpus if better"] == bits[INSTANT.name]
    assert bits[COMBINED.name] == bits[Arm("corpus", 10).name]
    assert len({bits[name] for name in bits.keys() - compared}) == len(bits) - len(compared)
    assert bits[INSTANT.name] < bits[BASE.name]
    assert bits[COMBINED.name] < bits[INSTANT.name]
    assert bits[Arm(steps=20).name] < bits[BASE.name]
    assert scores[BASE.name][1] == 0

    scaled = ScaledScorer(nano, tmp_path, _PREFIX).measure(passage, made.corpus)

    assert scaled["0.0"] == pytest.approx(bits[BASE.name])
    assert scaled["1.0"] == pytest.approx(bits[INSTANT.name])
    assert scaled["1.0"] < scaled["0.4"] < scaled["0.0"]


def test_factors_are_compared_passage_by_passage() -> None:
    rows = [
        Row("shop", "a", {str(factor): 2.0 - factor for factor in FACTORS}),
        Row("shop", "b", {str(factor): 1.0 for factor in FACTORS}),
    ]

    found, less = by_factor(rows), by_factor(rows, "1.0")

    assert found["0.0"] == pytest.approx((100, 100, 100))
    assert found["1.0"][0] == pytest.approx(75)
    assert less["0.0"][0] == pytest.approx(25)
    assert less["1.0"] == (0, 0, 0)
