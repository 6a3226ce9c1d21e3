"""The selector with the real embedder on a small corpus: its choices, and changes of the corpus."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selection.corpus.calibration import Calibration, calibration_meta, model_digest
from selection.corpus.corpus import Corpus
from selection.corpus.filters import Filter
from selection.corpus.sequences import Source
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Prompt
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.request import Candidate, SelectionRequest
from selection.selector import Selection, Selector, SelectorConfig
from selection.strategies.registry import STRATEGIES, choose
from selection.strategies.sift import irreducible, sift
from selection.threaded_embedder import ThreadedEmbedder

_DOCUMENTS = [
    Document(
        "cats",
        "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs.",
        {"legs": 4},
    ),
    Document(
        "dogs",
        "The dog barks at the postman. A puppy chews on the leather shoe.",
        {"legs": 4, "loud": True},
    ),
    Document(
        "bread",
        "Knead flour, water, salt and yeast into a dough and bake it in a hot oven.",
        {"legs": 0},
    ),
    Document(
        "ships", "The ship leaves the harbour with full sails and sets course for the islands."
    ),
    Document(
        "tax",
        "Income above the allowance is taxed; file the return before the end of July.",
        {"legs": "4"},
    ),
]
_KITTEN = [Prompt("My kitten is asleep")]


@pytest.fixture
def make(corpora: Path, embedder: Embedder, tokenizer: Any) -> Any:
    """Creates or extends a corpus and closes it, as another process would."""

    def add(name: str, documents: list[Document]) -> None:
        corpus = Corpus.create(corpora, name, embedder, tokenizer_digest(tokenizer))
        ingest(corpus, documents, embedder, tokenizer)
        corpus.close()

    return add


@pytest.fixture(scope="module")
def threaded(embedder: Embedder) -> ThreadedEmbedder:
    """The session's embedder, so that no test loads the weights again."""
    return ThreadedEmbedder(lambda: embedder)


@pytest.fixture
def selector(corpora: Path, threaded: ThreadedEmbedder) -> Selector:
    """A selector that preselects four candidates."""
    config = SelectorConfig(corpora, candidates=4, regularisation=0.1)
    return Selector(config, embedder=threaded)


@pytest.fixture
def whole(corpora: Path, threaded: ThreadedEmbedder) -> Selector:
    """A selector whose candidates are the whole corpus."""
    config = SelectorConfig(corpora, candidates=None, regularisation=0.1)
    return Selector(config, embedder=threaded)


def names(selection: Selection) -> set[str]:
    return {source.name for source, _ in selection.sources}


def test_the_configured_embedder_is_loaded(corpora: Path, nano: str) -> None:
    own = Selector(SelectorConfig(corpora, embedder="base-model", base_model=nano))

    assert own.embedder.name == "base-model"


def test_a_selection_is_complete(selector: Selector, make: Any, tokenizer: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(SelectionRequest(_KITTEN, "small", steps=7))

    assert len(selection.ids) == len(selection.sequences) == 7
    assert len(selection.uncertainty) == 8
    assert selection.uncertainty[0] == 1.0
    assert selection.stop == "steps"
    assert {source.sequence: times for source, times in selection.sources} == Counter(selection.ids)
    assert [times for _, times in selection.sources] == sorted(
        (t for _, t in selection.sources), reverse=True
    )
    assert set(selection.seconds) == {"embed", "search", "select"}
    assert all(seconds >= 0 for seconds in selection.seconds.values())
    texts = {source.sequence: source.text for source, _ in selection.sources}
    for sequence, tokens in zip(selection.ids, selection.sequences, strict=True):
        assert tokenizer.decode(tokens) == texts[sequence]


@pytest.mark.parametrize("strategy", ["sift", "nn", "nn-f", "hull"])
@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("My kitten is asleep", "cats"),
        ("How do I bake a loaf?", "bread"),
        ("When are my taxes due?", "tax"),
    ],
)
def test_the_document_that_fits_the_prompt_comes_first(
    selector: Selector, make: Any, prompt: str, name: str, strategy: str
) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(
        SelectionRequest([Prompt(prompt)], "small", steps=1, strategy=strategy)
    )

    assert [source.name for source, _ in selection.sources] == [name]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_a_selection(selector: Selector, make: Any, strategy: str) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(
        SelectionRequest(_KITTEN, "small", steps=10, strategy=strategy, seed=1)
    )

    taken = selector.config.candidates if strategy in ("nn", "random") else 10
    assert len(selection.ids) == len(selection.sequences) == len(selection.uncertainty) - 1 == taken
    assert {source.sequence: times for source, times in selection.sources} == Counter(selection.ids)
    assert (selection.stop, selection.uncertainty[0]) == ("steps", 1.0)
    assert 0 < selection.irreducible <= min(selection.uncertainty)
    assert (
        selector.select(SelectionRequest(_KITTEN, "small", steps=10, strategy=strategy, seed=1)).ids
        == selection.ids
    )


