"""The adapter of a corpus in a database: replaced at once, and never used if it is damaged."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from selection.corpus.copying import copy_corpus
from selection.corpus.corpus import Corpus
from selection.corpus.postgres.tables import adapter_tables
from selection.corpus.trained.files import Checkpoint
from selection.corpus.trained.manifest import Snapshot
from selection.corpus.trained.places import corpora_with_adapter
from selection.embedding import Embedder
from selection.errors import CorpusError, CorpusNotFoundError, CorpusUnavailableError
from selection.location import DatabaseLocation, Location
from tests import postgres_server
from tests.selection.brute_force import add
from tests.selection.corpus.test_copying import no_progress
from tests.selection.corpus.trained.test_files import _SAVE_REPEATEDLY
from tests.selection.trained_helpers import SHAPE, found, refusal, train, weights

_REPOSITORY = Path(__file__).resolve().parents[4]
_CHECKPOINT = Checkpoint(
    Snapshot(3, "tokens", None), {"part": 1, "loss": [2.5, 1.25]}, {"weights": weights(9)}, (1, 2)
)


def made(root: Location, embedder: Embedder) -> Corpus:
    """A corpus of three documents, whose adapter has learnt them."""
    corpus = Corpus.create(root, "notes", embedder, "tokens")
    for number in range(3):
        add(corpus, embedder, f"document {number}", f"word{number} is here", f"word{number} again")
    train(corpus, seed=1)
    return corpus


@pytest.fixture
def corpus(postgres: DatabaseLocation, words: Embedder) -> Iterator[Corpus]:
    with closing(made(postgres, words)) as corpus:
        yield corpus


@pytest.fixture
def other(corpus: Corpus, postgres: DatabaseLocation) -> Iterator[Corpus]:
    """The corpus as another process sees it."""
    with closing(Corpus.open(postgres, "notes")) as opened:
        yield opened


@pytest.fixture
def admin(postgres: DatabaseLocation) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


def files_in(admin: psycopg.Connection[Any]) -> list[str]:
    rows = admin.execute("SELECT DISTINCT name FROM mayfly.adapter_files ORDER BY name").fetchall()
    return [name for (name,) in rows]


def test_a_saved_adapter_is_found_as_it_was_trained(corpus: Corpus, other: Corpus) -> None:
    start = found(other)

    assert (start.documents, start.sequences, start.not_learnt) == (3, 6, 0)
    read = other.trained.weights(start)
    assert read.weights == weights(1)
    assert (read.rank, read.scale_numerator, read.targets) == (2, 4.0, ("q_proj", "v_proj"))
    part = other.training.part(start.name)
    assert (part.weights, part.moments, part.steps) == (weights(1), b"moments of 1", 6)
    assert part.learnt == (1, 2, 3, 4, 5, 6)


def test_files_of_several_pieces_come_back_whole(
    corpus: Corpus, other: Corpus, monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection[Any]
) -> None:
    monkeypatch.setattr(adapter_tables, "_PIECE", 100)

    train(corpus, seed=2, fresh=True)

    pieces = admin.execute("SELECT max(number) FROM mayfly.adapter_files").fetchone()
    assert pieces is not None
    assert pieces[0] > 5
    assert other.trained.weights(found(other)).weights == weights(2)


@pytest.mark.parametrize("kind", ["safetensors", "npy", "moments"])
@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_damage_of_any_file_is_found(
    corpus: Corpus, other: Corpus, admin: psycopg.Connection[Any], kind: str, damage: str
) -> None:
    changes = {
        "flip": "UPDATE mayfly.adapter_files SET content = set_byte(content, 5, "
        "get_byte(content, 5) # 1) WHERE name LIKE %s",
        "lose": "DELETE FROM mayfly.adapter_files WHERE name LIKE %s",
    }
    admin.execute(changes[damage], (f"%.{kind}",))

    result = other.trained.start(SHAPE, None)

    assert result is not None
    if kind == "npy":
        assert result.reason == "the corpus's adapter is damaged"
    else:
        assert result.start is not None
        with pytest.raises(CorpusError, match="has a damaged adapter, which is not used"):
            other.training.part(result.start.name)
    # Training makes it whole again.
    assert other.training.plan(SHAPE).sequences == 6


def test_replacing_an_adapter_leaves_nothing_of_the_old_one(
    corpus: Corpus, other: Corpus, admin: psycopg.Connection[Any]
) -> None:
    before = found(other)
    admin.execute(
        "INSERT INTO mayfly.adapter_files SELECT id, 'corpus-of-a-killed-process.npy', 0, 'x' "
        "FROM mayfly.corpora"
    )

    (part,) = train(corpus, seed=2, fresh=True)

    assert files_in(admin) == [f"{part.name}.{kind}" for kind in ("moments", "npy", "safetensors")]
    with pytest.raises(CorpusError, match="'notes' has another adapter since it was looked up"):
        other.trained.weights(before)
    assert found(other).name == part.name
    assert other.trained.weights(found(other)).weights == weights(2)


@pytest.mark.parametrize(
    "where", ["adapter_files FOR EACH ROW WHEN (NEW.number = 1)", "adapter_manifests FOR EACH ROW"]
)
def test_an_adapter_that_cannot_be_saved_leaves_the_old_one(
    corpus: Corpus,
    other: Corpus,
    admin: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    where: LiteralString,
) -> None:
    monkeypatch.setattr(adapter_tables, "_PIECE", 100)
    before = files_in(admin)
    admin.execute(
        "CREATE FUNCTION mayfly.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$"
    )
    try:
        admin.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON mayfly."
            + where
            + " EXECUTE FUNCTION mayfly.refuse()"
        )
        with pytest.raises(CorpusError, match="'notes' was not changed: full"):
            train(corpus, seed=2, fresh=True)
    finally:
        admin.execute("DROP FUNCTION mayfly.refuse CASCADE")

    if where.startswith("adapter_files"):
        assert files_in(admin) == before
    assert other.trained.weights(found(other)).weights == weights(1)
    train(corpus, seed=2, fresh=True)
    assert len(files_in(admin)) == len(before)


def test_a_checkpoint_is_read_as_it_was_saved_and_cleared(
    corpus: Corpus, other: Corpus, admin: psycopg.Connection[Any]
) -> None:
    assert corpus.training.load_checkpoint() is None
    corpus.training.save_checkpoint(_CHECKPOINT)
    corpus.training.save_checkpoint(_CHECKPOINT)
    assert len([name for name in files_in(admin) if name.startswith("checkpoint")]) == 2

    assert other.training.load_checkpoint() == _CHECKPOINT
    admin.execute("UPDATE mayfly.adapter_files SET content = 'x' WHERE name LIKE 'checkpoint%'")
    assert other.training.load_checkpoint() is None
    corpus.training.save_checkpoint(_CHECKPOINT)
    corpus.training.clear_checkpoint()
    assert other.training.load_checkpoint() is None
    assert not [name for name in files_in(admin) if name.startswith("checkpoint")]


def test_what_a_server_records_is_read_by_another(corpus: Corpus, other: Corpus) -> None:
    assert other.training.recorded() is None
    corpus.training.record({"status": "queued", "at": 12.5})
    corpus.training.record({"status": "completed", "at": 13.0})

    assert other.training.recorded() == {"status": "completed", "at": 13.0}

    other.training.record(None)
    assert corpus.training.recorded() is None


def test_one_process_trains_a_corpus_at_a_time(corpus: Corpus, other: Corpus) -> None:
    with (
        corpus.training.lock(),
        pytest.raises(CorpusError, match="is being trained by another process"),
        other.training.lock(),
    ):
        pass

    with other.training.lock(), pytest.raises(CorpusError), corpus.training.lock():
        pass
    with corpus.training.lock():
        pass


def lose_connections(admin: psycopg.Connection[Any]) -> None:
    """End every other connection to the database, as a server that restarts does."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )


