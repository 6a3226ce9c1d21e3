"""Index files: saved atomically, and never loaded if anything in them is damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selection.corpus.index import files as index_files
from selection.corpus.index.faiss_index import Index
from selection.corpus.index.files import CorpusVersion
from tests.selection.corpus.vectors import ids, units

_MINE = "1f0c"
_FILES = {"flat": ["ids", "vectors"], "lists": ["ids", "vectors", "coded"]}


def build(kind: str, seed: int, count: int) -> Index:
    """A small index: flat, or with lists from four vectors on."""
    return Index.build(ids(count), units(seed, count), flat_limit=100 if kind == "flat" else 3)


def folder_of(saved: Path) -> Path:
    """The folder named by the manifest."""
    return saved / str(json.loads((saved / "index.json").read_text())["folder"])


@pytest.fixture(params=["flat", "lists"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def saved(tmp_path: Path, kind: str) -> Path:
    """A folder with an index of 20 vectors, built from generation 5."""
    index_files.save(build(kind, 1, 20), tmp_path, CorpusVersion(_MINE, 5))
    return tmp_path


def load_index(saved: Path) -> Index:
    """The index saved in a folder."""
    loaded = index_files.load(saved, _MINE, 8)
    assert loaded is not None
    return loaded[1]


def assert_untouched(folder: Path, count: int = 20) -> None:
    loaded = index_files.load(folder, _MINE, 8)
    assert loaded is not None
    assert len(loaded[1]) == count


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_saved_index_loads_with_the_same_results(tmp_path: Path, kind: str, count: int) -> None:
    index = build(kind, 3, count)
    index_files.save(index, tmp_path, CorpusVersion(_MINE, 1))

    loaded = index_files.load(tmp_path, _MINE, 8)

    assert loaded is not None
    assert (loaded[0], len(loaded[1])) == (1, count)
    for before, after in zip(
        index.nearest(units(4, 2), 5), loaded[1].nearest(units(4, 2), 5), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_saving_again_replaces_the_index_and_removes_leftovers(saved: Path, kind: str) -> None:
    (saved / "index-of-a-killed-process").mkdir()
    (saved / "index.json.half").touch()

    index_files.save(build(kind, 5, 9), saved, CorpusVersion(_MINE, 6))

    assert_untouched(saved, count=9)
    assert index_files.saved_generation(saved) == 6
    assert {file.name for file in saved.iterdir()} == {"index.json", folder_of(saved).name}
    assert {file.name for file in folder_of(saved).iterdir()} == set(_FILES[kind])


def test_a_loaded_index_stays_usable_when_it_is_replaced(saved: Path, kind: str) -> None:
    loaded = index_files.load(saved, _MINE, 8)
    assert loaded is not None
    before = loaded[1].nearest(units(4, 1), 20)

    index_files.save(build(kind, 5, 3), saved, CorpusVersion(_MINE, 6))

    for earlier, later in zip(before, loaded[1].nearest(units(4, 1), 20), strict=True):
        np.testing.assert_array_equal(earlier, later)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_save_on_a_full_disk_leaves_the_old_index_and_nothing_else(
    saved: Path, kind: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(saved.rglob("*"))
    original_fsync = os.fsync
    synced = 0

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        original_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        index_files.save(build(kind, 5, 3), saved, CorpusVersion(_MINE, 6))

    assert_untouched(saved)
    assert sorted(saved.rglob("*")) == before


def test_an_index_replaced_during_loading_is_loaded_completely_or_not_at_all(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saving deletes the old folder: here after the reader has mapped 1, 2, ... of its files.
    expected = load_index(saved).nearest(units(4, 1), 20)
    original_memmap, folder = np.memmap, folder_of(saved)
    for left in range(1, len(list(folder.iterdir())) + 1):
        shutil.copytree(folder, saved / "copy")
        mapped = 0

        def memmap(*arguments: Any, left: int = left, **options: Any) -> Any:
            nonlocal mapped
            mapped += 1
            result = original_memmap(*arguments, **options)
            if mapped == left:
                shutil.rmtree(folder)
            return result

        with monkeypatch.context() as patched:
            patched.setattr(np, "memmap", memmap)
            loaded = index_files.load(saved, _MINE, 8)

        assert mapped == left
        if left < len(list((saved / "copy").iterdir())):
            assert loaded is None
        else:
            assert loaded is not None
            for before, after in zip(expected, loaded[1].nearest(units(4, 1), 20), strict=True):
                np.testing.assert_array_equal(before, after)
        (saved / "copy").rename(folder)


def test_an_index_of_another_corpus_or_dimension_is_not_loaded(saved: Path) -> None:
    assert index_files.load(saved, "another", 8) is None
    assert index_files.load(saved, _MINE, 7) is None
    assert_untouched(saved)


@pytest.mark.parametrize("name", ["ids", "vectors", "coded", "index.json"])
def test_any_flipped_bit_is_detected(tmp_path: Path, name: str) -> None:
    index_files.save(build("lists", 1, 20), tmp_path, CorpusVersion(_MINE, 5))
    file = tmp_path / name if name == "index.json" else folder_of(tmp_path) / name
    sound = file.read_bytes()
    rng = np.random.default_rng(6)
    for position in {0, len(sound) - 1, *rng.integers(0, len(sound), 30).tolist()}:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        assert index_files.load(tmp_path, _MINE, 8) is None, f"byte {position}"
    file.write_bytes(sound)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("name", ["ids", "vectors", "coded", "index.json"])
def test_a_truncated_grown_emptied_or_missing_file_is_detected(tmp_path: Path, name: str) -> None:
    index_files.save(build("lists", 1, 20), tmp_path, CorpusVersion(_MINE, 5))
    file = tmp_path / name if name == "index.json" else folder_of(tmp_path) / name
    sound = file.read_bytes()
    for damaged in (sound[:-1], sound[: len(sound) // 2], b"", sound + b"\0"):
        file.write_bytes(damaged)
        assert index_files.load(tmp_path, _MINE, 8) is None, f"{len(damaged)} bytes"
    file.unlink()
    assert index_files.load(tmp_path, _MINE, 8) is None


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "5", '"text"', "{}", "[{}]", "\xff", '{"generation": 5}', "[" * 100_000],
)
def test_an_invalid_manifest_is_detected(saved: Path, manifest: str) -> None:
    (saved / "index.json").write_bytes(manifest.encode("latin-1"))

    assert index_files.load(saved, _MINE, 8) is None
    assert index_files.saved_generation(saved) in (-1, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 3),
        ("format", 5),
        ("generation", 4),
        ("search_params", {"probes": 1, "refine": 1, "usual": 0.0}),
    ],
)
def test_an_edited_manifest_is_detected(saved: Path, key: str, value: object) -> None:
    manifest = json.loads((saved / "index.json").read_text())
    assert manifest[key] != value

    (saved / "index.json").write_text(json.dumps({**manifest, key: value}))

    assert index_files.load(saved, _MINE, 8) is None


@pytest.mark.parametrize("version", [3, 5])
def test_an_index_of_another_format_is_not_loaded(
    saved: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("selection.corpus.index.files._FORMAT", version)
        index_files.save(Index.build(ids(20), units(1, 20)), saved, CorpusVersion(_MINE, 5))
        assert_untouched(saved)

    assert index_files.load(saved, _MINE, 8) is None


@pytest.mark.parametrize("name", ["ids", "vectors", "coded"])
def test_files_of_two_indexes_are_not_mixed(tmp_path: Path, name: str) -> None:
    index_files.save(build("lists", 1, 20), tmp_path, CorpusVersion(_MINE, 5))
    other = tmp_path / "other"
    other.mkdir()
    index_files.save(
        Index.build(ids(21)[1:], units(7, 20), flat_limit=3), other, CorpusVersion(_MINE, 5)
    )

    shutil.copy(folder_of(other) / name, folder_of(tmp_path) / name)

    assert index_files.load(tmp_path, _MINE, 8) is None


def test_the_manifest_names_its_corpus_and_files(saved: Path, kind: str) -> None:
    manifest = json.loads((saved / "index.json").read_text())

    assert (manifest["corpus"], manifest["generation"], manifest["count"]) == (_MINE, 5, 20)
    assert {file: len(digest) for file, digest in manifest["sha256"].items()} == dict.fromkeys(
        _FILES[kind], 64
    )


def test_a_folder_without_a_manifest_has_no_generation(tmp_path: Path) -> None:
    assert index_files.saved_generation(tmp_path) == -1
    assert index_files.load(tmp_path, _MINE, 8) is None
