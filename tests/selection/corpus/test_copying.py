"""Copying corpora between folders and databases: all of a corpus, or nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from selection.corpus.copying import Copied, copy_corpus
from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.corpus.sequences import Chunk
from selection.corpus.tables.attachment import Attachment, Problem
from selection.corpus.tables.transfer import Transfer
from selection.embedding import Embedder
from selection.errors import CorpusError, CorpusNotFoundError
from selection.location import DatabaseLocation, Location
from tests import postgres_server
from tests.selection.brute_force import add, database_of, texts_near

_REPOSITORY = Path(__file__).resolve().parents[3]
_FILES = [f"file-{number:024x}" for number in range(5)]
_BATCH = "vsfb_" + 24 * "0"


class Places(NamedTuple):
    source: Location
    destination: Location


@pytest.fixture(
    params=[("folder", "database"), ("database", "folder"), ("folder", "folder"), ("database",) * 2]
)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """Two places without corpora."""
    used: list[Location] = []
    with contextmanager(_second_database)(request, tmp_path) as second:
        for kind in request.param:
            if kind == "folder":
                used.append(tmp_path / f"folder {len(used)}")
            elif "database" in request.param[: len(used)]:
                used.append(second)
            else:
                used.append(request.getfixturevalue("postgres"))
        yield Places(*used)


def _second_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseLocation]:
    if request.param != ("database", "database"):
        yield DatabaseLocation("postgresql://", tmp_path)
        return
    with postgres_server.database(request.getfixturevalue("postgres_url")) as url:
        yield DatabaseLocation(url, tmp_path / "another cache")


def no_progress(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda count: None)


def made(root: Location, embedder: Embedder) -> Corpus:
    """A corpus with everything that a corpus can have."""
    corpus = Corpus.create(root, "notes", embedder, "tokens", {"name": "my notes"})
    corpus.check(embedder, "tokens", "template")
    add(corpus, embedder, "a", "cats purr", "cats sleep", group=1)
    add(corpus, embedder, "b", "ships sail", group=2)
    add(corpus, embedder, "c", "trains run")
    example = Chunk(3, "é ü 日本", (7, 8), '{"messages": []}', ((1, 2),))
    corpus.add("d", "digest", [example], embedder.embed(["é"]), {"x": 1.5, "y": True, "z": "ü"})
    corpus.attachments.attach(
        [Attachment(each, f"{each}.md", {"k": 2}, (100, 10), _BATCH) for each in _FILES[:3]]
    )
    corpus.attachments.attach([Attachment(_FILES[3], "e.md")])
    document = corpus.add("e", "e", [Chunk(0, "e", (1, 2))], embedder.embed(["e"]), file=_FILES[0])
    assert document == 5
    failed = corpus.attachments.get(_FILES[1])
    ingested = corpus.attachments.get(_FILES[0])
    assert failed is not None
    assert ingested is not None
    corpus.attachments.finish(ingested, "completed", documents={"added": 1})
    corpus.attachments.finish(failed, "failed", Problem("invalid_file", "it is empty"))
    corpus.file_batches.cancel(_BATCH)
    corpus.attachments.detach(_FILES[3])
    corpus.delete("c")
    add(corpus, embedder, "a", "cats run")
    corpus.update_meta({"calibration model": '{"rank": 8}'})
    return corpus


def described(corpus: Corpus, embedder: Embedder) -> dict[str, object]:
    """What a corpus shows to its users."""
    return {
        "meta": {key: value for key, value in corpus.meta().items() if key != "uuid"},
        "documents": corpus.documents(),
        "sequences": corpus.read(range(1, 10)),
        "nearest": texts_near(corpus, embedder, "cats"),
        "filtered": corpus.nearest(
            embedder.embed(["cats"]), 9, {"type": "eq", "key": "group", "value": 2}
        )[0].tolist(),
        "files": {file: corpus.attachments.get(file) for file in corpus.attachments.ids()},
        "positions": [corpus.attachments.position(file) for file in (*_FILES, "doc-3")],
        "batch": corpus.file_batches.counts(_BATCH),
        "members": [corpus.file_batches.member(_BATCH, file) for file in _FILES[:3]],
        "known": (corpus.has("e", "e"), corpus.names(_FILES[0])),
    }


def test_a_copy_has_everything(places: Places, words: Embedder) -> None:
    with closing(made(places.source, words)) as original:
        expected = described(original, words)
        shown = []

        @contextmanager
        def show(what: str, total: int) -> Iterator[Callable[[int], None]]:
            counts: list[int] = []
            yield counts.append
            shown.append((what, total, sum(counts)))

        copied = copy_corpus(places.source, original.meta()["id"], places.destination, show)

        with closing(Corpus.open(places.destination, "my notes")) as copy:
            copy.check(words, "tokens", "template")
            assert described(copy, words) == expected
            # So that no index of the original is taken for that of the copy.
            assert copy.meta()["uuid"] != original.meta()["uuid"]
            # Both go on alike: no id is given again, and readers are told of the same changes.
            for each in (original, copy):
                assert add(each, words, "f", "planes fly") == 7
                assert each.delete("b")
                assert each._store.removed(0).tolist() == [1, 2, 3, 4]
                each.attachments.attach([Attachment(_FILES[3], "e.md"), Attachment(_FILES[4], "")])
            # Without their order and the seconds, which depend on the time of each addition.
            numbers = [
                {file: at[1:] for file, at in each.attachments.positions().items()}
                for each in (original, copy)
            ]
            assert numbers[0] == numbers[1]

    assert copied == Copied("notes", 4, 4, copied.sha256)
    assert shown == [("copying", 4, 4), ("verifying", 4, 4)]


def test_a_corpus_comes_back_as_it_was(
    tmp_path: Path, postgres: DatabaseLocation, words: Embedder
) -> None:
    made(tmp_path / "first", words).close()

    there = copy_corpus(tmp_path / "first", "notes", postgres, no_progress)
    back = copy_corpus(postgres, "notes", tmp_path / "second", no_progress)

    assert there == back
    assert len(there.sha256) == 64


def test_a_large_corpus_is_copied_in_blocks(places: Places, words: Embedder) -> None:
    with closing(Corpus.create(places.source, "notes", words, "tokens")) as original:
        for number in range(3):
            texts = [f"text {number} {i}" for i in range(401)]
            add(original, words, str(number), *texts)

    copied = copy_corpus(places.source, "notes", places.destination, no_progress)

    assert (copied.documents, copied.sequences) == (3, 1203)
    with closing(Corpus.open(places.destination, "notes")) as copy:
        assert copy.counts() == (3, 1203)


def test_an_existing_corpus_is_not_replaced(places: Places, words: Embedder) -> None:
    made(places.source, words).close()
    with closing(Corpus.create(places.destination, "notes", words, "others")) as there:
        before = there.meta()

        with pytest.raises(CorpusError, match="'notes' was not copied: there is one of that name"):
            copy_corpus(places.source, "notes", places.destination, no_progress)

        assert there.meta() == before
        assert there.counts() == (0, 0)


def test_a_corpus_that_does_not_exist_is_reported(places: Places) -> None:
    with pytest.raises(CorpusNotFoundError, match="there is no corpus 'notes'"):
        copy_corpus(places.source, "notes", places.destination, no_progress)


def test_files_must_be_ingested_before(places: Places, words: Embedder) -> None:
    with closing(Corpus.create(places.source, "notes", words, "tokens")) as original:
        original.attachments.attach([Attachment(_FILES[0], "a.md")])

    with pytest.raises(CorpusError, match="'notes' has files that are being ingested: wait"):
        copy_corpus(places.source, "notes", places.destination, no_progress)

    assert list_corpora(places.destination) == []


@pytest.mark.parametrize("phase", ["copying", "verifying"])
def test_an_interrupted_copy_leaves_nothing(places: Places, words: Embedder, phase: str) -> None:
    made(places.source, words).close()

    def interrupted(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        def advance(count: int) -> None:
            if what == phase:
                raise KeyboardInterrupt

        return nullcontext(advance)

    with pytest.raises(KeyboardInterrupt):
        copy_corpus(places.source, "notes", places.destination, interrupted)

    assert list_corpora(places.destination) == []
    if isinstance(places.destination, Path):
        assert [*places.destination.iterdir()] == []
    copy_corpus(places.source, "notes", places.destination, no_progress)
    assert list_corpora(places.destination) == ["notes"]


_KILLED = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from selection.corpus.copying import copy_corpus
from selection.location import DatabaseLocation

def place(name):
    return DatabaseLocation(name, Path(sys.argv[3])) if "://" in name else Path(name)

def show(what, total):
    if what == "verifying":
        os.kill(os.getpid(), signal.SIGKILL)
    return nullcontext(lambda count: None)

copy_corpus(place(sys.argv[1]), "notes", place(sys.argv[2]), show)
"""