def test_nearest_neighbours_never_repeat_and_its_failure_mode_does_nothing_else(
    selector: Selector, make: Any
) -> None:
    make("small", _DOCUMENTS)

    nearest = selector.select(SelectionRequest(_KITTEN, "small", steps=10, strategy="nn"))
    repeated = selector.select(SelectionRequest(_KITTEN, "small", steps=10, strategy="nn-f"))

    assert len(nearest.ids) == len(set(nearest.ids)) == selector.config.candidates
    assert all(times == 1 for _, times in nearest.sources)
    assert repeated.ids == (nearest.ids[0],) * 10


def test_the_seed_decides_a_random_choice(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    chosen = [
        selector.select(
            SelectionRequest(_KITTEN, "small", steps=4, strategy="random", seed=seed)
        ).ids
        for seed in range(5)
    ]

    assert len(set(chosen)) > 1


def test_the_whole_corpus_can_be_chosen_from(
    selector: Selector, whole: Selector, make: Any
) -> None:
    make("small", _DOCUMENTS)

    four = selector.select(SelectionRequest(_KITTEN, "small", steps=10, strategy="nn"))
    all_of_them = whole.select(SelectionRequest(_KITTEN, "small", steps=10, strategy="nn"))

    assert (len(names(four)), len(names(all_of_them))) == (4, 5)
    assert all_of_them.ids[:4] == four.ids
    assert all_of_them.irreducible <= four.irreducible


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"type": "eq", "key": "legs", "value": 4}, {"cats", "dogs"}),
        ({"type": "eq", "key": "legs", "value": "4"}, {"tax"}),
        ({"type": "ne", "key": "loud", "value": True}, {"cats", "bread", "ships", "tax"}),
        ({"type": "and", "filters": [{"type": "lt", "key": "legs", "value": 4}]}, {"bread"}),
    ],
)
@pytest.mark.parametrize("strategy", ["nn", "random"])  # they take all candidates
def test_a_filter_reaches_the_search(
    selector: Selector, make: Any, only: Filter, expected: set[str], strategy: str
) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(
        SelectionRequest(_KITTEN, "small", steps=10, strategy=strategy, filter=only)
    )

    assert names(selection) == expected


def test_a_filter_is_applied_before_the_candidates_are_counted(
    corpora: Path, make: Any, threaded: ThreadedEmbedder
) -> None:
    # The one candidate must be the nearest that passes the filter.
    make("small", _DOCUMENTS)
    narrow = Selector(SelectorConfig(corpora, candidates=1), embedder=threaded)

    selection = narrow.select(
        SelectionRequest(
            _KITTEN, "small", steps=3, filter={"type": "eq", "key": "legs", "value": "4"}
        )
    )

    assert (names(selection), len(selection.ids)) == ({"tax"}, 3)


