"""The selector with the real embedder on a small corpus: what it chooses, and that it notices every change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from selection import selector as selector_module
from selection.corpus import Corpus, CorpusError, CorpusNotFoundError
from selection.documents import Document, ingest, tokenizer_digest
from selection.embedding import Embedder
from selection.selector import Selector, SelectorConfig

_DOCUMENTS = [
    Document("cats", "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs."),
    Document("dogs", "The dog barks at the postman. A puppy chews on the leather shoe."),
    Document("bread", "Knead flour, water, salt and yeast into a dough and bake it in a hot oven."),
    Document("ships", "The ship leaves the harbour with full sails and sets course for the islands."),
    Document("tax", "Income above the allowance is taxed; file the return before the end of July."),
]


@pytest.fixture
def make(corpora: Path, embedder: Embedder, tokenizer: Any) -> Any:
    """Makes or extends a corpus and closes it, as another process would."""

    def made(name: str, documents: list[Document]) -> None:
        corpus = Corpus.create(corpora, name, embedder, tokenizer_digest(tokenizer))
        ingest(corpus, documents, embedder, tokenizer)
        corpus.close()

    return made


@pytest.fixture
def selector(corpora: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Selector:
    """A selector; it shares the session's embedder, so that no test loads the weights again."""
    monkeypatch.setattr(selector_module, "load_embedder", lambda *_, **__: embedder)
    return Selector(SelectorConfig(corpora, candidates=4, regularisation=0.1))


def test_it_loads_the_embedder_it_was_told_to(corpora: Path, nano: str) -> None:
    own = Selector(SelectorConfig(corpora, embedder="base-model", base_model=nano))

    assert own.embedder.name == "base-model"


