"""Other embedders: measured as if the corpus were embedded again, and preferred only if better."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selection.config import BASE_MODEL, DEFAULT
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, load_embedder
from selection.examples.example import Example
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.location import Location
from selection.selector import Selector, SelectorConfig
from serving.calibration.embedders import EmbedderLosses, OtherEmbedding, better_embedder
from serving.calibration.measurer import CurveMeasurer
from serving.calibration.setting import Setting

_VERBS, _NOUNS = ("load", "save", "parse", "merge"), ("frame", "table", "ledger", "index")
_FUNCTIONS = [
    Document(
        f"{12 - n}.py",
        f"def {_VERBS[n % 4]}_{_NOUNS[n // 4]}_{n}(path, mode):\n"
        f"    with open_{_NOUNS[n % 3]}(path, mode) as opened:\n"
        f"        return [{_VERBS[n % 3]}_{_NOUNS[n % 4]}(row, {n}) for row in opened]\n",
    )
    for n in range(12)
]
_QUESTION = Example(
    ({"role": "user", "content": "Which table?"}, {"role": "assistant", "content": "The frame."})
)


def losses(name: str, searching: float, judging: float | None) -> EmbedderLosses:
    return EmbedderLosses(name, Setting(0.3, 1e-3, 16), searching, judging)


@pytest.mark.parametrize(
    ("others", "better"),
    [
        ([], None),
        ([losses("better on both", 89.0, 91.9)], "better on both"),
        ([losses("as good when judged", 89.0, 92.0)], None),
        ([losses("worse when judged", 80.0, 92.1)], None),
        ([losses("as good when searched", 90.0, None)], None),
        ([losses("lucky when judged", 90.0, 80.0)], None),
        (
            [
                losses("better", 80.0, 91.0),
                losses("best when judged", 89.0, 90.5),
                losses("better, too", 85.0, 91.5),
            ],
            "best when judged",
        ),
    ],
)
def test_another_embedder_is_better_only_on_both_halves(
    others: Sequence[EmbedderLosses], better: str | None
) -> None:
    assert better_embedder(losses("own", 90.0, 92.0), others) == better


@pytest.mark.parametrize("place", ["corpora", "postgres"])
def test_the_other_embedding_is_that_of_the_corpus_embedded_again(
    request: pytest.FixtureRequest,
    place: str,
    words: Embedder,
    other_words: Embedder,
    tokenizer: Any,
) -> None:
    location: Location = request.getfixturevalue(place)
    corpus = Corpus.create(location, "functions", words, tokenizer_digest(tokenizer))
    example = Document("question", _QUESTION.text, example=_QUESTION)
    ingest(corpus, [*_FUNCTIONS, example], words, tokenizer)
    targets_TD = other_words.embed(["def load_table(path)", "Which table?"])
    counts: list[int] = []

    other = OtherEmbedding(corpus, other_words, counts.append)

    before = corpus.meta()
    found = [other.nearest(targets_TD, k) for k in (1, 5, 100)]
    assert corpus.meta() == before
    assert sum(counts) == corpus.counts()[1] == 13
    corpus.reembed(other_words)
    for (ids_K, embeddings_KD), k in zip(found, (1, 5, 100), strict=True):
        expected_K, expected_KD = corpus.nearest(targets_TD, k)
        np.testing.assert_array_equal(ids_K, expected_K)
        np.testing.assert_array_equal(embeddings_KD, expected_KD)
    corpus.close()


def test_a_setting_with_another_embedder_is_measured_as_on_the_corpus_embedded_again(
    corpora: Path, embedder: Embedder, tokenizer: Any, nano: str, tmp_path: Path
) -> None:
    corpus = Corpus.create(corpora, "functions", embedder, tokenizer_digest(tokenizer))
    ingest(corpus, _FUNCTIONS, embedder, tokenizer)
    corpus.close()
    shutil.copytree(corpora, tmp_path / "again")
    states = load_embedder(BASE_MODEL, base_model=nano)
    again = Corpus.open(tmp_path / "again", "functions")
    again.reembed(states)
    again.close()
    measurer, expected = (
        CurveMeasurer(
            Selector(SelectorConfig(root, name, nano, candidates=6)), nano, "functions", 1
        )
        for root, name in ((corpora, DEFAULT), (tmp_path / "again", BASE_MODEL))
    )
    own = Setting(0.1, measurer.learning_rate, measurer.default.rank)

    measurer.embed(states, lambda count: None)
    curves = [
        each.measure(setting, each.held_out, lambda: None)[0]
        for each, setting in (
            (measurer, replace(own, embedder=BASE_MODEL)),
            (expected, own),
            (measurer, own),
        )
    ]

    assert measurer.held_out == expected.held_out
    assert curves[0] == curves[1] != curves[2]
