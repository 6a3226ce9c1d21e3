"""Location: where corpora are stored: in a folder, or in a PostgreSQL database.

A folder, whose subfolders are corpora, is a `Path`. No message and no representation of a database
contains its password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

SCHEMES = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class DatabaseLocation:
    """The corpora in a PostgreSQL database.

    Attributes:
        url: the database, as libpq takes it, maybe with a password.
        cache: folder of this machine for what is derived from corpora.
    """

    url: str = field(repr=False)
    cache: Path

    def __truediv__(self, name: str) -> DatabasePlace:
        return DatabasePlace(self, name)

    def __str__(self) -> str:
        """User, host and name of the database, for people."""
        try:
            parts = urlsplit(self.url)
            # A password that is not escaped may be in the path.
            if "@" in parts.path:
                return "postgresql://"
            user = f"{parts.username}@" if parts.username else ""
            port = f":{parts.port}" if parts.port else ""
            return f"postgresql://{user}{parts.hostname or ''}{port}{parts.path}"
        except ValueError:
            return "postgresql://"


@dataclass(frozen=True)
class DatabasePlace:
    """One corpus in a PostgreSQL database."""

    parent: DatabaseLocation
    name: str


def home_of(location: Location) -> Path:
    """The folder of this machine that contains what is kept beside corpora, such as uploads."""
    return location.parent if isinstance(location, Path) else location.cache.parent


# Where all corpora are; `location / name` is the place of one of them.
Location: TypeAlias = Path | DatabaseLocation
Place: TypeAlias = Path | DatabasePlace
