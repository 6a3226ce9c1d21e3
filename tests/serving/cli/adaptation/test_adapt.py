"""`mayfly adapt`: plain PEFT loads the saved adapter, and what cannot be adapted is reported."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from adapters.trainer import Trainer
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from serving.cli.main import app
from serving.settings.settings import Settings
from tests.trained_corpora import train_corpus

_TEXTS = {
    "bees": "A hive of bees keeps itself warm in winter by shivering; "
    "the queen stays in the middle of the cluster.",
    "bread": "Sourdough is fed with flour and water each day; "
    "the dough rests for a night before it is baked.",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, tokenizer: Any) -> Path:
    """A folder with a filled corpus and an empty one."""
    home = tmp_path_factory.mktemp("home")
    corpus = Corpus.create(home / "corpora", "notes", embedder, tokenizer_digest(tokenizer))
    ingest(corpus, [Document(name, text) for name, text in _TEXTS.items()], embedder, tokenizer)
    corpus.close()
    Corpus.create(home / "corpora", "void", embedder, tokenizer_digest(tokenizer)).close()
    return home


def adapt(home: Path, out: Path, *options: str, stdin: str | None = None) -> Result:
    arguments = [
        "adapt",
        "--prompt",
        "Where is the queen in winter?",
        "--out",
        str(out),
        "--home",
        str(home),
    ]
    return CliRunner().invoke(app, [*arguments, *options], input=stdin)


def test_plain_peft_loads_the_saved_adapter(
    home: Path, tmp_path: Path, nano: str, tokenizer: Any
) -> None:
    result = adapt(home, tmp_path / "adapter", "--corpus", "notes", "--budget", "steps=4")

    assert result.exit_code == 0, result.output
    assert "4 steps" in result.output
    loss = re.search(r"prompt loss (\d+\.\d\d) -> (\d+\.\d\d), 4 steps", result.output)
    assert loss is not None
    assert float(loss[2]) < float(loss[1])
    assert "stop steps" in result.output
    ids = torch.tensor([tokenizer.encode(_TEXTS["bees"])])
    base: Any = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32)
    with torch.no_grad():
        before = base(ids, labels=ids).loss
        after = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(ids, labels=ids).loss
    assert after < before - 0.1


def test_training_starts_from_the_adapter_of_the_corpus(home: Path, tmp_path: Path) -> None:
    config = Settings(corpus="notes", home=home).config()
    assert config.selector.adapters is not None
    options = ("--corpus", "notes", "--budget", "steps=2")
    fresh = adapt(home, tmp_path / "fresh", *options)
    trainer, shape = Trainer(config.trainer), config.selector.adapters
    train_corpus(config.selector.root, "notes", trainer, shape, passes=10)
    try:
        started = adapt(home, tmp_path / "started", *options)
        code = ("--prompt", "import numpy as np\n\n\ndef mean(values):\n    return np.sum(values)")
        unrelated = adapt(home, tmp_path / "unrelated", *options, *code)
        (weights,) = (home / "corpora" / "notes" / "trained").glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        damaged = adapt(home, tmp_path / "damaged", *options)
    finally:
        with closing(Corpus.open(config.selector.root, "notes")) as corpus:
            corpus.training.remove()

    said = "started from the adapter of the corpus"
    assert said in " ".join(started.output.split())
    assert said not in " ".join(fresh.output.split())
    assert said not in " ".join(unrelated.output.split())
    assert "base model expects the prompt at least as well" in " ".join(unrelated.output.split())
    assert damaged.exit_code == 0, damaged.output
    assert said not in " ".join(damaged.output.split())
    assert "has a damaged adapter, which is not used" in " ".join(damaged.output.split())


def test_the_prompt_may_come_from_standard_input(home: Path, tmp_path: Path) -> None:
    options = ("--prompt", "-", "--corpus", "notes", "--budget", "steps=10", "--plan", "batched")

    result = adapt(home, tmp_path / "adapter", *options, stdin=_TEXTS["bread"])

    assert result.exit_code == 0, result.output
    assert "2 steps" in result.output


def test_examples_need_neither_a_corpus_nor_a_prompt(home: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} teas", "completion": f"{i}*tea"} for i in range(1, 4)]
    (tmp_path / "orders.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ["adapt", "--examples", str(tmp_path / "orders.jsonl"), "--home", str(home)]

    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "adapter")])

    assert result.exit_code == 0, result.output
    assert "9 steps" in result.output, "auto takes three steps for each example"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_leave_one_out_needs_two_examples(home: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "1 tea", "completion": "1*tea"}\n')
    examples = ("--examples", str(tmp_path / "one.jsonl"), "--examples-as", "leave-one-out")

    result = adapt(home, tmp_path / "adapter", *examples)

    assert "needs two" in str(result.exception)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --prompt and --corpus, or --examples"),
        (("--corpus", "void"), "corpus 'void' is empty"),
        (("--corpus", "nowhere"), "nowhere"),
        (("--corpus", "notes", "--budget", "none"), "no adaptation was asked for"),
        (("--corpus", "notes", "--budget", "steps=0"), "ask for steps=1 or more"),
        (("--corpus", "notes", "--budget", "steps=-1"), "steps"),
        (
            ("--corpus", "notes", "--budget", "steps=2", "--plan", "backwards"),
            "unknown plan 'backwards'",
        ),
        (("--corpus", "notes", "--budget", "seconds=0.001"), "training was stopped by 'seconds'"),
    ],
)
def test_what_cannot_be_adapted_is_an_error_and_nothing_is_written(
    home: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = adapt(home, tmp_path / "adapter", *options)

    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
    assert not (tmp_path / "adapter").exists()


def test_a_folder_that_is_not_empty_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")

    result = adapt(home, tmp_path, "--corpus", "notes")

    assert result.exit_code == 2
    assert "new or empty folder" in result.output.replace("\n", " ")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
