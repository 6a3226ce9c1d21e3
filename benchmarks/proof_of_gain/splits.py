"""Splits: passages of documents that are held out whole, and the corpus of all others.

What is scored of a passage, its suffix, is in no other document, whatever the white space: a place
where it is gets no passage. Near copies of a held-out document stay in the corpus, as they would in
that of its owner. In code a prefix ends where a line ends, so that the next line can be asked for.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.proof_of_gain.next_line import first_line, is_worth_asking
from benchmarks.quality.passages import Passage, shingles
from selection.ingest.ingest import Document

# At most one of this number of documents that may be held out is held out.
_HELD_OUT_OF = 3
# Random places that are tried in a document for each of its passages.
_TRIES = 40
_SEED = 0
_RELEASE_FOLDER = re.compile(r"^[^/]*/|\bv\d+/")


@dataclass(frozen=True)
class Cut:
    """How passages are cut.

    Attributes:
        prefix: tokens that are the prompt.
        suffix: tokens that are scored.
        at_line_end: whether a prefix ends where a line ends, and the suffix has the next one.
    """

    prefix: int
    suffix: int
    at_line_end: bool


@dataclass(frozen=True)
class Split:
    """Held-out passages, and the documents of the corpus.

    Attributes:
        passages: the passages, in turn one of each document.
        rest: the documents that were not held out.
        places_refused: places without a passage, because another document has its suffix.
    """

    passages: tuple[Passage, ...]
    rest: tuple[Document, ...]
    places_refused: int


def split(
    documents: Sequence[Document],
    may_be_held_out: re.Pattern[str],
    passages: int,
    per_document: int,
    cut: Cut,
    tokenizer: Any,
) -> Split:
    """Hold out documents, at random.

    Args:
        documents: all documents.
        may_be_held_out: matches the whole name of each that may be held out.
        passages: how many passages are wanted; there are fewer where documents are few.
        per_document: passages of a document, at most; there are more where documents are few.
        cut: how passages are cut.
        tokenizer: the base model's.
    """
    generator = random.Random(_SEED)  # noqa: S311
    texts = {document.name: _without_white_space(document.text) for document in documents}
    eligible = [one for one in documents if may_be_held_out.fullmatch(one.name)]
    most = len(eligible) // _HELD_OUT_OF
    each = max(per_document, -(-passages // max(most, 1)))
    found: list[list[Passage]] = []
    refused = 0
    for document in generator.sample(eligible, len(eligible)):
        if len(found) == most or sum(map(len, found)) >= passages:
            break
        others = [text for name, text in texts.items() if name != document.name]
        places = _Places(document, cut, tokenizer)
        made: list[Passage] = []
        for _ in range(_TRIES * each):
            if len(made) == each:
                break
            passage = places.draw(generator)
            if passage is None:
                continue
            if _occurs(passage.suffix, others):
                refused += 1
                continue
            places.take(passage)
            made.append(passage)
        if made:
            found.append(made)
    held_out = {passage.name for made in found for passage in made}
    rest = tuple(document for document in documents if document.name not in held_out)
    in_turn = [made[n] for n in range(each) for made in found if n < len(made)]
    return Split(tuple(in_turn[:passages]), rest, refused)


def first_bytes(
    documents: Sequence[Document], held_out: Sequence[Passage], limit: int | None
) -> list[Document]:
    """Documents up to a number of bytes, those of all releases together: other releases of those
    held out make at most half of them, unless there are no more of the others.
    """
    if limit is None:
        return [*documents]
    paths = {_path(passage.name) for passage in held_out}

    def order(document: Document) -> str:
        return hashlib.sha256(_path(document.name).encode()).hexdigest()

    in_order = sorted(documents, key=order)
    others, siblings = (
        [each for each in in_order if (_path(each.name) in paths) == is_sibling]
        for is_sibling in (False, True)
    )
    kept: list[Document] = []
    left = limit
    for candidates, share in ((siblings, limit // 2), (others, limit), (siblings, limit)):
        # What may still be taken of these, and of all.
        most = min(share, left)
        for document in candidates:
            size = len(document.text.encode())
            if size <= most and document not in kept:
                kept.append(document)
                most, left = most - size, left - size
    return kept


def without_near_copies(documents: Sequence[Document]) -> list[Document]:
    """Documents of which less than half of the runs of eight words are in those before them."""
    known: set[int] = set()
    kept = []
    for document in documents:
        own = shingles(document.text)
        if not own or 2 * len(own & known) < len(own):
            kept.append(document)
            known |= own
    return kept


def verbatim(passages: Sequence[Passage], documents: Sequence[Document]) -> int:
    """Number of passages whose suffix is in one of the documents."""
    texts = [_without_white_space(document.text) for document in documents]
    return sum(_occurs(passage.suffix, texts) for passage in passages)


class _Places:
    """The places of a document where a passage can be cut, and those that are taken."""

    def __init__(self, document: Document, cut: Cut, tokenizer: Any) -> None:
        encoded = tokenizer(
            document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        self._document, self._cut = document, cut
        self._ids, self._offsets = encoded["input_ids"], encoded["offset_mapping"]
        self._taken: list[int] = []
        middles = range(cut.prefix, len(self._ids) - cut.suffix + 1)
        self._middles = [*self._line_ends(middles)] if cut.at_line_end else [*middles]

    def draw(self, generator: random.Random) -> Passage | None:
        """A passage at a random place; None where it overlaps with another one, or if the line
        after its prefix is not worth asking for.
        """
        if not self._middles:
            return None
        middle = generator.choice(self._middles)
        start, end = middle - self._cut.prefix, middle + self._cut.suffix
        if any(abs(start - taken) < end - start for taken in self._taken):
            return None
        text, offsets = self._document.text, self._offsets
        suffix = text[offsets[middle][0] : offsets[end - 1][1]]
        if self._cut.at_line_end and not _has_next_line(suffix):
            return None
        return Passage(
            str(self._document.metadata["domain"]),
            self._document.name,
            start,
            tuple(self._ids[start:end]),
            text[offsets[start][0] : offsets[middle][0]],
            suffix,
        )

    def take(self, passage: Passage) -> None:
        """Let no further passage overlap with this one."""
        self._taken.append(passage.start)

    def _line_ends(self, middles: range) -> Iterator[int]:
        """Tokens that begin with the end of a line that is not blank."""
        text = self._document.text
        for middle in middles:
            start, end = self._offsets[middle]
            if text[start:end].startswith("\n") and text[:start].rpartition("\n")[2].strip():
                yield middle


def _has_next_line(suffix: str) -> bool:
    """Whether a suffix has the whole next line, and that is worth asking for."""
    line = first_line(suffix)
    return is_worth_asking(line) and "\n" in suffix[suffix.index(line) :]


def _occurs(suffix: str, texts: Sequence[str]) -> bool:
    sought = _without_white_space(suffix)
    return any(sought in text for text in texts)


def _without_white_space(text: str) -> str:
    return "".join(text.split())


def _path(name: str) -> str:
    """The name of a document without its release."""
    return _RELEASE_FOLDER.sub("", name)
