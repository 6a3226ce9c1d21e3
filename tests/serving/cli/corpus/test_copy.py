"""`mayfly corpus copy`: from a folder to a database and back."""

from __future__ import annotations

import re
from pathlib import Path

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.embedding import Embedder
from selection.location import DatabaseLocation
from tests.selection.brute_force import add
from tests.serving.commands import run


def test_a_corpus_is_copied_to_a_database_and_back(
    postgres: DatabaseLocation, words: Embedder, tmp_path: Path
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    corpus = Corpus.create(home / "corpora", "notes", words, "tokens")
    add(corpus, words, "a", "cats purr", "cats sleep")
    corpus.close()
    where = {"MAYFLY_CORPORA": postgres.url, "MAYFLY_HOME": str(tmp_path / "third")}

    there = run(tmp_path, "corpus", "copy", "notes", "--from", str(home), **where)
    again = run(tmp_path, "corpus", "copy", "notes", "--from", str(home), **where)
    back = run(tmp_path, "corpus", "copy", "notes", "--from", postgres.url, "--to", str(other))

    assert (there.status, back.status) == (0, 0), there.err + back.err
    assert re.fullmatch(
        r"corpus notes: copied 1 documents, 2 sequences to postgresql://\S+; "
        r"SHA-256 [0-9a-f]{64}\n",
        there.out,
    )
    assert back.out == (
        f"corpus notes: copied 1 documents, 2 sequences to {other / 'corpora'}; "
        f"SHA-256 {there.out.split()[-1]}\n"
    )
    assert again.status == 1
    assert "corpus 'notes' was not copied: there is one of that name" in again.err
    assert list_corpora(postgres) == list_corpora(other / "corpora") == ["notes"]
    assert not there.heavy


def test_a_place_must_be_named(tmp_path: Path) -> None:
    ended = run(tmp_path, "corpus", "copy", "notes", "--home", str(tmp_path))

    assert ended.status == 2
    assert "name --from, --to or both" in ended.err


def test_a_database_that_cannot_be_used_is_reported_without_its_password(
    words: Embedder, tmp_path: Path
) -> None:
    Corpus.create(tmp_path / "corpora", "notes", words, "tokens").close()
    url = "postgresql://me:s3cret@127.0.0.1:1/db"

    ended = run(tmp_path, "corpus", "copy", "notes", "--from", str(tmp_path), "--to", url)
    other = run(tmp_path, "corpus", "copy", "notes", "--from", "mysql://me:s3cret@h/db")

    assert ended.status == other.status == 1
    assert "the corpora's database cannot be reached" in ended.err
    assert "must be a URL of PostgreSQL" in other.err
    assert "s3cret" not in ended.err + other.err
