"""Fixtures of the library's tests, and the places where corpora can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selection.embedding import Embedder
from selection.library.library import Library
from selection.location import DatabaseLocation, Location
from selection.threaded_embedder import ThreadedEmbedder


@pytest.fixture
def open_library(
    corpora: Location, words: Embedder, tokenizer: Any, tmp_path: Path
) -> Iterator[Callable[..., Library]]:
    """Opens this test's library, any number of times; the libraries are closed at the end."""
    libraries: list[Library] = []

    def make(embedder: Embedder = words) -> Library:
        libraries.append(
            Library(corpora, ThreadedEmbedder(lambda: embedder), tokenizer, tmp_path / "files")
        )
        return libraries[-1]

    yield make
    for library in libraries:
        library.close()


@pytest.fixture
def library(open_library: Callable[..., Library]) -> Library:
    return open_library()


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Every place where corpora can be, without any."""
    if request.param == "postgres":
        database: DatabaseLocation = request.getfixturevalue("postgres")
        return database
    folder = tmp_path / "corpora"
    folder.mkdir()
    return folder
