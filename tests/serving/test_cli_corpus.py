"""`mayfly corpus`: what its user must mend is said with the place where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serving.cli import main


def test_a_damaged_corpus_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpora" / "notes"
    folder.mkdir(parents=True)
    (folder / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)
    monkeypatch.setattr(sys, "argv", ["mayfly", "corpus", "show", "notes", "--home", str(tmp_path)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("mayfly: corpus 'notes' is damaged: file is not a database; delete its folder and add")
    assert said.endswith(f"; its folder is {folder}\n")
