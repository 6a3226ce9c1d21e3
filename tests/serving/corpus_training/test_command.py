"""`mayfly corpus train`: a killed run goes on, and what cannot be trained is refused in a line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.corpus.trained.plan import HELD_OUT_FROM
from selection.embedding import Embedder
from selection.ingest.ingest import tokenizer_digest
from serving.cli import main as main_module
from serving.cli.corpus.train import _show
from serving.cli.main import main
from serving.corpus_training import course
from serving.corpus_training.values import CorpusSummary, CorpusTrainingOutcome, End
from tests.serving.commands import Ended, run
from tests.serving.corpus_training.conftest import DOCUMENTS, SEQUENCES, AddDocuments

_CODE = "from serving.cli.main import main; main()"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `mayfly corpus train` in this process."""
    # This process has loaded torch already, and its environment must not change.
    monkeypatch.setattr(main_module, "set_environment", lambda cores: None)
    monkeypatch.setattr(course, "TRIAL_SEQUENCES", 2 * SEQUENCES)

    def command(home: Path, *arguments: str) -> Ended:
        given = ["mayfly", "corpus", "train", *arguments, "--home", str(home)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err, frozenset())

    return command


def adapter(home: Path) -> list[bytes]:
    """The weights of the corpus's adapter."""
    return [file.read_bytes() for file in home.glob("corpora/ships/trained/*.safetensors")]


def test_a_killed_run_goes_on_to_the_same_adapter(
    tmp_path: Path, words: Embedder, tokenizer: Any, add: AddDocuments
) -> None:
    # As few documents as some are held out of, so that learning rates are tried.
    documents = HELD_OUT_FROM
    corpus = Corpus.create(tmp_path / "corpora", "ships", words, tokenizer_digest(tokenizer))
    add(corpus, *range(documents))
    corpus.close()
    shutil.copytree(tmp_path / "corpora", tmp_path / "whole" / "corpora")
    checkpoint = corpus.folder / "trained" / "checkpoint.json"
    train = ("corpus", "train", "ships", "--passes", "1")
    training = subprocess.Popen([sys.executable, "-c", _CODE, *train, "--home", str(tmp_path)])
    while not checkpoint.exists():
        assert training.poll() is None
        time.sleep(0.005)
    training.send_signal(signal.SIGKILL)
    training.wait()
    left = adapter(tmp_path)

    resumed = run(tmp_path, *train, "--json", "--home", str(tmp_path))
    whole = run(tmp_path, *train, "--home", str(tmp_path / "whole"))

    assert left == []
    assert (resumed.status, whole.status) == (0, 0), resumed.err + whole.err
    assert adapter(tmp_path) == adapter(tmp_path / "whole")
    line, outcome = resumed.out.splitlines()
    assert line == whole.out.rstrip("\n")
    assert line.startswith(
        f"corpus ships: its adapter has learnt {documents * SEQUENCES} sequences of "
        f"{documents} documents, in "
    )
    assert json.loads(outcome)["adapter"]["not_learnt"] == 0


def test_it_says_what_is_left_to_learn(
    tmp_path: Path, corpus: Corpus, command: Any, add: AddDocuments
) -> None:
    trained = command(tmp_path, "ships", "--passes", "1")
    unchanged = command(tmp_path, "ships")
    corpus.delete("document 3")
    forgotten = command(tmp_path, "ships", "--forget")
    status = corpus.training.status()

    assert (trained.status, unchanged.status, forgotten.status) == (0, 0, 0)
    assert ", in 1 pass at learning rate " in trained.out
    assert unchanged.out == (
        f"corpus ships: nothing new to learn; its adapter has learnt {DOCUMENTS * SEQUENCES} "
        f"sequences of {DOCUMENTS} documents\n"
    )
    assert forgotten.out == "corpus ships has no adapter any more\n"
    assert status.info is None


def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, corpus: Corpus, command: Any, words: Embedder, nano: str
) -> None:
    root = corpus.folder.parent
    Corpus.create(root, "empty", words, corpus.meta()["tokenizer"]).close()
    other = Corpus.create(root, "other", words, "of another tokenizer")
    other.add("document", "1", [Chunk(0, "text", (1, 2))], words.embed(["text"]))
    other.close()
    quantised = tmp_path / "quantised"
    shutil.copytree(nano, quantised)
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )

    unknown = command(tmp_path, "boats")
    empty = command(tmp_path, "empty")
    tokenizer = command(tmp_path, "other")
    precision = command(tmp_path, "ships", "--model", str(quantised))
    seconds = command(tmp_path, "ships", "--seconds", "0")
    with corpus.training.lock():
        locked = command(tmp_path, "ships")

    assert unknown.err.startswith("mayfly: there is no corpus 'boats' (existing corpora: ")
    assert empty.err == (
        "mayfly: corpus 'empty' is empty: add documents with `mayfly corpus add empty PATH`\n"
    )
    assert "tokens of another model's tokenizer: serve that model, or run" in tokenizer.err
    assert "is quantised (awq)" in precision.err
    assert "is being trained by another process: wait until it has ended" in locked.err
    assert (seconds.status, "--seconds" in seconds.err) == (2, True)
    refused = (unknown, empty, tokenizer, precision, locked)
    assert [ended.status for ended in refused] == [1] * len(refused)
    assert all(ended.err.splitlines()[-1].startswith("mayfly: ") for ended in refused)


def test_it_says_what_was_added_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = CorpusSummary(72, 12, 6, 1, 1e-3, 2)

    _show("ships", CorpusTrainingOutcome(End.LEARNT, adapter, 72, 9.0))
    _show("ships", CorpusTrainingOutcome(End.LEARNT, replace(adapter, not_learnt=0), 72, 9.0))

    more, all_of_them = capsys.readouterr().out.splitlines()
    assert "; 6 more that were added meanwhile are not learnt: run the same command again" in more
    assert "more" not in all_of_them


def test_it_warns_of_an_adapter_that_does_not_help(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = CorpusSummary(72, 12, 0, 1, 1e-3, 1)

    for after in (2.230, 2.150):
        _show("ships", CorpusTrainingOutcome(End.LEARNT, adapter, 72, 9.0, (2.198, after)))

    printed = capsys.readouterr()
    worse, better = printed.out.splitlines()
    assert "the loss on held-out documents went from 2.198 to 2.230 nats per token" in worse
    assert "went from 2.198 to 2.150" in better
    assert printed.err.count("`mayfly corpus train ships --forget` removes it") == 1


def test_it_says_that_an_earlier_adapter_stays(capsys: pytest.CaptureFixture[str]) -> None:
    whole = CorpusSummary(72, 12, 0, 1, 1e-3, 1)

    # The losses are those of the new one.
    _show("ships", CorpusTrainingOutcome(End.SECONDS, whole, 9, 2.0, (2.1, 2.2), 0, True))

    printed = capsys.readouterr()
    assert printed.out == (
        "corpus ships: the time is over; its earlier adapter, which has learnt 72 sequences of 12 "
        "documents, stays until the new one has learnt as much; the same command continues\n"
    )
    assert printed.err == ""
