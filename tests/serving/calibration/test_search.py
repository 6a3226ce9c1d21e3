"""`mayfly calibrate`: held-out text does not leak into training, the search chooses the best, and
servers use the result.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from adapters.training import TrainingResult
from selection.corpus.corpus import Corpus
from selection.corpus.sequences import Source, StoredSequence
from selection.embedding import Embedder, Embeddings, Prompt
from selection.examples.example import Example
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.selector import Selector, SelectorConfig
from selection.strategies.registry import REGULARISATION
from serving.calibration import search
from serving.calibration.curves import MEASURED_STEPS, Curve, exact_match
from serving.calibration.held_out import HeldOut, hold_out, near_duplicates
from serving.calibration.measurer import CurveMeasurer
from serving.calibration.search import SHOWN, best_setting
from serving.calibration.setting import Setting
from serving.cli.main import app
from serving.settings.settings import Settings
from tests.tiny_models import save_tiny

_TOKENS = tuple(range(100, 164))
_HELD_OUT = HeldOut(7, Prompt(""), _TOKENS, 32)


def pair(question: str, answer: str) -> Example:
    return Example(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    )


def stored(document: int, tokens: Sequence[int], example: str | None = None) -> StoredSequence:
    return StoredSequence(Source(0, document, "", 0, "", {}, example), tuple(tokens))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, tokenizer: Any) -> Path:
    """A home with corpora of small, similar functions, of a single document, and of examples."""
    home = tmp_path_factory.mktemp("home")
    draw = random.Random(0)
    verbs, nouns = ("load", "save", "parse", "merge"), ("frame", "table", "ledger", "index")
    functions = [
        f"def {draw.choice(verbs)}_{draw.choice(nouns)}_{n}(path, mode):\n"
        f"    with open_{draw.choice(nouns)}(path, mode) as opened:\n"
        f"        return [{draw.choice(verbs)}_{draw.choice(nouns)}(row, {n}) for row in opened]\n"
        for n in range(24)
    ]
    documents = [Document(f"{n}.py", text) for n, text in enumerate(functions)]
    dates = [
        pair(f"Write 2024-{month:02}-{month + 9} our way.", f"{month + 9}~{month}~24")
        for month in range(1, 11)
    ]
    examples = [Document(f"{n}", each.text, example=each) for n, each in enumerate(dates)]
    few = [*examples[:3], Document("short", "not enough")]
    for name, those in (
        ("functions", documents),
        ("lonely", documents[:1]),
        ("dates", examples),
        ("few", few),
    ):
        corpus = Corpus.create(home / "corpora", name, embedder, tokenizer_digest(tokenizer))
        ingest(corpus, those, embedder, tokenizer)
        corpus.close()
    return home


@pytest.fixture
def tiny(nano: str, tmp_path: Path) -> str:
    """The folder of a random model, which trains several times as fast as the bundled one, with the
    tokenizer and the context of that one.
    """
    return save_tiny("llama", tmp_path / "tiny", nano, max_position_embeddings=2048)


def load_embeddings(home: Path) -> Embeddings:
    """The embeddings of the corpus of functions."""
    corpus = Corpus.open(home / "corpora", "functions")
    _, embeddings_ND = corpus.nearest(np.eye(384, dtype=np.float32)[:1], None)
    corpus.close()
    return embeddings_ND


def calibrate(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", *arguments, "--home", str(home)])


class TestHoldingOut:
    """No text that is scored is trained on."""

    def test_a_document_with_half_of_the_sequence_is_a_near_duplicate(self) -> None:
        half, less = _TOKENS[:40], _TOKENS[:20]

        found = near_duplicates(
            _HELD_OUT, [stored(1, half), stored(2, less), stored(3, _TOKENS[::-1])]
        )

        assert found == {1}

    def test_sequences_of_one_document_count_together(self) -> None:
        parts = [stored(1, _TOKENS[:24]), stored(1, _TOKENS[24:48]), stored(2, _TOKENS[:24])]

        assert near_duplicates(_HELD_OUT, parts) == {1}

    def test_an_example_with_the_same_question_is_a_duplicate_and_one_of_the_same_form_is_not(
        self,
    ) -> None:
        asked = pair("What is 2 + 3?", "5")
        held_out = HeldOut(7, asked.prompt, _TOKENS[:6], 4, asked)
        same, other = pair("What is 2 + 3?", "five"), pair("What is 2 + 4?", "5")

        found = near_duplicates(
            held_out,
            [
                stored(1, _TOKENS, same.to_json()),
                stored(2, _TOKENS[:6], other.to_json()),
                stored(3, _TOKENS[1:]),
            ],
        )

        assert found == {1}

    def test_holding_out_is_deterministic_with_one_sequence_per_document(
        self, home: Path, tokenizer: Any
    ) -> None:
        corpus = Corpus.open(home / "corpora", "functions")

        held_out, again = (hold_out(corpus, tokenizer, 8) for _ in range(2))

        assert held_out == again
        assert len({each.document for each in held_out}) == 8
        for each in held_out:
            assert each.middle == len(each.tokens) // 2
            assert each.prompt == Prompt(tokenizer.decode(each.tokens[: each.middle]))
        corpus.close()


def test_held_out_examples_are_scored_on_their_answers(
    home: Path, nano: str, tokenizer: Any
) -> None:
    selector = Selector(SelectorConfig(home / "corpora", base_model=nano))
    measurer = CurveMeasurer(selector, nano, "dates", 2)
    default = Setting(0.3, measurer.learning_rate, measurer.default.rank)

    by_show = measurer.measure(default, measurer.held_out, lambda: None, [2])

    curves = by_show[0]
    for held_out, curve in zip(measurer.held_out, curves, strict=True):
        assert held_out.example is not None
        answer = tokenizer.decode(held_out.tokens[held_out.middle :])
        assert "~24" in answer
        assert held_out.prompt.text not in answer
        assert held_out.prompt.text in tokenizer.decode(held_out.tokens[: held_out.middle])
        # The others have the same form.
        assert curve.percent[-1] < 50 < curve.percent[0] == 100
        assert curve.exact is not None
        assert not curve.exact[0]
    assert exact_match(curves, 0) == 0.0
    assert exact_match(curves, 50) == sum(each.exact[-1] for each in curves if each.exact) / 2
    # What is shown tells the form, too, and does not change the training.
    for curve, with_shown in zip(curves, by_show[2], strict=True):
        assert with_shown.percent[0] < 100
        assert with_shown.prompt == curve.prompt


def test_nearest_neighbours_learns_each_sequence_once(home: Path, nano: str) -> None:
    selector = Selector(SelectorConfig(home / "corpora", base_model=nano))
    measurer = CurveMeasurer(selector, nano, "dates", 2)
    nearest = Setting(0.3, measurer.learning_rate, measurer.default.rank, "nn")

    curves = measurer.measure(nearest, measurer.held_out, lambda: None)[0]

    assert str(nearest).startswith("nearest neighbours, learning rate")
    for curve in curves:
        # The other nine examples, in as many steps.
        assert curve.percent[9] < 100
        assert curve.percent[9] == curve.percent[10] == curve.percent[50] != curve.percent[8]


def test_an_interrupt_while_trainings_are_being_started_ends_those_that_run(
    home: Path, nano: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurer = CurveMeasurer(
        Selector(SelectorConfig(home / "corpora", base_model=nano)), nano, "dates", 2
    )
    default = Setting(0.3, measurer.learning_rate, measurer.default.rank)
    submit, running = measurer._trainer.submit, list[Future[TrainingResult]]()

    def interrupted(*request: Any, **options: Any) -> Future[TrainingResult]:
        if running:
            raise KeyboardInterrupt
        running.append(submit(*request, **options))
        return running[0]

    monkeypatch.setattr(measurer._trainer, "submit", interrupted)

    with pytest.raises(KeyboardInterrupt):
        measurer.measure(default, measurer.held_out, lambda: None)

    assert running[0].result().adapter is None


def test_a_strategy_that_is_not_better_is_not_the_best_setting() -> None:
    sift, nearest = Setting(0.3, 1e-3, 16), Setting(0.3, 1e-3, 16, "nn")
    high, low = (Curve((100.0,) * 50 + (last,), (100.0,) * 51) for last in (95.0, 90.0))

    assert best_setting({sift: [high, low], nearest: [low, high]}) == sift
    assert best_setting({sift: [high, low], nearest: [low, low]}) == nearest


def test_the_result_is_stored_used_and_forgotten(
    home: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two values of each axis, among them the default.
    monkeypatch.setattr(search, "LEARNING_RATE_FACTORS", (2 / 3, 1.0))
    monkeypatch.setattr(search, "REGULARISATIONS", (0.1, REGULARISATION))
    monkeypatch.setattr(search, "RANK_FACTORS", (0.5, 1.0))
    embedded = load_embeddings(home)
    default = Settings(model=tiny, home=home).config().trainer.rank
    compared = ["--compare-embedder", "base-model", "--model", tiny]

    result = calibrate(home, "functions", "--documents", "4", "--json", *compared)

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    best, tried = found["calibration"], found["tried"]
    # Of the corpus's own embedder: both learning rates, another lambda', another rank, and nearest
    # neighbours; of the other one: both lambda', and nearest neighbours.
    assert len(tried) == len({str(each["setting"]) for each in tried}) == 5 + 3
    assert best["percent_of_base"] <= best["percent_by_default"]
    assert found["by_default"][0] == 100.0
    # Nothing shown leaves the base model as it is.
    assert (found["calibrated"][0] == 100.0) == (best["show"] == 0)
    steps = 50 if best["steps"] is None else best["steps"]
    assert found["calibrated"][steps] == pytest.approx(best["percent_of_base"], abs=0.01)
    assert 1 <= found["steps"] <= steps
    # Both figures of a strategy that is better on the documents that search, and only then.
    sift, nearest = found["strategies"]
    assert (sift["strategy"], nearest["strategy"]) == ("sift", "nn")
    assert (nearest["judging"] is None) == (nearest["searching"] >= sift["searching"])
    if best["strategy"] == "nn":
        assert nearest["judging"] < sift["judging"]
    assert "SIFT" in result.stderr
    # The same of another embedder, and the corpus keeps its own.
    own, other = found["embedders"]
    assert (own["embedder"], other["embedder"]) == ("all-MiniLM-L6-v2", "base-model")
    assert (own["setting"]["embedder"], other["setting"]["embedder"]) == (None, "base-model")
    assert own["setting"]["strategy"] == best["strategy"]
    assert (other["judging"] is None) == (other["searching"] >= own["searching"])
    is_better = other["judging"] is not None and other["judging"] < own["judging"]
    assert found["better_embedder"] == ("base-model" if is_better else None)
    command = "mayfly corpus reembed functions --embedder base-model"
    assert (command in " ".join(result.stdout.split())) == is_better
    np.testing.assert_array_equal(load_embeddings(home), embedded)
    assert f"strategy {best['strategy']}" in " ".join(result.stdout.split())
    arms = {(each["show"], each["steps"]) for each in found["arms"]}
    assert arms == {(show, steps) for show in (0, *SHOWN) for steps in MEASURED_STEPS}

    config = Settings(corpus="functions", model=tiny, home=home).config()
    assert (config.trainer.rank, config.engine.rank) == (best["rank"], best["rank"])
    adapted = [
        "adapt",
        "--model",
        tiny,
        "--prompt",
        "def load_table(",
        "--corpus",
        "functions",
        "--out",
        str(tmp_path / "adapter"),
    ]
    assert CliRunner().invoke(app, [*adapted, "--home", str(home)]).exit_code == 0
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == best["rank"]
    )

    assert calibrate(home, "functions", "--forget", "--model", tiny).exit_code == 0
    assert Settings(corpus="functions", model=tiny, home=home).config().trainer.rank == default


def test_the_corpuss_own_embedder_is_not_another_one(home: Path) -> None:
    result = calibrate(home, "functions", "--compare-embedder", "all-MiniLM-L6-v2")

    assert result.exit_code == 1
    assert "is the corpus's own embedder" in str(result.exception)


def test_too_few_documents_are_refused_before_anything_is_loaded(home: Path) -> None:
    result = calibrate(home, "lonely", "--documents", "4")

    assert result.exit_code == 1
    assert "--documents" in str(result.exception)
    assert "loading" not in result.output


def test_an_unknown_corpus_is_refused(home: Path) -> None:
    result = calibrate(home, "nowhere")

    assert result.exit_code == 1
    assert "there is no corpus 'nowhere'" in str(result.exception)


def test_a_corpus_of_examples_is_calibrated_with_its_chat_template(
    home: Path, nano: str, tmp_path: Path
) -> None:
    other = tmp_path / "chat.jinja"
    other.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    own = Path(nano) / "chat_template.jinja"

    refused, known = (
        calibrate(home, "few", "--chat-template", str(file), "--documents", "4")
        for file in (other, own)
    )

    assert "contains examples in another chat template" in str(refused.exception)
    assert "only 3 documents that are an example" in str(known.exception)
