"""Domains: which files of an archive are read, and that archives must match their pins."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.quality.domains import DOMAINS, PINS, Domain, fetch, read

SOURCE = {
    "docs/one.txt": b"first\r\n" * 50,
    "docs/same.txt": b"first\n" * 50,
    "docs/deep/two.txt": b"second\n" * 50,
    "docs/short.txt": b"short",
    "docs/binary.txt": b"\xff\x00" * 200,
    "code/three.py": b"third\n" * 50,
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in SOURCE.items():
            info = tarfile.TarInfo(f"thing-1.0/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_distinct_files_are_read_by_pattern(archive: Path) -> None:
    documents = read(Domain("manuals", {"thing": r"docs/.*\.txt"}), {"thing": archive})

    assert sorted(document.name for document in documents) == [
        "thing/docs/deep/two.txt",
        "thing/docs/one.txt",
    ]
    assert all(document.metadata == {"domain": "manuals"} for document in documents)
    assert not any("\r" in document.text for document in documents)


def test_a_wheel_is_read_like_a_source_distribution(tmp_path: Path) -> None:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("thing/data/a.txt", "first\n" * 50)
        wheel.writestr("thing/data/a.json", "{}" * 200)

    (document,) = read(Domain("data", {"thing": r"thing/data/.*\.txt"}), {"thing": path})

    assert document.name == "thing/thing/data/a.txt"


def test_every_distribution_is_pinned_once() -> None:
    pinned = re.findall(r"^(\S+)==\S+ --hash=sha256:[0-9a-f]{64}$", PINS.read_text(), re.MULTILINE)

    assert pinned == sorted(set(pinned))
    assert set(pinned) == {name for domain in DOMAINS for name in domain.files}


def test_an_archive_that_differs_from_its_pin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spdx-2.5.1-py2.py3-none-any.whl").write_bytes(b"something else")
    command = tmp_path / "unearth"
    command.write_text("#!/bin/sh\necho no such thing; exit 1\n")
    command.chmod(0o755)

    with pytest.raises(
        RuntimeError, match=r"spdx 2.5.1 with SHA-256 24b45bf1\w+ could not be downloaded:\nno such"
    ):
        fetch(["spdx"], tmp_path, command)
