"""Held-out passages, and the corpora that adapters for them are trained on.

Documents come in groups, which are domains of text or installed packages. Of each group some
documents are held out whole, passages are cut from them (a prefix that is the prompt, a suffix that
is scored), and all others become the corpus. The split is by document and seeded. A document that
shares much with a passage stays in the corpus with `near` in its metadata, so that a filter can
leave it out; `share`, 0 to 99, is for filters that take a part of a corpus.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoTokenizer

from adapters import Trainer, TrainerConfig
from benchmarks.harness.command_line import progress
from selection import Corpus, Selector
from selection.ingest.ingest import Chunking, Document, ingest, tokenizer_digest

PREFIX = SUFFIX = 128  # tokens
SHINGLE_WORDS = 8


@dataclass(frozen=True)
class Passage:
    """A held-out piece of text.

    Attributes:
        group: domain or package.
        name: name of its document.
        start: index of its first token in the document.
        tokens: token ids, of which those from PREFIX on are scored.
        prefix: text of the prompt.
        suffix: text that is scored.
    """

    group: str
    name: str
    start: int
    tokens: tuple[int, ...]
    prefix: str
    suffix: str

    @property
    def key(self) -> str:
        """Identifies the passage among all."""
        return f"{self.name}@{self.start}"


@dataclass(frozen=True)
class PassageSet:
    """Passages, and the corpus of everything else.

    Attributes:
        corpus: name of the corpus.
        passages: the held-out passages.
        sequences: number of sequences in the corpus.
    """

    corpus: str
    passages: tuple[Passage, ...]
    sequences: int


def make_set(
    name: str,
    groups: Mapping[str, Sequence[Document]],
    per_group: int,
    model: str,
    selector: Selector,
    max_bytes: int | None = None,
    prefix_tokens: int = PREFIX,
    suffix_tokens: int = SUFFIX,
    near_left_out: bool = False,
    chunking: Chunking | None = None,
) -> PassageSet:
    """Hold out documents of each group and cut a passage from each; ingest all others.

    A corpus that a former run has ingested is used again.

    Args:
        name: prefix of the corpus's name.
        groups: documents by group.
        per_group: documents of each group to hold out.
        model: base model, whose tokenizer cuts the passages.
        selector: its embedder and folder are the corpus's.
        max_bytes: bytes of each group's other documents that go into the corpus; None for all.
        prefix_tokens: tokens of a passage that are the prompt.
        suffix_tokens: tokens of a passage that are scored.
        near_left_out: whether documents that share much with a passage are left out, instead of
            marked by `near`.
        chunking: how documents are split into sequences, if not as by default.

    Raises:
        ValueError: a group has too few documents that are long enough.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = random.Random(0)  # noqa: S311
    passages: list[Passage] = []
    rest: list[Document] = []
    for group, documents in groups.items():
        held_out, used = 0, 0
        for document in generator.sample(documents, len(documents)):
            passage = (
                _cut(document, group, tokenizer, generator, prefix_tokens, suffix_tokens)
                if held_out < per_group
                else None
            )
            size = len(document.text.encode())
            if passage is not None:
                passages.append(passage)
                held_out += 1
            elif max_bytes is None or used + size <= max_bytes:
                rest.append(document)
                used += size
        if held_out < per_group:
            raise ValueError(
                f"{group} has only {held_out} documents that are long enough for a passage"
            )
    near = near_duplicates(passages, rest)
    rest = [
        replace(d, metadata={**d.metadata, "near": d.name in near, "share": _share(d.name)})
        for d in rest
        if not near_left_out or d.name not in near
    ]

    corpus, sequences = make_corpus(name, passages, rest, selector, tokenizer, chunking)
    return PassageSet(corpus, tuple(passages), sequences)


def make_corpus(
    name: str,
    passages: Sequence[Passage],
    documents: Sequence[Document],
    selector: Selector,
    tokenizer: Any,
    chunking: Chunking | None = None,
) -> tuple[str, int]:
    """Ingest documents, unless a former run has; returns the corpus's name and its sequences.

    Args:
        name: prefix of the corpus's name.
        passages: passages that were held out of it, by which its name differs, too.
        documents: all its documents.
        selector: its embedder and folder are the corpus's.
        tokenizer: the base model's.
        chunking: how documents are split into sequences, if not as by default.
    """
    content: list[object] = [
        tokenizer_digest(tokenizer),
        selector.embedder.name,
        [*passages],
        [*documents],
    ]
    if chunking is not None:
        content.append(chunking)
    digest = hashlib.sha256(repr(content).encode()).hexdigest()
    corpus = Corpus.create(
        selector.config.root,
        f"{name}-{digest[:16]}",
        selector.embedder,
        tokenizer_digest(tokenizer),
    )

    def with_progress() -> Iterator[Document]:
        for number, document in enumerate(documents):
            progress(f"corpus {name}: document {number + 1} of {len(documents)}")
            yield document

    ingest(corpus, with_progress(), selector.embedder, tokenizer, chunking=chunking)
    sequences = corpus.counts()[1]
    corpus.close()
    return corpus.name, sequences


def near_duplicates(passages: Sequence[Passage], documents: Sequence[Document]) -> set[str]:
    """Names of documents that contain at least half of the shingles of some passage."""
    passages_of: dict[int, list[int]] = {}
    sizes = []
    for number, passage in enumerate(passages):
        own = shingles(passage.prefix + passage.suffix)
        sizes.append(len(own))
        for shingle in own:
            passages_of.setdefault(shingle, []).append(number)
    near = set()
    for document in documents:
        shared = Counter(
            number for shingle in shingles(document.text) for number in passages_of.get(shingle, ())
        )
        if any(2 * count >= sizes[number] for number, count in shared.items()):
            near.add(document.name)
    return near


def shingles(text: str) -> set[int]:
    """Hashes of all runs of SHINGLE_WORDS words."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return {
        hash(tuple(words[start : start + SHINGLE_WORDS]))
        for start in range(len(words) - SHINGLE_WORDS + 1)
    }


def open_scorer(config: TrainerConfig) -> Trainer:
    """A trainer for the same adapters that only scores texts, in float32."""
    return Trainer(replace(config, precision="float32", slots=1))


def _cut(
    document: Document,
    group: str,
    tokenizer: Any,
    generator: random.Random,
    prefix_tokens: int,
    suffix_tokens: int,
) -> Passage | None:
    """A passage at a random place of a document; None where the document is too short."""
    encoded = tokenizer(
        document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    length = prefix_tokens + suffix_tokens
    if len(ids) < 2 * length:
        return None
    start = generator.randrange(len(ids) - length)
    first, middle = offsets[start][0], offsets[start + prefix_tokens][0]
    last = offsets[start + length - 1][1]
    tokens = tuple(ids[start : start + length])
    return Passage(
        group, document.name, start, tokens, document.text[first:middle], document.text[middle:last]
    )


def _share(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
