"""Domains of text, like those of the Pile, from pinned distributions.

Each domain is a set of files of a few source distributions (`domains.txt`: name, version, SHA-256),
which `unearth` downloads from pip's package index; other benchmarks have other pins. They are read
in memory, never built, installed or run. The bundled model was trained on wheels
(`deploy/nano/data.txt`), some of these projects; what is read here is not in wheels: manuals,
tests, and code in other languages. The Python domain is of projects that the bundled model never
saw. No package carries enough mail or issues for a domain of them.
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
# Of a file; longer ones are tables or generated.
MIN_BYTES, MAX_BYTES = 200, 200_000
_PIN = re.compile(r"^(\S+?)==(\S+) --hash=sha256:(\w+)$", re.MULTILINE)
_ONLY_AS_WHEEL = frozenset({"spdx"})


@dataclass(frozen=True)
class Domain:
    """A kind of text.

    Attributes:
        name: name of the domain.
        files: by distribution, a pattern that matches the whole path of each file. Where several
            versions of a distribution are pinned, it is `name==version`.
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


def fetch(names: Iterable[str], folder: Path, unearth: Path, pins: Path = PINS) -> dict[str, Path]:
    """Download pinned distributions that the folder does not have; return the path of each.

    Args:
        names: names of distributions, each with `==` and its version where several are pinned.
        folder: folder of downloads.
        unearth: path of the command `unearth`.
        pins: file of the pins.

    Raises:
        RuntimeError: a download failed or differs from its pin; the message has the output's end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pinned = _pinned(pins)
    found = _by_digest(folder)
    for each in names:
        name, version, digest = pinned[each]
        if digest not in found:
            progress(f"downloading {name} {version}")
            format_options = [] if name in _ONLY_AS_WHEEL else ["--no-binary"]
            command = [
                str(unearth),
                *_index(),
                *format_options,
                "--download",
                str(folder),
                f"{name}=={version}",
            ]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            found = _by_digest(folder)
            if digest not in found:
                output = (run.stdout + run.stderr)[-500:]
                raise RuntimeError(
                    f"{name} {version} with SHA-256 {digest} could not be downloaded:\n{output}"
                )
    return {each: found[pinned[each][2]] for each in names}


def pinned_names(pins: Path) -> list[str]:
    """`name==version` of all distributions in a file of pins."""
    return [f"{name}=={version}" for name, version, _ in _PIN.findall(pins.read_text())]


def read(
    domain: Domain,
    archives: Mapping[str, Path],
    *,
    distinct: bool = True,
    max_bytes: int = MAX_BYTES,
) -> list[Document]:
    """Files of a domain, with the domain in their metadata, ordered by hash of name.

    Args:
        domain: the domain.
        archives: path of each of its distributions.
        distinct: whether files of the same content count once.
        max_bytes: bytes of a file; longer ones are left out.
    """
    documents: dict[str, Document] = {}
    for name, pattern in domain.files.items():
        for path, content in _members(archives[name], re.compile(pattern), max_bytes):
            try:
                text = content.decode().replace("\r\n", "\n")
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                document = Document(f"{name}/{path}", text, {"domain": domain.name})
                documents.setdefault(text if distinct else document.name, document)
    return sorted(
        documents.values(), key=lambda document: hashlib.sha256(document.name.encode()).digest()
    )


def _members(
    archive: Path, pattern: re.Pattern[str], max_bytes: int
) -> Iterator[tuple[str, bytes]]:
    """Matching files of a wheel or source distribution; the latter's paths lack the top folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if pattern.fullmatch(info.filename) and MIN_BYTES <= info.file_size <= max_bytes:
                    yield info.filename, wheel.read(info)
        return
    with tarfile.open(archive) as source:
        for member in source:
            path = member.name.partition("/")[2]
            content = (
                source.extractfile(member) if member.isfile() and pattern.fullmatch(path) else None
            )
            if content is not None and MIN_BYTES <= member.size <= max_bytes:
                yield path, content.read()


def _pinned(pins: Path) -> dict[str, tuple[str, str, str]]:
    """Name, version and digest of each distribution, by its name with and without the version."""
    pinned: dict[str, tuple[str, str, str]] = {}
    for pin in _PIN.findall(pins.read_text()):
        pinned[pin[0]] = pinned[f"{pin[0]}=={pin[1]}"] = pin
    return pinned


def _by_digest(folder: Path) -> dict[str, Path]:
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in folder.iterdir()}


def _index() -> list[str]:
    """Options for the package index that pip is configured to use, if any."""
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    url = os.environ.get("PIP_INDEX_URL") or configured.stdout.strip()
    return ["--index-url", url] if url else []