def test_a_training_takes_a_lost_lock_again(
    corpus: Corpus, other: Corpus, admin: psycopg.Connection[Any]
) -> None:
    with corpus.training.lock():
        lose_connections(admin)

        corpus.training.save_checkpoint(_CHECKPOINT)

        with pytest.raises(CorpusError, match="is being trained"), other.training.lock():
            pass
        train(corpus, seed=2, fresh=True)
    with other.training.lock():
        assert other.trained.weights(found(other)).weights == weights(2)


@pytest.mark.parametrize("save", ["checkpoint", "part"])
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_training_that_has_lost_its_lock_to_another_saves_nothing(
    corpus: Corpus, other: Corpus, admin: psycopg.Connection[Any], save: str, has_ended: bool
) -> None:
    saves: dict[str, Callable[[], object]] = {
        "checkpoint": lambda: corpus.training.save_checkpoint(_CHECKPOINT),
        "part": lambda: train(corpus, seed=3, fresh=True),
    }
    with ExitStack() as other_training, corpus.training.lock():
        lose_connections(admin)
        other_training.enter_context(other.training.lock())
        train(other, seed=2, fresh=True)
        if has_ended:
            other_training.close()

        # It is refused for good.
        for _ in range(2):
            with pytest.raises(CorpusError, match="'notes' lost the lock of its training"):
                saves[save]()

    assert other.trained.weights(found(other)).weights == weights(2)
    assert len(files_in(admin)) == 3
    train(corpus, seed=4, fresh=True)