def test_a_killed_copy_leaves_no_corpus(places: Places, words: Embedder, tmp_path: Path) -> None:
    made(places.source, words).close()
    names = [each.url if isinstance(each, DatabaseLocation) else str(each) for each in places]

    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, *names, str(tmp_path / "cache")], cwd=_REPOSITORY
    )

    assert killed.returncode == -signal.SIGKILL
    assert list_corpora(places.destination) == []
    copy_corpus(places.source, "notes", places.destination, no_progress)
    assert list_corpora(places.destination) == ["notes"]
    if isinstance(places.destination, Path):
        assert [each.name for each in places.destination.iterdir()] == ["notes"]


def test_a_folder_receives_one_corpus_at_a_time(tmp_path: Path, words: Embedder) -> None:
    made(tmp_path / "from", words).close()

    def show(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        with pytest.raises(CorpusError, match="another corpus is being copied to that folder"):
            copy_corpus(tmp_path / "from", "notes", tmp_path / "to", no_progress)
        return no_progress(what, total)

    copy_corpus(tmp_path / "from", "notes", tmp_path / "to", show)

    assert list_corpora(tmp_path / "to") == ["notes"]


def test_a_name_that_is_taken_meanwhile_is_not_replaced(tmp_path: Path, words: Embedder) -> None:
    made(tmp_path / "from", words).close()

    def show(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        Corpus.create(tmp_path / "to", "notes", words, "others").close()
        return no_progress(what, total)

    with pytest.raises(CorpusError, match="there is one of that name"):
        copy_corpus(tmp_path / "from", "notes", tmp_path / "to", show)

    with closing(Corpus.open(tmp_path / "to", "notes")) as there:
        assert there.meta()["tokenizer"] == "others"


def test_a_copy_that_differs_is_not_kept(
    tmp_path: Path, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "from", words).close()

    def import_(self: Transfer, table: str, rows: Iterator[object]) -> None:
        changed = [
            (*row[:3], row[3].upper(), *row[4:]) if table == "sequences" else row  # type: ignore[index]
            for row in rows
        ]
        import_rows(self, table, changed)  # type: ignore[arg-type]

    import_rows = Transfer.import_
    monkeypatch.setattr(Transfer, "import_", import_)
    with pytest.raises(CorpusError, match="was not copied: the sequences of the copy differ"):
        copy_corpus(tmp_path / "from", "notes", tmp_path / "to", no_progress)

    assert list_corpora(tmp_path / "to") == []


def test_a_damaged_corpus_is_not_copied(
    tmp_path: Path, postgres: DatabaseLocation, words: Embedder
) -> None:
    with closing(made(tmp_path / "from", words)) as corpus, database_of(corpus).writing():
        database_of(corpus).execute("UPDATE sequences SET embedding = x'0000' WHERE id = 3")

    with pytest.raises(CorpusError, match="'notes' is damaged: embeddings are missing"):
        copy_corpus(tmp_path / "from", "notes", postgres, no_progress)

    assert list_corpora(postgres) == []


@pytest.mark.parametrize("where", ["text", "metadata"])
def test_what_a_database_cannot_store_is_reported(
    tmp_path: Path, postgres: DatabaseLocation, words: Embedder, where: str
) -> None:
    with closing(Corpus.create(tmp_path / "from", "notes", words, "tokens")) as corpus:
        text, value = ("a\0b", "c") if where == "text" else ("ab", "c\0d")
        corpus.add("a", "a", [Chunk(0, text, (1, 2))], words.embed(["a"]), {"key": value})

    with pytest.raises(
        CorpusError, match=r"'notes' was not changed: .*cannot store the character U\+0000"
    ):
        copy_corpus(tmp_path / "from", "notes", postgres, no_progress)

    assert list_corpora(postgres) == []
