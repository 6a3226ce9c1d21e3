"""What a former run has measured on passages, on this machine or another one; a run of the same
code and size adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.corpus_adapters.result import merged
from benchmarks.corpus_adapters.study import Study


class FormerRun:
    """The part of a result's file that a run adds to: empty if there is none, or if it is of other
    code or of another size.

    Args:
        file: the result's file; None for none.
        part: name of the part.
        key: what its measurements depend on.
    """

    def __init__(self, file: Path | None, part: str, *key: object) -> None:
        self._key = sha256(repr(key).encode()).hexdigest()
        stored = merged(file, {}).get(part, {})
        self._part = stored if stored.get("key") == self._key else {}

    def add_to(self, study: Study, scores: Callable[[Mapping[str, Any]], Any]) -> None:
        """Let a study measure none of these passages again.

        Args:
            study: the study.
            scores: what the study measures, of a row.
        """
        for row in self._rows:
            study.add(row["key"], scores(row))

    def with_rows(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows of both runs; those of a passage that both have are of this one."""
        return [*{row["key"]: row for row in (*self._rows, *rows)}.values()]

    def fields(
        self, origin: Mapping[str, Any], measured: int, *tables: tuple[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Fields of the part after this run: its key, its runs, and tables by corpus.

        Args:
            origin: of this run.
            measured: number of rows of both runs.
            tables: name and content; of a corpus that this run did not come to, it is the former
                content.
        """
        rows = measured - len(self._rows)
        runs = [*self._part.get("runs", ()), *([{**origin, "rows": rows}] if rows else [])]
        both = {name: {**self._part.get(name, {}), **found} for name, found in tables}
        return {"key": self._key, "runs": runs, **both}

    @property
    def _rows(self) -> Sequence[Mapping[str, Any]]:
        rows: Sequence[Mapping[str, Any]] = self._part.get("rows", ())
        return rows
