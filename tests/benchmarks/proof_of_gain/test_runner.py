"""What is measured on a passage, with the real trainer, selector and pipeline."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import Trainer
from benchmarks.corpus_adapters.arms import FRESH, INSTANT, arms_of
from benchmarks.corpus_adapters.learning import open_selector, trained_shape, trainer_config
from benchmarks.proof_of_gain.arms import (
    AUTO,
    COMPARED_SHOWN_TOO,
    COMPARED_TRAININGS,
    INSTANT_NEAREST_SHOWN,
    INSTANT_SHOWN,
    LINE_ARMS,
    NEAREST_SHOWN,
    SHOWN_ALONE,
    arms,
)
from benchmarks.proof_of_gain.cases import Case, Size
from benchmarks.proof_of_gain.runner import ProofRunner
from benchmarks.proof_of_gain.splits import Cut, split
from benchmarks.proof_of_gain.young_text import YoungDomain
from benchmarks.quality.passages import make_corpus
from selection.config import BASE_MODEL
from selection.ingest.ingest import Document
from tests.trained_corpora import train_corpus

_SIZE = Size(("shop",), "short", 1, 1, 1, 40, 40, None, None, ())
_DOMAIN = YoungDomain("shop", "code", {})


def _documents() -> list[Document]:
    return [
        Document(
            f"{name}.py",
            "\n".join(f"{name}_{n} = {n * n} * zorkmids of {name}" for n in range(60)),
            {"domain": "shop"},
        )
        for name in ("apple", "pear", "plum")
    ]


def test_all_arms_auto_and_next_lines_are_measured(
    tmp_path: Path, nano: str, tokenizer: Any
) -> None:
    cut = Cut(_SIZE.prefix, _SIZE.suffix, at_line_end=True)
    made = split(_documents(), re.compile(".*"), 1, 1, cut, tokenizer)
    corpora: dict[str, Case] = {}
    for case in (Case(_DOMAIN), Case(_DOMAIN, compares=True, kernel=BASE_MODEL)):
        selector = open_selector(tmp_path, nano, case.kernel)
        name = case.kernel.lower()
        corpus, _ = make_corpus(name, made.passages, made.rest, selector, tokenizer)
        selector.corpora.close()
        corpora[corpus] = case
    learnt, _ = corpora
    trainer, shape = Trainer(trainer_config(nano)), trained_shape(nano)
    train_corpus(tmp_path / "corpora", learnt, trainer, shape)
    runner = ProofRunner(nano, tmp_path, corpora, _SIZE)

    measured, compared = (runner.measure(made.passages[0], corpus) for corpus in corpora)

    assert {*compared["arms"]} == {
        arm.name for arm in arms_of(COMPARED_TRAININGS["short"], COMPARED_SHOWN_TOO)
    }
    found = measured["arms"]
    assert {*found} == {AUTO, *(arm.name for arm in arms("short"))}
    assert {name for name, arm in found.items() if "line" in arm} == {*LINE_ARMS}
    base = found["base"]
    assert found[FRESH.name]["bits"] < base["bits"]
    assert found[INSTANT.name]["bits"] < base["bits"]
    assert found[AUTO]["bits"] < base["bits"]
    # The corpus has fewer than 20 sequences.
    assert found["NN 20"]["bits"] != base["bits"]
    assert found[SHOWN_ALONE.name]["tokens"] > base["tokens"] == _SIZE.prefix
    assert found[AUTO]["seconds"] > 0 == base["seconds"]
    new = {name for name, arm in found.items() if arm["is_new"]}
    assert FRESH.name in new
    # The adapter of the corpus suits the prompt, so `auto` makes none.
    assert not {"base", INSTANT.name, SHOWN_ALONE.name, AUTO} & new
    assert 0 <= measured["copies"] <= 1

    few = ProofRunner(nano, tmp_path, corpora, replace(_SIZE, trainings="none"))
    without_steps = few.measure(made.passages[0], learnt)["arms"]
    assert {*without_steps} == {AUTO, *(arm.name for arm in arms("none"))}
    for name in {*without_steps} & {*found} - {AUTO}:
        assert without_steps[name]["bits"] == pytest.approx(found[name]["bits"], abs=1e-4), name
    asked = (SHOWN_ALONE, NEAREST_SHOWN, INSTANT, INSTANT_SHOWN, INSTANT_NEAREST_SHOWN)
    with_line = {name for name, arm in without_steps.items() if "line" in arm}
    assert with_line == {AUTO, "base", *(arm.name for arm in asked)}
