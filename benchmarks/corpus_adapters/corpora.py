"""The corpora and the passages that are held out of them.

Each corpus is of one domain of text, or of several. Documents that share much with a passage are
left out, rather than filtered out by requests, which then could not start from the corpus's
adapter.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.corpus_adapters.learning import open_selector
from benchmarks.harness.provenance import CACHE, ROOT
from benchmarks.quality.domains import DOMAINS, Domain, fetch, read
from benchmarks.quality.passages import Passage, PassageSet, make_set
from benchmarks.quality.probe_curves import slice_of_each
from selection.ingest.ingest import Chunking, Document

UNEARTH = ROOT / ".cache" / "tools" / "bin" / "unearth"
USED = ("Python", "Rust", "TypeScript", "reference", "changelogs", "legal")
MIXED, LARGE = "mixed", "large"
# The corpus LARGE has at least this number of sequences, which are short: those of the default
# length would take hours to embed and to train on.
LARGE_SEQUENCES = 50_000
_LARGE_CHUNKING, _LARGE_BYTES = Chunking(max_length=64), 9_600_000
# The mixed corpus is that many times as large as one of a domain.
_MIXED_SIZE = 3


@dataclass(frozen=True)
class Size:
    """The amount of work with one model.

    Attributes:
        kinds: the corpora: domains, MIXED or LARGE.
        trainings: name of the trainings that are compared.
        passages: passages of each corpus.
        prefix: tokens of a passage that are the prompt.
        suffix: tokens of a passage that are scored.
        corpus_bytes: bytes of text of a corpus of one domain.
    """

    kinds: tuple[str, ...]
    trainings: str
    passages: int
    prefix: int
    suffix: int
    corpus_bytes: int


_REPORTED = tuple(name for name in USED if name != "TypeScript")
# For the bundled model, for a real one, and to see whether all works.
NANO_SIZE = Size((*_REPORTED, MIXED), "served", 40, 128, 128, 300_000)
REAL_SIZE = Size(NANO_SIZE.kinds, "rates", 12, 384, 96, 100_000)
QUICK_SIZE = Size(("Python", MIXED), "short", 2, 128, 128, 60_000)


@dataclass(frozen=True)
class HeldOut:
    """A corpus, and the passages that were held out of it.

    Attributes:
        corpus: name of the corpus in its home.
        sequences: number of its sequences.
        passages: the passages.
        facts: what else a result says of the corpus.
    """

    corpus: str
    sequences: int
    passages: tuple[Passage, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> HeldOut:
        """The inverse of `as_dict`."""
        passages = (
            Passage(**{**each, "tokens": tuple(each["tokens"])}) for each in fields["passages"]
        )
        return cls(fields["corpus"], fields["sequences"], tuple(passages), fields["facts"])


def hold_out(model: str, size: Size, kind: str, home: Path) -> HeldOut:
    """Make a corpus, unless a former run has, and hold out its passages.

    Args:
        model: folder of the base model.
        size: the amount of work.
        kind: a domain, MIXED or LARGE.
        home: gets the corpus.

    Raises:
        RuntimeError: a download failed, or LARGE has too few sequences.
        ValueError: a domain has too few documents that are long enough.
    """
    names = USED if kind in (MIXED, LARGE) else (kind,)
    groups = {each.name: _documents(each) for each in DOMAINS if each.name in names}
    several = {MIXED: _MIXED_SIZE * size.corpus_bytes, LARGE: _LARGE_BYTES}
    max_bytes = several[kind] // len(names) if kind in several else size.corpus_bytes
    selector = open_selector(home, model)
    try:
        made = make_set(
            f"adapter-{re.sub(r'[^a-z]', '-', kind.lower())}",
            groups,
            math.ceil(size.passages / len(groups)),
            model,
            selector,
            max_bytes=max_bytes,
            prefix_tokens=size.prefix,
            suffix_tokens=size.suffix,
            near_left_out=True,
            chunking=_LARGE_CHUNKING if kind == LARGE else None,
        )
    finally:
        selector.corpora.close()
    if kind == LARGE and made.sequences < LARGE_SEQUENCES:
        raise RuntimeError(f"{made.sequences} sequences, and not {LARGE_SEQUENCES}")
    return HeldOut(made.corpus, made.sequences, _first(made, size.passages))


def copied(home: Path, corpus: str, other: Path) -> None:
    """Copy a corpus to another home, unless that has it: each has an adapter of its own there."""
    target = other / "corpora" / corpus
    if not target.exists():
        unfinished = target.with_name(f"{corpus}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(home / "corpora" / corpus, unfinished)
        unfinished.rename(target)


def _first(made: PassageSet, count: int) -> tuple[Passage, ...]:
    """The first passages, some of each domain."""
    return tuple(slice_of_each(made.passages, 0, count)[:count])


def _documents(domain: Domain) -> list[Document]:
    return read(domain, fetch(domain.files, CACHE / "distributions", UNEARTH))
