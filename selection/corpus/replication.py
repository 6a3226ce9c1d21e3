"""Copies: documents of one store that another takes over to be searched, under the numbers that
they have there.

A part of a corpus (`shards`) holds numbers, vectors and metadata; texts and tokens stay where they
came from. Part of `store`, whose transactions these are.

Shapes: N sequences, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.corpus.filters import Scalar


@dataclass(frozen=True)
class Copy:
    """A document's number and those of its sequences [N], where these start, and their vectors [N,
    D].
    """

    id: int
    name: str
    sha256: str
    metadata: Mapping[str, Scalar]
    sequences: tuple[int, ...]
    starts: tuple[int, ...]
    vectors: npt.NDArray[np.float32]


class Copies:
    """What a store gives to others, and takes from them.

    Args:
        ask: runs a statement with values and returns its rows.
        reading, writing: a transaction.
        replace: within one, deletes the document of a name.
        advance: within one, counts the generation up.
    """

    def __init__(
        self,
        ask: Callable[..., list[Any]],
        reading: Callable[[], AbstractContextManager[None]],
        writing: Callable[[], AbstractContextManager[None]],
        replace: Callable[[str], object],
        advance: Callable[[], None],
    ) -> None:
        self._ask, self._reading, self._writing = ask, reading, writing
        self._replace, self._advance = replace, advance

    def give(self, document: int) -> Copy | None:
        """A document by number; None if it is not there."""
        with self._reading():
            about = self._ask(
                "SELECT name, sha256, metadata FROM documents WHERE id = ?", (document,)
            )
            rows = self._ask(
                "SELECT id, start, embedding FROM sequences WHERE document = ? ORDER BY id",
                (document,),
            )
        if not about:
            return None
        name, sha256, metadata = about[0]
        vectors = np.frombuffer(b"".join(row[2] for row in rows), np.float32)
        return Copy(
            document,
            name,
            sha256,
            json.loads(metadata),
            tuple(row[0] for row in rows),
            tuple(row[1] for row in rows),
            vectors.reshape(len(rows), len(vectors) // max(len(rows), 1)),
        )

    def take(self, copy: Copy) -> None:
        """Add a document of another store in the place of one of its name; numbers must come in
        ascending order.
        """
        with self._writing():
            self._replace(copy.name)
            self._ask(
                "INSERT INTO documents (id, name, sha256, metadata) VALUES (?, ?, ?, ?)",
                (copy.id, copy.name, copy.sha256, json.dumps(dict(copy.metadata))),
            )
            for number, start, row in zip(copy.sequences, copy.starts, copy.vectors, strict=True):
                self._ask(
                    "INSERT INTO sequences (id, document, start, text, tokens, embedding) VALUES (?, ?, ?, '', x'', ?)",
                    (number, copy.id, start, row.tobytes()),
                )
            self._advance()

    def present(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these sequences are there [K]."""
        # One value, however many they are: SQLite bounds the number of those.
        wanted = json.dumps(sequences.tolist())
        rows = self._ask(
            "SELECT id FROM sequences WHERE id IN (SELECT value FROM json_each(?))", (wanted,)
        )
        return np.isin(sequences, np.fromiter((row[0] for row in rows), np.int64))
