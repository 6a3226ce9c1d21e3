"""Fixtures of the library's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selection.embedding import Embedder
from selection.library.library import Library


@pytest.fixture
def opened(corpora: Path, words: Embedder, tokenizer: Any) -> Iterator[Callable[..., Library]]:
    """Opens the library of this test's corpora, any number of times, and closes them all."""
    libraries: list[Library] = []

    def open_library(embedder: Embedder = words) -> Library:
        libraries.append(Library(corpora, embedder, tokenizer, corpora.parent / "files"))
        return libraries[-1]

    yield open_library
    for library in libraries:
        library.close()


@pytest.fixture
def library(opened: Callable[..., Library]) -> Library:
    return opened()
