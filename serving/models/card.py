"""ModelCard: where a model's files come from and what was done to them, as a JSON file in the
model's folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = "mayfly.json"


@dataclass(frozen=True)
class ModelCard:
    """The origin of a model.

    Attributes:
        source: name of the file that the model was made from.
        sha256: SHA-256 of that file, in hexadecimal; empty if there is none.
        license: licence that the file states; None if it states none.
        architecture: name of the architecture.
        parameters: number of parameters; None if unknown.
        quantisation: type of number that most weights were rounded to in the file, such as "Q4_1";
            None if they were not rounded below 16 bits.
        bits: bits of that type without its scales, such as 4.
        note: what a user of the model should know about the import; None if there is nothing.
    """

    source: str
    sha256: str
    license: str | None
    architecture: str
    parameters: int | None
    quantisation: str | None = None
    bits: int | None = None
    note: str | None = None

    def write(self, folder: Path) -> None:
        """Write the card into the model's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ModelCard | None:
        """The card in a model's folder; None if there is none or it is damaged."""
        try:
            values = json.loads((folder / FILE).read_bytes())
            return cls(**{each.name: values[each.name] for each in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return None
