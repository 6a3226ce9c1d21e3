"""`mayfly corpus`: damaged corpora are reported with their folder, and reembedding resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from serving.cli.main import main
from tests.serving.commands import run


def test_a_damaged_corpus_is_reported_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpora" / "notes"
    folder.mkdir(parents=True)
    (folder / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)
    monkeypatch.setattr(sys, "argv", ["mayfly", "corpus", "show", "notes", "--home", str(tmp_path)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    reported = capsys.readouterr().err
    assert reported.startswith(
        "mayfly: corpus 'notes' is damaged: file is not a database; delete its folder and add"
    )
    assert reported.endswith(f"; its folder is {folder}\n")


def test_a_damaged_corpus_does_not_hide_the_others(
    corpora: Path, words: Embedder, tmp_path: Path
) -> None:
    for name in ("a", "c"):
        corpus = Corpus.create(corpora, name, words, "tokenizer")
        corpus.add("doc", "doc", [Chunk(0, "text", (1, 2))], words.embed(["text"]))
        corpus.close()
    (corpora / "b").mkdir()
    (corpora / "b" / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    listed = run(tmp_path, "corpus", "list", MAYFLY_HOME=str(corpora.parent))
    missing = run(tmp_path, "corpus", "show", "d", MAYFLY_HOME=str(corpora.parent))

    assert [line.split() for line in listed.out.splitlines()] == [
        ["corpus", "documents", "sequences", "embedder"],
        ["a", "1", "1", "words"],
        ["b", "-", "-", "cannot", "be", "opened"],
        ["c", "1", "1", "words"],
    ]
    assert listed.err.startswith(
        "mayfly: corpus 'b' is damaged: file is not a database; delete its folder"
    )
    assert listed.err.endswith(f"its folder is {corpora / 'b'}\n")
    assert listed.status == 1
    assert "(existing corpora: a, b, c)" in missing.err


def test_an_interrupted_reembedding_resumes(
    corpora: Path, words: Embedder, other_words: Embedder
) -> None:
    corpus = Corpus.create(corpora, "nx", words, "tokenizer")
    for number in range(130):
        corpus.add(str(number), "1", [Chunk(0, "text", (1, 2))], words.embed(["text"]))

    def interrupt(_count: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.reembed(other_words, interrupt)
    kept = corpus.reembedded_count(other_words)
    counts: list[int] = []
    corpus.reembed(other_words, lambda count, _total: counts.append(count))

    assert (kept, corpus.reembedded_count(words)) == (64, 0)
    assert sum(counts) == 130 - kept
    # The new embeddings have replaced the old ones, so none is pending.
    assert corpus.reembedded_count(other_words) == 0
    corpus.close()
