"""What is measured on a passage, with the real trainer, selector and prompt builder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adapters import Trainer
from benchmarks.auto_defaults.runner import WaysRunner
from benchmarks.auto_defaults.ways import BASE, CORPUS, TEXTS, WAYS, Row, Way
from benchmarks.corpus_adapters.learning import open_selector, trained_shape, trainer_config
from benchmarks.proof_of_gain.splits import Cut, split
from benchmarks.quality.passages import make_corpus
from selection.ingest.ingest import Document
from tests.trained_corpora import train_corpus

_CUT = Cut(prefix=40, suffix=40, at_line_end=True)


def test_each_way_is_scored_with_what_the_server_shows(
    tmp_path: Path, nano: str, tokenizer: Any
) -> None:
    documents = [
        Document(
            f"{name}.py",
            "\n".join(f"{name}_{n} = {n * n} * zorkmids of {name}" for n in range(80)),
            {"domain": "shop"},
        )
        for name in ("apple", "pear", "plum")
    ]
    made = split(documents, re.compile(".*"), 1, 1, _CUT, tokenizer)
    selector = open_selector(tmp_path, nano)
    corpus, sequences = make_corpus("shop", made.passages, made.rest, selector, tokenizer)
    selector.corpora.close()
    runner = WaysRunner(nano, tmp_path, _CUT.prefix)
    with pytest.raises(RuntimeError, match="no request starts from corpus"):
        runner.measure(made.passages[0], corpus)
    train_corpus(tmp_path / "corpora", corpus, Trainer(trainer_config(nano)), trained_shape(nano))

    measured = runner.measure(made.passages[0], corpus)

    row = Row.from_dict({"domain": "shop", "document": made.passages[0].name, **measured})
    assert {*row.ways} == {way.name for way in WAYS}
    assert sequences >= 4
    assert row.percent(CORPUS) < 100
    assert row.loss(CORPUS) < row.loss(BASE)
    assert row.ways[BASE.name]["tokens"] == row.ways[CORPUS.name]["tokens"] == _CUT.prefix
    for text in TEXTS:
        base, adapted = Way("base", text), Way("corpus", text)
        assert row.ways[base.name]["tokens"] == row.ways[adapted.name]["tokens"] > _CUT.prefix
        assert row.loss(base) != row.loss(adapted)
    assert row.loss(Way("base", TEXTS[0])) < row.loss(BASE)
    assert all(seconds > 0 for seconds in row.choosing.values())
    assert all(way["seconds"] > 0 for way in row.ways.values())
