"""A file of measurements, with which an interrupted run continues."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.quality.variants import Measurement, record


class MeasurementFile:
    """Measurements by key, a line of JSON each; an incomplete line is ignored.

    Attributes:
        measurements: all measurements of the file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.measurements: dict[str, Measurement] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            key = fields.pop("key")
            self.measurements[key] = Measurement(**fields)
        if file.exists():
            # The last line may be incomplete, if a run was killed.
            with file.open("a") as lines:
                lines.write("\n")

    def append(self, key: str, measurement: Measurement) -> None:
        """Add a measurement to the file."""
        self.measurements[key] = measurement
        with self._file.open("a") as lines:
            lines.write(json.dumps({"key": key, **record(measurement)}) + "\n")
