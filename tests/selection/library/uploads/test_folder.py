"""Uploads in a folder: a file exists completely or not at all, and its name is never a path."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selection.errors import LibraryError
from selection.library.library import Library
from selection.library.uploads.folder import FolderUploads
from tests.selection.library_helpers import ALL, CATS, attach_and_wait, documents


@pytest.mark.parametrize(
    "name", ["../../escape.md", "/etc/passwd", "..", ".", "a/b\\c.md", "ünï 日本 🦋.md", "x" * 255]
)
def test_a_file_name_is_only_a_name(library: Library, corpora: Path, name: str) -> None:
    library.create_store("notes")

    file = attach_and_wait(library, "notes", name, CATS)

    assert library.uploaded(file).name == name
    assert library.content(file) == CATS.encode()
    assert library.file("notes", file).file.status == "completed"
    assert list(documents(corpora, "notes")) == [f"{file}/{name}"]
    assert sorted(os.listdir(corpora.parent)) == ["corpora", "files"]
    assert os.listdir(corpora.parent / "files") == [file]


@pytest.mark.parametrize("name", ["", "a\0b", "line\nbreak", "half \ud800", "x" * 256, None, 7])
def test_an_invalid_file_name_is_refused(library: Library, corpora: Path, name: Any) -> None:
    with pytest.raises(LibraryError, match="a file's name must be"):
        library.upload(name, b"content")

    assert os.listdir(corpora.parent / "files") == []


def test_invalid_uploads_are_refused(library: Library) -> None:
    with pytest.raises(LibraryError, match=r"'cats.md' is empty"):
        library.upload("cats.md", b"")
    with pytest.raises(LibraryError, match="`purpose` must be one of"):
        library.upload("cats.md", b"x", "world domination")


def test_a_full_disk_leaves_nothing_of_an_upload(library: Library, corpora: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            library.upload("big.txt", b"x" * (1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert os.listdir(corpora.parent / "files") == []


def test_an_interrupted_upload_is_not_listed_and_is_removed_after_a_day(
    open_library: Callable[..., Library], corpora: Path
) -> None:
    old, recent = (
        corpora.parent / "files" / name for name in (".file-" + 24 * "0", ".file-" + 24 * "1")
    )
    for folder in (old, recent):
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(b"half")
    os.utime(old, (0, 0))

    library = open_library()

    assert library.uploads(ALL).items == ()
    assert (old.exists(), recent.exists()) == (False, True)


def test_a_damaged_record_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = FolderUploads(tmp_path / "files")
    sound, damaged, old = (uploads.add(name, b"text") for name in ("a.txt", "b.txt", "c.txt"))
    (tmp_path / "files" / damaged.id / "record.json").write_text('{"id": ')
    (tmp_path / "files" / old.id / "record.json").write_text('{"id": "c", "colour": "red"}')

    with caplog.at_level(logging.WARNING):
        found = uploads.all()

    assert found == [sound]
    assert damaged.id in caplog.text
    for upload in (damaged, old):
        with pytest.raises(
            LibraryError,
            match=f"the record of file '{upload.id}' is damaged: upload the file again",
        ):
            uploads.get(upload.id)
