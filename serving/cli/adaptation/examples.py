"""Examples and texts from a file, for a request: the rows that a corpus takes.

Nothing heavy is imported before a file is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.budget import ExamplesAs
from serving.errors import SettingsError

if TYPE_CHECKING:
    from selection.examples.example import Example

ExamplesFile = Annotated[
    Path | None,
    typer.Option(
        "--examples",
        help="JSON lines or Parquet file of examples to learn from: each row has `messages`, or a "
        "`prompt` and a `completion`, or a `text`.",
        show_default="none",
    ),
]
ExamplesForm = Annotated[
    ExamplesAs | None,
    typer.Option(
        "--examples-as",
        help="Train on each example by itself (single), or after the others (leave-one-out).",
        show_default="leave-one-out for two or more",
    ),
]


@dataclass(frozen=True)
class FileExamples:
    """What a file brings to a request.

    Attributes:
        name: name of the file.
        examples: conversations that end with the answer they should get.
        texts: texts to learn from.
    """

    name: str
    examples: tuple[Example, ...]
    texts: tuple[str, ...]

    def __str__(self) -> str:
        counts = (("example", len(self.examples)), ("text", len(self.texts)))
        parts = [f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts if n]
        return f"{' and '.join(parts)} from {self.name}"

    def as_options(self) -> dict[str, Any]:
        """The fields of `adaptation` in the body of a request."""
        examples = [json.loads(example.to_json()) for example in self.examples]
        fields = {"examples": examples, "texts": list(self.texts)}
        return {name: values for name, values in fields.items() if values}


def read_examples(file: Path) -> FileExamples:
    """Read a file of examples.

    Raises:
        SelectionError: a row is invalid; the message names it.
        SettingsError: the file cannot be read, or is empty.
    """
    from selection.ingest.tables import read_rows

    try:
        rows = list(read_rows(file, file.name, _ignore, _ignore, _ignore))
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise SettingsError(f"examples {str(file)!r}: {reason}; check the path") from problem
    examples = tuple(row.example for row in rows if row.example is not None)
    texts = tuple(row.text for row in rows if row.example is None)
    if not rows:
        raise SettingsError(
            f"examples {str(file)!r}: the file has no rows; each line is an example"
        )
    return FileExamples(file.name, examples, texts)


def _ignore(*_: object) -> None:
    """For what a reader of large files reports: progress, rows without a text, and examples that
    are rendered later.
    """
