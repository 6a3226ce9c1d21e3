"""A journal of measurements, with which an interrupted run continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.command_line import progress


class Journal:
    """Measurements by name, in a JSON file that is replaced atomically."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the measurement of this name, and make it unless a former run did."""
        if name not in self._done:
            progress(name)
            self.record(name, measure())
        return self._done[name]

    def record(self, name: str, result: Any) -> None:
        """Keep a measurement in place of the one of this name, if there is one."""
        # Through JSON, so that a new result and one that was read have the same types.
        self._done[name] = json.loads(json.dumps(result))
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._done))
        new.replace(self._file)