def test_a_selection_is_complete(selector: Selector, make: Any, tokenizer: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(["My kitten is asleep"], "small", steps=7)

    assert len(selection.ids) == len(selection.sequences) == 7
    assert len(selection.uncertainty) == 8
    assert selection.uncertainty[0] == 1.0
    assert selection.stop == "steps"
    assert {source.sequence: times for source, times in selection.sources} == Counter(selection.ids)
    assert [times for _, times in selection.sources] == sorted((t for _, t in selection.sources), reverse=True)
    assert set(selection.seconds) == {"embed", "search", "select"}
    assert all(seconds >= 0 for seconds in selection.seconds.values())
    texts = {source.sequence: source.text for source, _ in selection.sources}
    for sequence, tokens in zip(selection.ids, selection.sequences, strict=True):
        assert tokenizer.decode(tokens) == texts[sequence]


@pytest.mark.parametrize("strategy", ["sift", "nn"])
@pytest.mark.parametrize(
    ("prompt", "name"),
    [("My kitten is asleep", "cats"), ("How do I bake a loaf?", "bread"), ("When are my taxes due?", "tax")],
)
def test_what_fits_the_prompt_comes_first(selector: Selector, make: Any, prompt: str, name: str, strategy: str) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select([prompt], "small", steps=1, strategy=strategy)

    assert [source.name for source, _ in selection.sources] == [name]


def test_nearest_neighbours_never_repeat_and_end_with_the_candidates(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(["kitten"], "small", steps=10, strategy="nn")

    assert len(selection.ids) == len(set(selection.ids)) == selector.config.candidates
    assert all(times == 1 for _, times in selection.sources)


def test_several_prompts_share_a_selection(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(["How do I bake a loaf?", "When are my taxes due?"], "small", steps=2)

    assert {source.name for source, _ in selection.sources} == {"bread", "tax"}


def test_of_a_long_prompt_the_end_counts(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    prompt = "The ship sails from harbour to harbour. " * 100 + "How do I bake a loaf of bread? " * 40

    selection = selector.select([prompt], "small", steps=1)

    assert selection.sources[0][0].name == "bread"


def test_adaptive_sift_stops_before_the_steps(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    unstopped = selector.select(["kitten"], "small", steps=50)

    selection = selector.select(["kitten"], "small", steps=50, alpha=0.5)

    n = len(selection.ids)
    assert selection.stop == "alpha"
    assert 0 < n < 50
    assert selection.ids == unstopped.ids[:n]
    assert selection.uncertainty[-1] > 1 / (0.5 * n)


@pytest.mark.parametrize(("strategy", "alpha"), [("sift", None), ("sift", 0.1), ("nn", None)])
def test_an_empty_corpus_is_said_to_be_the_reason(
    selector: Selector, make: Any, strategy: str, alpha: float | None
) -> None:
    make("empty", [])

    selection = selector.select(["kitten"], "empty", steps=10, alpha=alpha, strategy=strategy)

    assert (selection.ids, selection.sequences, selection.sources) == ((), (), ())
    assert (selection.stop, selection.uncertainty) == ("corpus", (1.0,))


def test_bad_wishes_are_refused(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    with pytest.raises(ValueError, match="unknown strategy 'luck': one of sift, nn"):
        selector.select(["kitten"], "small", steps=1, strategy="luck")
    with pytest.raises(ValueError, match="alpha must be positive"):
        selector.select(["kitten"], "small", steps=1, alpha=0.0)
    with pytest.raises(ValueError, match="no stopping rule"):
        selector.select(["kitten"], "small", steps=1, alpha=0.1, strategy="nn")


@pytest.mark.parametrize("name", ["absent", "../small", "", "a/b", "x\0y", "x" * 5000])
def test_a_corpus_that_is_not_there_is_said_so(selector: Selector, make: Any, name: str) -> None:
    make("small", _DOCUMENTS[:1])

    with pytest.raises(CorpusNotFoundError, match=r"there are: small"):
        selector.select(["kitten"], name, steps=1)


def test_a_corpus_of_another_embedder_is_refused(
    corpora: Path, selector: Selector, words: Embedder, tokenizer: Any
) -> None:
    Corpus.create(corpora, "foreign", words, tokenizer_digest(tokenizer)).close()

    with pytest.raises(CorpusError, match="was made with embedder 'words', not 'all-MiniLM-L6-v2'"):
        selector.select(["kitten"], "foreign", steps=1)


def test_a_corpus_of_another_tokenizer_is_refused_where_the_base_model_is_known(
    corpora: Path, selector: Selector, make: Any, embedder: Embedder, nano: str
) -> None:
    make("small", _DOCUMENTS)
    Corpus.create(corpora, "foreign", embedder, "0123456789abcdef").close()
    knowing = Selector(SelectorConfig(corpora, base_model=nano))

    assert selector.select(["kitten"], "foreign", steps=1).stop == "corpus"
    assert knowing.select(["kitten"], "small", steps=1).ids
    with pytest.raises(CorpusError, match="'foreign' holds the tokens of another model's tokenizer"):
        knowing.select(["kitten"], "foreign", steps=1)


def test_documents_added_by_another_are_seen_by_the_next_selection(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS[2:])
    before = selector.select(["My kitten is asleep"], "small", steps=1)

    make("small", _DOCUMENTS[:1])

    after = selector.select(["My kitten is asleep"], "small", steps=1)
    assert before.sources[0][0].name != "cats"
    assert after.sources[0][0].name == "cats"


def test_documents_deleted_by_another_are_never_chosen_again(corpora: Path, selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    selector.select(["My kitten is asleep"], "small", steps=1)
    other = Corpus.open(corpora, "small")
    other.delete("cats")
    other.close()

    selection = selector.select(["My kitten is asleep"], "small", steps=10, strategy="nn")

    assert "cats" not in {source.name for source, _ in selection.sources}


def test_a_corpus_removed_and_made_again_is_noticed(corpora: Path, selector: Selector, make: Any) -> None:
    # The new one has the same name and, with the same number of additions, the same generation.
    make("small", _DOCUMENTS[:2])
    assert selector.select(["My kitten is asleep"], "small", steps=1).sources[0][0].name == "cats"
    Corpus.open(corpora, "small").remove()
    make("small", _DOCUMENTS[2:4])

    selection = selector.select(["My kitten is asleep"], "small", steps=10, strategy="nn")

    assert {source.name for source, _ in selection.sources} == {"bread", "ships"}


def test_a_removed_corpus_is_no_longer_there(corpora: Path, selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    selector.select(["kitten"], "small", steps=1)

    Corpus.open(corpora, "small").remove()

    with pytest.raises(CorpusNotFoundError):
        selector.select(["kitten"], "small", steps=1)
