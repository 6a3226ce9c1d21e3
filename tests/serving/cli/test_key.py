"""`mayfly key new`: the printed entry authenticates the printed secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from selection.access import Principal
from serving.api_keys.keys import Keys
from serving.budget import Budget
from serving.cli.key import key_app

_app = typer.Typer()
_app.add_typer(key_app, name="key")


def test_the_entry_of_a_new_key_authenticates_its_secret(tmp_path: Path) -> None:
    made = [CliRunner().invoke(_app, ["key", "new", name]) for name in ("alice", "bob-2")]

    file = tmp_path / "keys.toml"
    file.write_text("".join(each.stdout for each in made))
    keys = Keys([], file, Budget(50), Budget(50))
    secrets = [re.findall(r"mf-[A-Za-z0-9_-]{32}$", each.stderr.strip()) for each in made]

    assert [each.exit_code for each in made] == [0, 0]
    for name, (secret,) in zip(("alice", "bob-2"), secrets, strict=True):
        assert keys.find(f"Bearer {secret}").principal == Principal(name, frozenset())
        assert secret not in file.read_text()
    assert secrets[0] != secrets[1]


@pytest.mark.parametrize("name", ["two words", "a.b", "größe", "", "x" * 65, "a]\n[keys.b"])
def test_a_name_that_toml_would_have_to_quote_is_an_error(name: str) -> None:
    result = CliRunner().invoke(_app, ["key", "new", name])

    assert result.exit_code == 2
    assert result.stdout == ""
