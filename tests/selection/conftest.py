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


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL database."""
    from tests.selection import postgres_server

    with postgres_server.server() as server, postgres_server.database(server) as url:
        yield url


@pytest.fixture
def postgres(postgres_url: str, tmp_path: Path) -> DatabaseLocation:
    """A PostgreSQL database without corpora."""
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('mayfly.corpora')").fetchone() != (None,):
            connection.execute("TRUNCATE mayfly.corpora CASCADE")
    return DatabaseLocation(postgres_url, tmp_path / "cache")


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Every place where corpora can be, without any."""
    if request.param == "postgres":
        database: DatabaseLocation = request.getfixturevalue("postgres")
        return database
    folder = tmp_path / "corpora"
    folder.mkdir()
    return folder
