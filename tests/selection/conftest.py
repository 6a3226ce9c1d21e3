"""Fixtures of the library's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selection.embedding import Embedder
from selection.library.library import Library
from selection.threaded_embedder import ThreadedEmbedder


@pytest.fixture
def open_library(
    corpora: Path, words: Embedder, tokenizer: Any
) -> Iterator[Callable[..., Library]]:
    """Opens this test's library, any number of times; the libraries are closed at the end."""
    libraries: list[Library] = []

    def make(embedder: Embedder = words) -> Library:
        libraries.append(
            Library(
                corpora, ThreadedEmbedder(lambda: embedder), tokenizer, corpora.parent / "files"
            )
        )
        return libraries[-1]

    yield make
    for library in libraries:
        library.close()


@pytest.fixture
def library(open_library: Callable[..., Library]) -> Library:
    return open_library()
