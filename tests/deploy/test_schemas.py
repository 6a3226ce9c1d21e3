"""Files for other programs follow the schemas of those programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_SCHEMAS = {
    "deploy/compose.yaml": "vendor.compose-spec",
    "deploy/compose.postgres.yaml": "vendor.compose-spec",
    ".github/workflows/ci.yml": "vendor.github-workflows",
}


def check(file: Path, schema: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("file", "schema"), _SCHEMAS.items())
def test_each_file_follows_its_programs_schema(file: str, schema: str) -> None:
    checked = check(_ROOT / file, schema)

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(("file", "schema"), _SCHEMAS.items())
def test_an_unknown_key_is_rejected_by_the_schema(file: str, schema: str, tmp_path: Path) -> None:
    other = tmp_path / Path(file).name
    other.write_text((_ROOT / file).read_text() + "\nunheard-of: 1\n")

    assert "unheard-of" in check(other, schema).stdout
