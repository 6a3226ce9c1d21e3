"""`mayfly calibrate`: held-out text does not leak into training, the search chooses the best, and
servers use the result.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from adapters.early_stopping import FIRST_INTERVAL, PATIENCE
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from serving.budget import AUTO
from serving.calibration.curves import GAINS, Curve, choose_gain, stopping
from serving.calibration.held_out import HeldOut, hold_out, near_duplicates
from serving.cli.main import app
from serving.settings.settings import Settings

_TOKENS = tuple(range(100, 164))
_HELD_OUT = HeldOut(7, "", _TOKENS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, tokenizer: Any) -> Path:
    """A home with a corpus of small, similar functions, and a corpus of a single document."""
    home = tmp_path_factory.mktemp("home")
    draw = random.Random(0)
    verbs, nouns = ("load", "save", "parse", "merge"), ("frame", "table", "ledger", "index")
    functions = [
        f"def {draw.choice(verbs)}_{draw.choice(nouns)}_{n}(path, mode):\n"
        f"    with open_{draw.choice(nouns)}(path, mode) as opened:\n"
        f"        return [{draw.choice(verbs)}_{draw.choice(nouns)}(row, {n}) for row in opened]\n"
        for n in range(24)
    ]
    for name, texts in (("functions", functions), ("lonely", functions[:1])):
        corpus = Corpus.create(home / "corpora", name, embedder, tokenizer_digest(tokenizer))
        ingest(
            corpus, [Document(f"{n}.py", text) for n, text in enumerate(texts)], embedder, tokenizer
        )
        corpus.close()
    return home


def calibrate(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["calibrate", *arguments, "--home", str(home)])


class TestHoldingOut:
    """No text that is scored is trained on."""

    def test_a_document_with_half_of_the_sequence_is_a_near_duplicate(self) -> None:
        half, less = _TOKENS[:40], _TOKENS[:20]

        found = near_duplicates(_HELD_OUT, [(1, half), (2, less), (3, _TOKENS[::-1])])

        assert found == {1}

    def test_sequences_of_one_document_count_together(self) -> None:
        assert near_duplicates(
            _HELD_OUT, [(1, _TOKENS[:24]), (1, _TOKENS[24:48]), (2, _TOKENS[:24])]
        ) == {1}

    def test_holding_out_is_deterministic_with_one_sequence_per_document(
        self, home: Path, tokenizer: Any
    ) -> None:
        corpus = Corpus.open(home / "corpora", "functions")

        held_out, again = (hold_out(corpus, tokenizer, 8) for _ in range(2))

        assert held_out == again
        assert len({each.document for each in held_out}) == 8
        assert all(tokenizer.decode(each.tokens[: each.middle]) == each.text for each in held_out)
        corpus.close()


class TestStopping:
    """The gain that is chosen from curves."""

    @given(
        st.lists(st.lists(st.floats(0.1, 1.0), min_size=51, max_size=51), min_size=1, max_size=5)
    )
    def test_a_larger_gain_never_takes_more_steps(self, prompts: list[list[float]]) -> None:
        curves = [
            Curve(tuple(100.0 - n for n in range(51)), tuple(100 * each for each in prompt))
            for prompt in prompts
        ]

        steps = [stopping(curves, gain)[0] for gain in GAINS]

        assert steps == sorted(steps, reverse=True)

    def test_the_chosen_gain_retains_its_share_in_as_few_steps_as_possible(self) -> None:
        quick = Curve((100.0, *(80.0,) * 50), (100.0, *(90.0,) * 50))

        gain = choose_gain([quick])

        steps, share = stopping([quick], gain)
        assert share == 1.0
        # No stop is possible earlier.
        assert steps == FIRST_INTERVAL * PATIENCE

    def test_without_any_improvement_the_built_in_gain_stays(self) -> None:
        worse = Curve(tuple(100.0 + n for n in range(51)), (100.0,) * 51)

        assert choose_gain([worse]) == AUTO.gain


def test_the_result_is_stored_used_and_forgotten(home: Path, tmp_path: Path) -> None:
    result = calibrate(home, "functions", "--documents", "4", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    best, tried = found["calibration"], found["tried"]
    assert len(tried) == len({str(each["setting"]) for each in tried}) >= 9
    assert best["percent_of_base"] <= best["percent_by_default"]
    assert found["calibrated"][0] == found["by_default"][0] == 100.0
    assert found["calibrated"][-1] == pytest.approx(best["percent_of_base"], abs=0.01)
    assert 1 <= found["steps"] <= 50

    config = Settings(corpus="functions", home=home).config()
    assert (config.trainer.rank, config.engine.rank) == (best["rank"], best["rank"])
    adapted = [
        "adapt",
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

    assert calibrate(home, "functions", "--forget").exit_code == 0
    assert Settings(corpus="functions", home=home).config().trainer.rank == 16


def test_too_few_documents_are_refused(home: Path) -> None:
    result = calibrate(home, "lonely", "--documents", "4")

    assert result.exit_code == 1
    assert "--documents" in str(result.exception)


def test_an_unknown_corpus_is_refused(home: Path) -> None:
    result = calibrate(home, "nowhere")

    assert result.exit_code == 1
    assert "there is no corpus 'nowhere'" in str(result.exception)
