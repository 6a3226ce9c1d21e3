"""Measurements of variants on passages, and the file with which an interrupted run continues.

Knows neither how they are made nor what is computed from them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """The result of a variant on a passage.

    Attributes:
        variant: name of the variant.
        group: group of the passage.
        document: document of the passage.
        passage: key of the passage.
        prompt: bits per byte of the prefix, by steps.
        bits: bits per byte of the suffix, by steps taken before; "0" is the base model. For a
            variant in context, by sequences before the prompt.
        sigma: sigma_0 to sigma_n.
        irreducible: sigma_infinity.
        losses: nats per token before each step.
        choosing_seconds: seconds to embed, search and select.
        step_seconds: seconds from the start of training to the end of each step.
        alone: whether the passage was adapted with nothing else computing.
        distinct: number of distinct sequences selected.
    """

    variant: str
    group: str
    document: str
    passage: str
    prompt: dict[str, float]
    bits: dict[str, float]
    sigma: tuple[float, ...]
    irreducible: float
    losses: tuple[float, ...]
    choosing_seconds: float
    step_seconds: tuple[float, ...]
    alone: bool
    distinct: int

    @property
    def surprise(self) -> float:
        """Bits per byte of the prompt under the base model."""
        return self.prompt["0"]

    @property
    def base(self) -> float:
        """Bits per byte of the base model."""
        return self.bits["0"]

    @property
    def last(self) -> float:
        """Bits per byte after all steps."""
        return self.bits[max(self.bits, key=int)]


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


def record(row: Measurement) -> dict[str, Any]:
    """A measurement for a line of JSON, with five significant digits."""
    fields = asdict(row)
    rounded: dict[str, Any] = {name: _round(value) for name, value in fields.items()}
    return rounded


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _round(value) for key, value in value.items()}
    return [_round(value) for value in value] if isinstance(value, tuple | list) else value
