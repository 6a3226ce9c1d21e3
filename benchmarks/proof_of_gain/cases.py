"""Cases: the corpora of a domain, as they are and changed, and how much of each is measured.

Those on which strategies are compared have no adapter, so they may be larger than the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from transformers import AutoTokenizer

from benchmarks.corpus_adapters.corpora import HeldOut
from benchmarks.corpus_adapters.learning import open_selector
from benchmarks.proof_of_gain.splits import (
    Cut,
    first_bytes,
    split,
    verbatim,
    without_near_copies,
)
from benchmarks.proof_of_gain.young_text import DOMAINS, YoungDomain
from benchmarks.quality.passages import make_corpus, near_duplicates
from selection.config import BASE_MODEL, DEFAULT

CorpusKind: TypeAlias = Literal["as it is", "releases side by side", "deduplicated"]


@dataclass(frozen=True)
class Size:
    """The amount of work.

    Attributes:
        domains: names of the domains.
        trainings: name of the trainings that are compared.
        passages: passages of each domain.
        compared: how many of them compare strategies.
        per_document: passages of a document, at most.
        prefix: tokens of a passage that are the prompt.
        suffix: tokens of a passage that are scored.
        corpus_bytes: bytes of text of a corpus with an adapter; None for all.
        compared_bytes: the same of one on which strategies are compared.
        kernel_domains: the domains on which the base model's states are compared, too.
    """

    domains: tuple[str, ...]
    trainings: str
    passages: int
    compared: int
    per_document: int
    prefix: int
    suffix: int
    corpus_bytes: int | None
    compared_bytes: int | None
    kernel_domains: tuple[str, ...]


_FEW = ("a2a-sdk", "deepagents, three releases", "mcp manual")
SIZES = {
    "small": Size(
        domains=_FEW,
        trainings="short",
        passages=2,
        compared=1,
        per_document=1,
        prefix=384,
        suffix=96,
        corpus_bytes=60_000,
        compared_bytes=60_000,
        kernel_domains=(),
    ),
    "full": Size(
        domains=tuple(domain.name for domain in DOMAINS),
        trainings="full",
        passages=30,
        compared=10,
        per_document=2,
        prefix=384,
        suffix=96,
        corpus_bytes=None,
        compared_bytes=500_000,
        kernel_domains=_FEW,
    ),
}


@dataclass(frozen=True)
class Case:
    """A corpus of a domain.

    Attributes:
        domain: the domain.
        compares: whether strategies are compared, rather than all arms.
        is_deduplicated: whether near copies are left out, of its documents and of passages.
        kernel: the embedder of the corpus.
    """

    domain: YoungDomain
    compares: bool = False
    is_deduplicated: bool = False
    kernel: str = DEFAULT

    @property
    def name(self) -> str:
        """Name among all cases."""
        if not self.compares:
            return self.domain.name
        name = f"{self.domain.name}, {'deduplicated' if self.is_deduplicated else 'compared'}"
        return name if self.kernel == DEFAULT else f"{name}, {self.kernel}"

    @property
    def kind(self) -> CorpusKind:
        """What kind of corpus it is."""
        if self.is_deduplicated:
            return "deduplicated"
        return "releases side by side" if self.domain.is_side_by_side else "as it is"


def cases(size: Size) -> dict[str, Case]:
    """All cases by name: those of all arms first; the passages of a domain are in all of its."""
    domains = [domain for domain in DOMAINS if domain.name in size.domains]
    made = [
        *(Case(domain) for domain in domains),
        *(Case(domain, compares=True) for domain in domains),
        *(Case(domain, compares=True, is_deduplicated=True) for domain in domains),
        *(
            Case(domain, compares=True, kernel=BASE_MODEL)
            for domain in domains
            if domain.name in size.kernel_domains
        ),
    ]
    return {case.name: case for case in made}


def hold_out(case: Case, size: Size, model: str, home: Path) -> HeldOut:
    """Make the corpus of a case, unless a former run has, and hold out its passages: those of all
    cases of a domain are the same.

    Args:
        case: the case.
        size: the amount of work.
        model: folder of the base model.
        home: gets the corpus.

    Raises:
        RuntimeError: a download failed.
    """
    domain, tokenizer = case.domain, AutoTokenizer.from_pretrained(model)
    documents, newest = domain.documents(), re.compile(domain.held_out)
    cut = Cut(size.prefix, size.suffix, at_line_end=domain.kind == "code")
    made = split(documents, newest, size.passages, size.per_document, cut, tokenizer)
    limit = size.compared_bytes if case.compares else size.corpus_bytes
    rest = first_bytes(made.rest, made.passages, limit)
    # What is scored counts: prompts may begin with a licence that all documents have.
    scored = [replace(passage, prefix="") for passage in made.passages]
    near = near_duplicates(scored, rest)
    if case.is_deduplicated:
        # Of several releases, the newest stays.
        in_order = sorted(rest, key=lambda each: newest.fullmatch(each.name) is None)
        rest = without_near_copies([each for each in in_order if each.name not in near])
    facts = {
        "documents": len(rest),
        "bytes": sum(len(each.text.encode()) for each in rest),
        "documents_near_passages": 0 if case.is_deduplicated else len(near),
        "suffixes_in_corpus": verbatim(made.passages, rest),
        "places_refused": made.places_refused,
    }
    selector = open_selector(home, model, case.kernel)
    try:
        # A corpus's name has 64 characters at most, a digest among them.
        name = f"proof-{re.sub(r'[^a-z0-9]+', '-', case.name.lower())}"[:40]
        corpus, sequences = make_corpus(name, made.passages, rest, selector, tokenizer)
    finally:
        selector.corpora.close()
    return HeldOut(corpus, sequences, made.passages, facts)