def test_a_filter_without_matches_gives_an_empty_selection(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(
        SelectionRequest(
            _KITTEN, "small", steps=3, filter={"type": "eq", "key": "legs", "value": 8}
        )
    )

    assert (selection.ids, selection.stop, selection.irreducible) == ((), "corpus", 1.0)


def test_a_selection_gives_the_irreducible_uncertainty(
    selector: Selector, make: Any, embedder: Embedder
) -> None:
    make("small", _DOCUMENTS)
    texts = {document.name: document.text for document in _DOCUMENTS}

    asleep = selector.select(SelectionRequest(_KITTEN, "small", steps=50))
    contained = selector.select(SelectionRequest([Prompt(texts["cats"])], "small", steps=50))
    foreign = selector.select(
        SelectionRequest(
            [Prompt("The eigenvalues of a Hermitian matrix are real.")], "small", steps=50
        )
    )

    assert contained.irreducible < 0.05 < asleep.irreducible < foreign.irreducible < 1
    nearest = {
        source.name
        for source, _ in selector.select(
            SelectionRequest(_KITTEN, "small", steps=4, strategy="nn")
        ).sources
    }
    candidates_KD = embedder.embed([texts[name] for name in nearest])
    expected = irreducible(candidates_KD, embedder.embed([_KITTEN[0].text]))
    assert asleep.irreducible == pytest.approx(expected, abs=1e-3)
    assert asleep.irreducible < asleep.uncertainty[-1]


def test_several_prompts_share_a_selection(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(
        SelectionRequest(
            [Prompt("How do I bake a loaf?"), Prompt("When are my taxes due?")], "small", steps=2
        )
    )

    assert names(selection) == {"bread", "tax"}


_BREAD, _SHIPS = "How do I bake a loaf of bread? ", "The ship sails from harbour to harbour. "


def test_a_very_long_prompt_is_represented_by_its_end(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    selection = selector.select(
        SelectionRequest([Prompt(_SHIPS * 100 + _BREAD * 200)], "small", steps=4)
    )

    assert selection.sources[0][0].name == "bread"
    assert "ships" not in names(selection)


def test_all_windows_of_a_long_prompt_are_targets(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    prompt = Prompt(_SHIPS * 50 + _BREAD * 50)

    selection = selector.select(SelectionRequest([prompt], "small", steps=2))

    assert names(selection) == {"bread", "ships"}


def test_the_choice_for_a_long_prompt_is_that_for_its_windows(
    whole: Selector, make: Any, embedder: Embedder
) -> None:
    make("small", _DOCUMENTS)
    prompts = [
        Prompt(_SHIPS * 50 + _BREAD * 50, context="Before that. "),
        Prompt("And the kitten?", context="Cats."),
    ]
    targets_TD = embedder.embed([*embedder.windows(prompts[0]), "Cats.\nAnd the kitten?"])
    candidates_KD = embedder.embed([document.text for document in _DOCUMENTS])

    selection = whole.select(SelectionRequest(prompts, "small", steps=6))

    expected = sift(candidates_KD, targets_TD, steps=6, regularisation=0.1)
    chosen = {source.sequence: source.name for source, _ in selection.sources}
    assert len(targets_TD) > 3
    assert [chosen[sequence] for sequence in selection.ids] == [
        _DOCUMENTS[pick].name for pick in expected.picks
    ]
    assert selection.uncertainty == pytest.approx(expected.uncertainty, abs=1e-3)
    assert selection.irreducible == pytest.approx(irreducible(candidates_KD, targets_TD), abs=1e-3)


def test_a_short_question_is_embedded_with_its_context(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    for context, name in (
        ("We talked about baking bread.", "bread"),
        ("We talked about income tax.", "tax"),
    ):
        selection = selector.select(
            SelectionRequest([Prompt("How is that done?", context)], "small", steps=1)
        )

        assert names(selection) == {name}


def test_adaptive_sift_stops_before_the_steps(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    unstopped = selector.select(SelectionRequest(_KITTEN, "small", steps=50))

    selection = selector.select(SelectionRequest(_KITTEN, "small", steps=50, alpha=0.5))

    n = len(selection.ids)
    assert selection.stop == "alpha"
    assert 0 < n < 50
    assert selection.ids == unstopped.ids[:n]
    assert selection.uncertainty[-1] > 1 / (0.5 * n)


@pytest.mark.parametrize(
    ("strategy", "alpha"), [("sift", 0.1), *((strategy, None) for strategy in STRATEGIES)]
)
def test_an_empty_corpus_is_the_stop_reason(
    selector: Selector, make: Any, strategy: str, alpha: float | None
) -> None:
    make("empty", [])

    selection = selector.select(
        SelectionRequest(_KITTEN, "empty", steps=10, alpha=alpha, strategy=strategy)
    )

    assert (selection.ids, selection.sequences, selection.sources) == ((), (), ())
    assert (selection.stop, selection.uncertainty, selection.irreducible) == ("corpus", (1.0,), 1.0)


def test_invalid_requests_are_refused(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)

    with pytest.raises(ValueError, match="unknown strategy 'luck': one of sift, nn"):
        selector.select(SelectionRequest(_KITTEN, "small", steps=1, strategy="luck"))
    with pytest.raises(ValueError, match="alpha must be positive"):
        selector.select(SelectionRequest(_KITTEN, "small", steps=1, alpha=0.0))
    with pytest.raises(ValueError, match="a filter that compares"):
        selector.select(SelectionRequest(_KITTEN, "small", steps=1, filter={"type": "eq"}))


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "sift"])
def test_only_sift_has_a_stopping_rule(selector: Selector, make: Any, strategy: str) -> None:
    make("small", _DOCUMENTS)

    with pytest.raises(
        ValueError, match=f"the strategy '{strategy}' has no stopping rule; leave alpha out"
    ):
        selector.select(SelectionRequest(_KITTEN, "small", steps=1, alpha=0.1, strategy=strategy))
    with pytest.raises(ValueError, match="no stopping rule"):
        choose(strategy, np.eye(3), np.ones((1, 3)), 2, 0.1, alpha=0.1)


def test_a_strategy_can_be_chosen_without_a_corpus() -> None:
    target_TD = np.array([[0.8, 0.5, 0.33]])

    assert choose("sift", np.eye(3), target_TD, 9, 0.1) == sift(
        np.eye(3), target_TD, steps=9, regularisation=0.1
    )
    assert choose("sift", np.eye(3), target_TD, 9, 0.1, alpha=0.9).stop == "alpha"
    assert choose("nn", np.eye(3), target_TD, 2, 0.1).picks == (0, 1)
    assert choose("nn-f", np.eye(3), target_TD, 3, 0.1).picks == (0, 0, 0)
    assert sorted(choose("us", np.eye(3), target_TD, 3, 0.1).picks) == [0, 1, 2]
    assert sorted(choose("random", np.eye(3), target_TD, 3, 0.1, seed=7).picks) == [0, 1, 2]
    assert choose("hull", np.eye(3), target_TD, 3, 0.1).picks == (0, 0, 1)
    with pytest.raises(
        ValueError, match="unknown strategy 'luck': one of sift, nn, nn-f, us, random, hull"
    ):
        choose("luck", np.eye(3), target_TD, 3, 0.1)


@pytest.mark.parametrize("name", ["absent", "../small", "", "a/b", "x\0y", "x" * 5000])
def test_a_missing_corpus_is_reported(selector: Selector, make: Any, name: str) -> None:
    make("small", _DOCUMENTS[:1])

    with pytest.raises(CorpusNotFoundError, match=r"existing corpora: small"):
        selector.select(SelectionRequest(_KITTEN, name, steps=1))


def test_it_says_which_corpus_it_chose_from_however_that_was_called(
    corpora: Path, selector: Selector, make: Any
) -> None:
    make("small", _DOCUMENTS)
    first = selector.select(SelectionRequest(_KITTEN, "small", steps=1)).corpus
    corpus = Corpus.open(corpora, "small")
    corpus.update_meta({"name": "A small one"})
    identity = corpus.meta()["id"]
    corpus.close()

    assert {
        first,
        *(
            selector.select(SelectionRequest(_KITTEN, name, steps=1)).corpus
            for name in (first, "A small one")
        ),
    } == {identity}
    Corpus.open(corpora, "small").remove()
    make("small", _DOCUMENTS)
    assert selector.select(SelectionRequest(_KITTEN, "small", steps=1)).corpus != identity


def test_a_corpus_of_another_embedder_is_refused(
    corpora: Path, selector: Selector, words: Embedder, tokenizer: Any
) -> None:
    Corpus.create(corpora, "foreign", words, tokenizer_digest(tokenizer)).close()

    with pytest.raises(CorpusError, match="was made with embedder 'words', not 'all-MiniLM-L6-v2'"):
        selector.select(SelectionRequest(_KITTEN, "foreign", steps=1))


def test_a_corpus_of_another_tokenizer_is_refused_where_the_base_model_is_known(
    corpora: Path,
    selector: Selector,
    make: Any,
    embedder: Embedder,
    threaded: ThreadedEmbedder,
    nano: str,
) -> None:
    make("small", _DOCUMENTS)
    Corpus.create(corpora, "foreign", embedder, "0123456789abcdef").close()
    checking = Selector(SelectorConfig(corpora, base_model=nano), embedder=threaded)

    assert selector.select(SelectionRequest(_KITTEN, "foreign", steps=1)).stop == "corpus"
    assert checking.select(SelectionRequest(_KITTEN, "small", steps=1)).ids
    with pytest.raises(CorpusError, match="'foreign' contains tokens of another model's tokenizer"):
        checking.select(SelectionRequest(_KITTEN, "foreign", steps=1))


def test_documents_added_by_another_process_are_found(selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS[2:])
    before = selector.select(SelectionRequest(_KITTEN, "small", steps=1))

    make("small", _DOCUMENTS[:1])

    after = selector.select(SelectionRequest(_KITTEN, "small", steps=1))
    assert before.sources[0][0].name != "cats"
    assert after.sources[0][0].name == "cats"


def test_documents_deleted_by_another_process_are_not_chosen(
    corpora: Path, selector: Selector, make: Any
) -> None:
    make("small", _DOCUMENTS)
    selector.select(SelectionRequest(_KITTEN, "small", steps=1))
    other = Corpus.open(corpora, "small")
    other.delete("cats")
    other.close()

    selection = selector.select(SelectionRequest(_KITTEN, "small", steps=10, strategy="nn"))

    assert "cats" not in names(selection)


def test_a_corpus_removed_and_created_again_is_noticed(
    corpora: Path, selector: Selector, make: Any
) -> None:
    # The new one has the same name and, with the same number of additions, the same generation.
    make("small", _DOCUMENTS[:2])
    assert selector.select(SelectionRequest(_KITTEN, "small", steps=1)).sources[0][0].name == "cats"
    Corpus.open(corpora, "small").remove()
    make("small", _DOCUMENTS[2:4])

    selection = selector.select(SelectionRequest(_KITTEN, "small", steps=10, strategy="nn"))

    assert names(selection) == {"bread", "ships"}


def test_a_removed_corpus_is_missing(corpora: Path, selector: Selector, make: Any) -> None:
    make("small", _DOCUMENTS)
    selector.select(SelectionRequest(_KITTEN, "small", steps=1))

    Corpus.open(corpora, "small").remove()

    with pytest.raises(CorpusNotFoundError):
        selector.select(SelectionRequest(_KITTEN, "small", steps=1))


def damaged(corpora: Path, statement: str) -> None:
    """Damage the corpus `all` by an SQL statement, after its index is built."""
    corpus = Corpus.open(corpora, "all")
    corpus.build_index()
    corpus.close()
    database = sqlite3.connect(corpora / "all" / "corpus.db")
    database.execute(statement)
    database.commit()
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sequences SET id = id + 1000",  # the index has the old ids
        "UPDATE sequences SET embedding = zeroblob(8)",
        "UPDATE sequences SET tokens = zeroblob(3)",
        "UPDATE sequences SET text = CAST(x'ff41ff' AS TEXT)",
        "UPDATE documents SET metadata = '{'",
    ],
)
def test_a_damaged_corpus_is_refused_without_revealing_its_texts(
    corpora: Path, selector: Selector, make: Any, statement: str
) -> None:
    make("all", _DOCUMENTS)
    damaged(corpora, statement)
    if "embedding" in statement:  # the embeddings are read when an index is built
        for file in (corpora / "all").glob("index*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    with pytest.raises(
        CorpusError, match=r"corpus 'all' is damaged: .*; delete its folder"
    ) as refusal:
        selector.select(SelectionRequest(_KITTEN, "all", steps=3))

    assert "kitten" not in str(refusal.value)


def test_a_corpus_with_nan_embeddings_is_damaged(
    corpora: Path, selector: Selector, make: Any
) -> None:
    make("all", _DOCUMENTS)
    corpus = Corpus.open(corpora, "all")
    dimension = int(corpus.meta()["dimension"])
    corpus.close()
    embedding = np.full(dimension, np.nan, np.float32).tobytes().hex()
    damaged(corpora, f"UPDATE sequences SET embedding = x'{embedding}'")
    for file in (corpora / "all").glob("index*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()

    with pytest.raises(CorpusError, match="it contains NaN or infinite embeddings"):
        selector.select(SelectionRequest(_KITTEN, "all", steps=3))


def test_as_many_are_chosen_as_the_corpus_is_calibrated_to_show(
    threaded: ThreadedEmbedder, make: Any, corpora: Path, nano: str
) -> None:
    make("small", _DOCUMENTS)
    selector = Selector(SelectorConfig(corpora, base_model=nano), embedder=threaded)
    calibration = Calibration(0.1, 0.5, 1e-3, 4, 24, 90.0, 91.0, show=3)
    model = model_digest(nano)
    with closing(Corpus.open(corpora, "small")) as corpus:
        corpus.update_meta(calibration_meta(calibration, corpus.meta(), model))
    request = SelectionRequest(_KITTEN, "small", steps=2, shows_calibrated=True)

    requests = (request, replace(request, steps=5), replace(request, shows_calibrated=False))

    assert [len(selector.select(each).ids) for each in requests] == [3, 5, 2]


class TestCandidatesOfTheRequest:
    KITTEN = Candidate(
        Prompt("Where does the kitten sleep?"), (5, 6, 7), ((2, 3),), "mine", 0, "kitten", "{}"
    )
    BREAD = Candidate(Prompt("Knead the dough."), (8, 9), None, "other", 4, "dough")

    def test_they_are_enough_without_a_corpus(
        self, threaded: ThreadedEmbedder, tmp_path: Path, nano: str
    ) -> None:
        config = SelectorConfig(tmp_path / "none", base_model=nano, candidates=4)
        nowhere = Selector(config, embedder=threaded)
        request = SelectionRequest(_KITTEN, None, steps=1, candidates=(self.BREAD, self.KITTEN))

        one = nowhere.select(request)
        more = nowhere.select(replace(request, prompts=[*_KITTEN, self.BREAD.prompt], steps=5))

        assert (one.corpus, one.calibration, one.stop) == (None, None, "steps")
        assert (one.ids, one.sequences, one.scored) == ((-2,), ((5, 6, 7),), (((2, 3),),))
        assert one.sources == ((Source(-2, -2, "mine", 0, "kitten", example="{}"), 1),)
        assert len(more.ids) == 5
        assert set(more.ids) == {-1, -2}
        assert dict(zip(more.ids, more.scored, strict=True)) == {-1: None, -2: ((2, 3),)}
        assert not (tmp_path / "none").exists()

    def test_one_that_is_chosen_again_is_trained_on_in_its_next_form(
        self, selector: Selector
    ) -> None:
        kitten = replace(self.KITTEN, further=(((7, 6, 5), ((1, 2),)),))
        request = SelectionRequest(_KITTEN, None, steps=3, candidates=(kitten,))

        selection = selector.select(request)

        assert selection.sequences == ((5, 6, 7), (7, 6, 5), (5, 6, 7))
        assert selection.scored == (((2, 3),), ((1, 2),), ((2, 3),))
        assert [times for _, times in selection.sources] == [3]

    def test_they_stand_beside_the_documents_of_a_corpus(
        self, selector: Selector, make: Any
    ) -> None:
        make("small", _DOCUMENTS)
        only: Filter = {"type": "eq", "key": "legs", "value": "4"}
        request = SelectionRequest(
            [*_KITTEN, Prompt("When are my taxes due?")],
            "small",
            steps=2,
            candidates=(self.KITTEN,),
        )

        both, filtered = selector.select(request), selector.select(replace(request, filter=only))

        assert names(filtered) == {"mine", "tax"}
        assert both.corpus is not None
        assert "tax" in names(both)
        assert [i < 0 for i in filtered.ids] == [s == (5, 6, 7) for s in filtered.sequences]

    def test_they_are_enough_beside_an_empty_corpus(self, selector: Selector, make: Any) -> None:
        make("empty", [])
        request = SelectionRequest(_KITTEN, "empty", steps=3, candidates=(self.KITTEN,))

        selection = selector.select(request)

        assert (selection.ids, selection.stop) == ((-1, -1, -1), "steps")
        assert selection.corpus is not None

    def test_an_unknown_corpus_is_still_an_error(self, selector: Selector) -> None:
        with pytest.raises(CorpusNotFoundError):
            selector.select(SelectionRequest(_KITTEN, "no", steps=3, candidates=(self.KITTEN,)))
