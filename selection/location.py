"""Location: where corpora are stored. A folder, whose subfolders are corpora, is a `Path`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

# Where all corpora are; `location / name` is the place of one of them.
Location: TypeAlias = Path
Place: TypeAlias = Path
