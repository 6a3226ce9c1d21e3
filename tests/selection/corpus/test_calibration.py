"""Calibrations: a corpus keeps them, for one model and one embedder, and selections follow them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selection import selector as selector_module
from selection.corpus.calibration import (
    Calibration,
    calibration_of,
    is_calibrated,
    model_digest,
    to_remember,
)
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Prompt
from selection.errors import CorpusError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.request import SelectionRequest
from selection.selector import Selector, SelectorConfig

_FOUND = Calibration(1.0, 0.3, 2e-3, 8, 24, 90.5, 92.25)
_TEXTS = [f"word{n} word{n + 1} word{n % 3} and others" for n in range(30)]
_PROMPT = [Prompt("word1 word2 word3")]


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Corpus:
    made = Corpus.create(corpora, "words", words, tokenizer_digest(tokenizer))
    ingest(made, [Document(str(n), text) for n, text in enumerate(_TEXTS)], words, tokenizer)
    return made


@pytest.fixture
def selector(
    corpora: Path, words: Embedder, nano: str, monkeypatch: pytest.MonkeyPatch
) -> Selector:
    monkeypatch.setattr(selector_module, "load_embedder", lambda *_, **__: words)
    return Selector(SelectorConfig(corpora, base_model=nano))


def test_a_corpus_keeps_one_for_each_model(corpus: Corpus) -> None:
    other = replace(_FOUND, rank=4)

    corpus.remember(to_remember(_FOUND, corpus.meta(), "one"))
    corpus.remember(to_remember(other, corpus.meta(), "another"))

    assert calibration_of(corpus.meta(), "one") == _FOUND
    assert calibration_of(corpus.meta(), "another") == other
    assert calibration_of(corpus.meta(), "a third") is None


def test_it_can_be_forgotten(corpus: Corpus) -> None:
    corpus.remember(to_remember(_FOUND, corpus.meta(), "one"))

    corpus.remember(to_remember(None, corpus.meta(), "one"))

    assert calibration_of(corpus.meta(), "one") is None


def test_it_belongs_to_the_embedder(corpus: Corpus, other_words: Embedder) -> None:
    corpus.remember(to_remember(_FOUND, corpus.meta(), "one"))

    corpus.reembed(other_words)

    assert calibration_of(corpus.meta(), "one") is None


def test_models_are_told_apart_by_how_they_are_built(
    tiny_llama: str, tiny_qwen: str, tmp_path: Path
) -> None:
    told = json.loads((Path(tiny_llama) / "config.json").read_text())
    for folder, changed in (("moved", {}), ("wider", {"intermediate_size": 96})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(
            json.dumps(told | changed | {"transformers_version": "5.9"})
        )

    assert model_digest(tiny_llama) == model_digest(str(tmp_path / "moved"))
    assert (
        len({model_digest(each) for each in (tiny_llama, tiny_qwen, str(tmp_path / "wider"))}) == 3
    )


def test_a_selection_follows_its_corpus(
    corpus: Corpus, corpora: Path, selector: Selector, nano: str
) -> None:
    before = selector.select(SelectionRequest(_PROMPT, "words", steps=20))
    corpus.remember(to_remember(_FOUND, corpus.meta(), model_digest(nano)))

    after = selector.select(SelectionRequest(_PROMPT, "words", steps=20))

    by_hand = Selector(SelectorConfig(corpora, base_model=nano, regularisation=1.0)).select(
        SelectionRequest(_PROMPT, "words", steps=20)
    )
    assert before.calibration is None
    assert after.calibration == _FOUND
    assert after.ids == by_hand.ids != before.ids


def test_what_the_server_was_told_goes_first(
    corpus: Corpus, corpora: Path, selector: Selector, nano: str
) -> None:
    told = Selector(SelectorConfig(corpora, base_model=nano, regularisation=0.01))
    before = told.select(SelectionRequest(_PROMPT, "words", steps=20))
    corpus.remember(to_remember(_FOUND, corpus.meta(), model_digest(nano)))

    after = told.select(SelectionRequest(_PROMPT, "words", steps=20))

    assert (
        after.ids == before.ids != selector.select(SelectionRequest(_PROMPT, "words", steps=20)).ids
    )


def test_a_damaged_calibration_says_what_to_do() -> None:
    meta = {"id": "vs_1", "embedder": "words", "revision": "1", "calibration abc": "{not json"}

    assert is_calibrated(meta)
    assert not is_calibrated({"id": "vs_1", "calibration abc": ""})
    with pytest.raises(
        CorpusError,
        match="the calibration of corpus 'vs_1' is damaged: run `mayfly calibrate` again",
    ):
        calibration_of(meta, "abc")
