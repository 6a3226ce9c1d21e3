"""Calibrations: stored per model and embedder in a corpus, and used by its selections."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selection.corpus.calibration import (
    Calibration,
    calibration_meta,
    calibration_of,
    is_calibrated,
    model_digest,
)
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Prompt
from selection.errors import CorpusError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.request import Candidate, SelectionRequest
from selection.selector import Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder

_CALIBRATION = Calibration(1.0, 0.3, 2e-3, 8, 24, 90.5, 92.25)
_TEXTS = [f"word{n} word{n + 1} word{n % 3} and others" for n in range(30)]
_PROMPT = [Prompt("word1 word2 word3")]


@pytest.fixture
def corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Corpus:
    corpus = Corpus.create(corpora, "words", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document(str(n), text) for n, text in enumerate(_TEXTS)], words, tokenizer)
    return corpus


@pytest.fixture
def selector(corpora: Path, words: Embedder, nano: str) -> Selector:
    config = SelectorConfig(corpora, base_model=nano)
    return Selector(config, embedder=ThreadedEmbedder(lambda: words))


def test_a_corpus_has_one_calibration_per_model(corpus: Corpus) -> None:
    other = replace(_CALIBRATION, rank=4)

    corpus.update_meta(calibration_meta(_CALIBRATION, corpus.meta(), "one"))
    corpus.update_meta(calibration_meta(other, corpus.meta(), "another"))

    assert calibration_of(corpus.meta(), "one") == _CALIBRATION
    assert calibration_of(corpus.meta(), "another") == other
    assert calibration_of(corpus.meta(), "a third") is None


def test_a_calibration_can_be_deleted(corpus: Corpus) -> None:
    corpus.update_meta(calibration_meta(_CALIBRATION, corpus.meta(), "one"))

    corpus.update_meta(calibration_meta(None, corpus.meta(), "one"))

    assert calibration_of(corpus.meta(), "one") is None


def test_a_calibration_belongs_to_the_embedder(corpus: Corpus, other_words: Embedder) -> None:
    corpus.update_meta(calibration_meta(_CALIBRATION, corpus.meta(), "one"))

    corpus.reembed(other_words)

    assert calibration_of(corpus.meta(), "one") is None


def test_models_are_identified_by_their_configuration(
    tiny_llama: str, tiny_qwen: str, tmp_path: Path
) -> None:
    config = json.loads((Path(tiny_llama) / "config.json").read_text())
    for folder, changed in (("moved", {}), ("wider", {"intermediate_size": 96})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(
            json.dumps(config | changed | {"transformers_version": "5.9"})
        )

    assert model_digest(tiny_llama) == model_digest(str(tmp_path / "moved"))
    assert (
        len({model_digest(each) for each in (tiny_llama, tiny_qwen, str(tmp_path / "wider"))}) == 3
    )


def test_a_selection_uses_the_calibration_of_its_corpus(
    corpus: Corpus, corpora: Path, selector: Selector, nano: str
) -> None:
    before = selector.select(SelectionRequest(_PROMPT, "words", steps=20))
    corpus.update_meta(calibration_meta(_CALIBRATION, corpus.meta(), model_digest(nano)))

    after = selector.select(SelectionRequest(_PROMPT, "words", steps=20))

    config = SelectorConfig(corpora, base_model=nano, regularisation=1.0)
    expected = Selector(config, embedder=selector.embedder).select(
        SelectionRequest(_PROMPT, "words", steps=20)
    )
    assert before.calibration is None
    assert after.calibration == _CALIBRATION
    assert after.ids == expected.ids != before.ids


def test_a_request_without_a_strategy_takes_the_calibrated_one(
    corpus: Corpus, selector: Selector, nano: str
) -> None:
    request = SelectionRequest(_PROMPT, "words", steps=20)
    before = selector.select(request)
    nearest = replace(_CALIBRATION, strategy="nn")
    corpus.update_meta(calibration_meta(nearest, corpus.meta(), model_digest(nano)))

    after = selector.select(request)

    named = selector.select(replace(request, strategy="nn"))
    assert (before.strategy, after.strategy) == ("sift", "nn")
    assert after.ids == named.ids != before.ids
    assert len(set(after.ids)) == 20


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "sift"},
        {"alpha": 0.05},
        {"candidates": (Candidate(_PROMPT[0], (5, 6, 7), None, "mine", 0, "word1"),)},
    ],
)
def test_a_calibrated_strategy_leaves_these_requests_to_sift(
    corpus: Corpus, selector: Selector, nano: str, change: dict[str, Any]
) -> None:
    nearest = replace(_CALIBRATION, strategy="nn")
    corpus.update_meta(calibration_meta(nearest, corpus.meta(), model_digest(nano)))
    request = replace(SelectionRequest(_PROMPT, "words", steps=20), **change)

    selection = selector.select(request)

    assert (selection.strategy, selection.calibration) == ("sift", nearest)
    assert selection.ids == selector.select(replace(request, strategy="sift")).ids


def test_the_servers_configuration_takes_precedence(
    corpus: Corpus, corpora: Path, selector: Selector, nano: str
) -> None:
    config = SelectorConfig(corpora, base_model=nano, regularisation=0.01)
    configured = Selector(config, embedder=selector.embedder)
    before = configured.select(SelectionRequest(_PROMPT, "words", steps=20))
    corpus.update_meta(calibration_meta(_CALIBRATION, corpus.meta(), model_digest(nano)))

    after = configured.select(SelectionRequest(_PROMPT, "words", steps=20))

    assert (
        after.ids == before.ids != selector.select(SelectionRequest(_PROMPT, "words", steps=20)).ids
    )


def test_a_calibration_of_an_earlier_version_shows_nothing_and_uses_sift(
    corpus: Corpus,
) -> None:
    (stored,) = calibration_meta(_CALIBRATION, corpus.meta(), "one").items()
    fields = json.loads(stored[1])
    del fields["show"], fields["steps"], fields["strategy"]

    corpus.update_meta({stored[0]: json.dumps(fields)})

    assert calibration_of(corpus.meta(), "one") == _CALIBRATION
    assert (_CALIBRATION.show, _CALIBRATION.steps, _CALIBRATION.strategy) == (0, None, "sift")


def test_the_error_for_a_damaged_calibration_says_what_to_do() -> None:
    meta = {"id": "vs_1", "embedder": "words", "revision": "1", "calibration abc": "{not json"}

    assert is_calibrated(meta)
    assert not is_calibrated({"id": "vs_1", "calibration abc": ""})
    with pytest.raises(
        CorpusError,
        match="the calibration of corpus 'vs_1' is damaged: run `mayfly calibrate` again",
    ):
        calibration_of(meta, "abc")