def test_removing_the_adapter_leaves_the_corpus(
    corpus: Corpus, postgres: DatabaseLocation, admin: psycopg.Connection[Any]
) -> None:
    assert corpora_with_adapter(postgres) == ["notes"]
    corpus.training.save_checkpoint(_CHECKPOINT)

    corpus.training.remove()

    assert files_in(admin) == []
    assert refusal(corpus) == "the corpus has no adapter"
    assert str(corpus.training.status()) == "none"
    assert corpora_with_adapter(postgres) == []
    assert corpus.counts() == (3, 6)


def test_a_removed_corpus_has_no_adapter(
    corpus: Corpus, other: Corpus, admin: psycopg.Connection[Any]
) -> None:
    corpus.training.save_checkpoint(_CHECKPOINT)

    corpus.remove()

    assert files_in(admin) == []
    for use in (lambda: other.training.record({}), lambda: train(other), other.training.status):
        with pytest.raises(CorpusNotFoundError, match="was removed in the meantime"):
            use()


def test_a_database_that_is_away_is_no_damage(
    corpus: Corpus, other: Corpus, postgres: DatabaseLocation
) -> None:
    found(other)
    with postgres_server.away(postgres.url):
        for use in (other.training.status, other.training.load_checkpoint):
            with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
                use()

    assert other.trained.weights(found(other)).weights == weights(1)


def test_a_kill_at_any_moment_leaves_a_whole_adapter(
    corpus: Corpus, postgres: DatabaseLocation
) -> None:
    code = _SAVE_REPEATEDLY.replace(
        "Path(sys.argv[1])", "DatabaseLocation(sys.argv[1], Path(sys.argv[2]))"
    ).replace(
        "import itertools", "from selection.location import DatabaseLocation\nimport itertools"
    )
    draw = random.Random(5)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, postgres.url, str(postgres.cache)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )
        assert process.stdout is not None
        for _ in range(draw.randint(1, 4)):
            process.stdout.readline()
        process.kill()
        process.communicate()

        with closing(Corpus.open(postgres, "notes")) as other:
            part = other.training.part(found(other).name)
            assert part.weights == weights(part.moments[0])
            checkpoint = other.training.load_checkpoint()
            assert checkpoint is not None
            number = checkpoint.progress["n"]
            assert {*checkpoint.files.values()} == {bytes([number]) * 5000}


@pytest.mark.parametrize("direction", ["into", "out of"])
def test_a_copy_of_a_corpus_has_its_adapter(
    tmp_path: Path, postgres: DatabaseLocation, words: Embedder, direction: str
) -> None:
    places: tuple[Location, Location] = (tmp_path / "folder", postgres)
    source, destination = places if direction == "into" else places[::-1]
    with closing(made(source, words)) as original:
        copy_corpus(source, "notes", destination, no_progress)

        with closing(Corpus.open(destination, "notes")) as copy:
            assert found(copy) == found(original)
            part = copy.training.part(found(copy).name)
            assert part == original.training.part(found(original).name)
            # The deleted is forgotten in either.
            copy.delete("document 1")
            assert refusal(copy) is not None
            assert refusal(original) is None


def test_a_corpus_with_a_damaged_adapter_is_not_copied(
    tmp_path: Path, corpus: Corpus, postgres: DatabaseLocation, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("DELETE FROM mayfly.adapter_files WHERE name LIKE '%.safetensors'")

    with pytest.raises(CorpusError, match="has a damaged adapter: train it again, or remove it"):
        copy_corpus(postgres, "notes", tmp_path / "folder", no_progress)

    assert not [*(tmp_path / "folder").iterdir()]
