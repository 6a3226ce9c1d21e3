"""Uploads: a file is there whole or not at all, and its name is only a name."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selection.library.library import Library
from selection.library.uploads import LibraryError, Uploads
from tests.selection.libraries import ALL, CATS, attached, documents


@pytest.mark.parametrize(
    "name", ["../../escape.md", "/etc/passwd", "..", ".", "a/b\\c.md", "ünï 日本 🦋.md", "x" * 255]
)
def test_a_file_name_is_only_a_name(library: Library, corpora: Path, name: str) -> None:
    library.create_store("notes")

    file = attached(library, "notes", name, CATS)

    assert library.uploaded(file).name == name
    assert library.content(file) == CATS.encode()
    assert library.file("notes", file).file.status == "completed"
    assert list(documents(corpora, "notes")) == [f"{file}/{name}"]
    assert sorted(os.listdir(corpora.parent)) == ["corpora", "files"]
    assert os.listdir(corpora.parent / "files") == [file]


@pytest.mark.parametrize("name", ["", "a\0b", "line\nbreak", "half \ud800", "x" * 256, None, 7])
def test_a_file_name_that_is_none_is_refused(library: Library, corpora: Path, name: Any) -> None:
    with pytest.raises(LibraryError, match="a file's name is"):
        library.upload(name, b"content")

    assert os.listdir(corpora.parent / "files") == []


def test_what_cannot_be_uploaded_is_refused(library: Library) -> None:
    with pytest.raises(LibraryError, match=r"'cats.md' is empty"):
        library.upload("cats.md", b"")
    with pytest.raises(LibraryError, match="`purpose` is one of"):
        library.upload("cats.md", b"x", "world domination")


def test_a_full_disk_leaves_no_part_of_an_upload(library: Library, corpora: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            library.upload("big.txt", b"x" * (1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert os.listdir(corpora.parent / "files") == []


def test_what_a_kill_left_of_an_upload_is_not_a_file_and_goes_after_a_day(
    opened: Callable[..., Library], corpora: Path
) -> None:
    left, recent = (
        corpora.parent / "files" / name for name in (".file-" + 24 * "0", ".file-" + 24 * "1")
    )
    for folder in (left, recent):
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(b"half")
    os.utime(left, (0, 0))

    library = opened()

    assert library.uploads(ALL).items == ()
    assert (left.exists(), recent.exists()) == (False, True)


def test_a_damaged_record_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = Uploads(tmp_path / "files")
    sound, damaged, old = (uploads.add(name, b"text") for name in ("a.txt", "b.txt", "c.txt"))
    (tmp_path / "files" / damaged.id / "record.json").write_text('{"id": ')
    (tmp_path / "files" / old.id / "record.json").write_text('{"id": "c", "colour": "red"}')

    with caplog.at_level(logging.WARNING):
        found = uploads.every()

    assert found == [sound]
    assert damaged.id in caplog.text
    for upload in (damaged, old):
        with pytest.raises(
            LibraryError,
            match=f"the record of file '{upload.id}' is damaged: upload the file again",
        ):
            uploads.get(upload.id)
