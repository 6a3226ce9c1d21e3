"""Held-out passages of vLLM's installed sources, which are younger than the models, and a corpus of
the other files: the first tokens of a passage are the prompt, the next ones are scored.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "vllm.lora"
PREFIX, SUFFIX = 128, 128  # tokens
# Every third file is held out if it is long enough, up to this number.
_EVERY, _MAX_HELD_OUT = 3, 12


@dataclass(frozen=True)
class Passage:
    """A passage of a file that the corpus does not contain.

    Attributes:
        name: the file's path in its package.
        tokens: PREFIX + SUFFIX tokens.
        prefix: text of the first PREFIX tokens.
        suffix_bytes: length of the rest, in bytes of UTF-8.
    """

    name: str
    tokens: tuple[int, ...]
    prefix: str
    suffix_bytes: int

    def bits_per_byte(self, logprobs: list[Mapping[str, Mapping[str, float]] | None]) -> float:
        """The score of the suffix, from the log-probabilities of all tokens."""
        scored = [next(iter(each.values()))["logprob"] for each in logprobs[PREFIX:] if each]
        if len(scored) != SUFFIX:
            raise RuntimeError(f"the answer scores {len(scored)} tokens, not {SUFFIX}")
        return -sum(scored) / math.log(2) / self.suffix_bytes


def write_corpus_files(folder: Path, tokenizer: Any) -> list[Passage]:
    """Copy the files of a corpus to a folder, and return the passages of those held out.

    Args:
        folder: made anew.
        tokenizer: the model's.
    """
    shutil.rmtree(folder, ignore_errors=True)
    root = _package_folder()
    passages: list[Passage] = []
    files = [file for file in sorted(root.rglob("*.py")) if file.stat().st_size]
    for number, file in enumerate(files):
        name = file.relative_to(root)
        held_out = number % _EVERY == 1 and len(passages) < _MAX_HELD_OUT
        passage = _passage(file.read_text(), name.as_posix(), tokenizer) if held_out else None
        if passage is not None:
            passages.append(passage)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / name)
    return passages


def _passage(text: str, name: str, tokenizer: Any) -> Passage | None:
    """The passage after the first third of a text; None if the text is too short."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start = len(encoded["input_ids"]) // 3
    ids = encoded["input_ids"][start : start + PREFIX + SUFFIX]
    if len(ids) < PREFIX + SUFFIX:
        return None
    offsets = encoded["offset_mapping"][start : start + PREFIX + SUFFIX]
    first, middle, last = offsets[0][0], offsets[PREFIX][0], offsets[-1][1]
    return Passage(name, tuple(ids), text[first:middle], len(text[middle:last].encode()))


def _package_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
