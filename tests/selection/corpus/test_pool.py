"""The pool keeps corpora open as long as they are the ones on disk."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from selection.errors import CorpusError, CorpusNotFoundError
from selection.location import DatabaseLocation, Location
from tests import postgres_server


def test_a_corpus_stays_open_under_all_its_names(corpora: Path, words: Embedder) -> None:
    created = Corpus.create(corpora, "notes", words, "t", {"name": "my notes"})
    pool = CorpusPool(corpora, words, "t")

    used = []
    for name in ("notes", created.meta()["id"], "my notes", "notes"):
        with pool.open(name) as corpus:
            used.append(corpus)

    assert all(corpus is used[0] for corpus in used)
    pool.close()
    with pool.open("notes") as corpus:
        assert corpus is not used[0]
    pool.close()
    created.close()


def test_a_corpus_removed_and_created_again_is_reopened(corpora: Path, words: Embedder) -> None:
    pool = CorpusPool(corpora, words, "t")
    for text in ("before", "after"):
        created = Corpus.create(corpora, "notes", words, "t")
        created.add(text, text, [Chunk(0, text, (1, 2))], words.embed([text]))
        with pool.open("notes") as corpus:
            ids, _ = corpus.nearest(words.embed([text]), 10)
            assert [each.source.text for each in corpus.read(ids.tolist()).values()] == [text]
        created.close()
        shutil.rmtree(corpora / "notes")
    with pytest.raises(CorpusNotFoundError), pool.open("notes"):
        pass
    pool.close()


def test_a_removed_corpus_is_closed_though_only_others_are_opened(
    location: Location, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selection.corpus.pool._LOOK_SECONDS", 0.0)
    for name in ("notes", "others"):
        Corpus.create(location, name, words, "t").close()
    pool = CorpusPool(location, words, "t")
    for name in ("notes", "others"):
        with pool.open(name):
            pass

    Corpus.open(location, "notes").remove()
    with pool.open("others"):
        pass

    assert [entry.corpus.name for entry in pool._entries] == ["others"]
    with pytest.raises(CorpusNotFoundError), pool.open("notes"):
        pass
    pool.close()


def test_what_is_derived_from_a_corpus_removed_elsewhere_is_deleted(
    postgres: DatabaseLocation,
    tmp_path: Path,
    words: Embedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selection.corpus.pool._LOOK_SECONDS", 0.0)
    elsewhere = DatabaseLocation(postgres.url, tmp_path / "elsewhere")
    for name in ("notes", "before", "others"):
        with closing(Corpus.create(postgres, name, words, "t")) as corpus:
            corpus.nearest(words.embed(["a"]), 1)
    (postgres.cache / "mine").mkdir()
    (postgres.cache / "mine" / "index.lock").touch()
    (postgres.cache / "mine" / "letters").touch()
    Corpus.open(elsewhere, "before").remove()
    pool = CorpusPool(postgres, words, "t")

    with postgres_server.away(postgres.url), pytest.raises(CorpusError), pool.open("notes"):
        pass
    assert names_in(postgres.cache) == ["before", "mine", "notes", "others"]
    fresh = CorpusPool(postgres, words, "t")
    with fresh.open("notes"):
        assert names_in(postgres.cache) == ["mine", "notes", "others"]

    Corpus.open(elsewhere, "notes").remove()
    with fresh.open("others"):
        assert names_in(postgres.cache) == ["mine", "others"]
    fresh.close()
    pool.close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_corpus_reembedded_by_another_process_is_refused(
    corpora: Path, words: Embedder, other_words: Embedder
) -> None:
    created = Corpus.create(corpora, "notes", words, "t")
    pool = CorpusPool(corpora, words, "t")
    with pool.open("notes"):
        pass

    created.reembed(other_words)
    created.close()

    with pytest.raises(CorpusError, match="mayfly corpus reembed"), pool.open("notes"):
        pass
    pool.close()
    others = CorpusPool(corpora, other_words, "another")
    with pytest.raises(CorpusError, match="another model's tokenizer"), others.open("notes"):
        pass
    others.close()
