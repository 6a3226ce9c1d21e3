"""Changes of the API keys in a database: checked as a whole, and made as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selection.location import DatabaseLocation
from serving.api_keys.changes import add_key, load_keys, remove_key, stored_keys
from serving.api_keys.database import keys_required
from serving.errors import SettingsError
from tests.serving.api_keys.key_files import key_file


def test_a_key_is_added_once_and_replaced_on_request(postgres: DatabaseLocation) -> None:
    first = add_key(postgres, "alice", {"corpora": ["nx"], "max_steps": 5})
    with pytest.raises(SettingsError, match=r"there is a key 'alice' in .*--replace"):
        add_key(postgres, "alice", {})

    second = add_key(postgres, "alice", {"max_steps": 7}, replace=True)

    assert first != second
    assert stored_keys(postgres) == ({"alice": {"corpora": ["nx"], "max_steps": 7}}, {})


@pytest.mark.parametrize(
    "entries", [{"max_steps": -1}, {"budget": "much"}, {"colour": "red"}, {"corpora": "*"}]
)
def test_an_invalid_entry_is_not_stored(
    postgres: DatabaseLocation, entries: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"must|unknown|budget"):
        add_key(postgres, "alice", entries)

    assert stored_keys(postgres) == ({}, {})
    assert not keys_required(postgres)


def test_a_key_file_is_loaded_as_a_whole_or_not_at_all(
    postgres: DatabaseLocation, tmp_path: Path
) -> None:
    loaded = load_keys(postgres, key_file(tmp_path, alice="a", bob="b", carol="c"))
    again = load_keys(postgres, key_file(tmp_path, alice="a", bob="new", dave="b"))

    assert (loaded.added, loaded.replaced, loaded.unchanged) == (("alice", "bob", "carol"), (), ())
    assert (again.added, again.replaced, again.unchanged) == (("dave",), ("bob",), ("alice",))
    before = stored_keys(postgres)
    assert [*before[0]] == ["alice", "bob", "carol", "dave"]

    file = key_file(tmp_path, eve="e", frank="c")
    with pytest.raises(SettingsError, match="carol and frank have the same secret"):
        load_keys(postgres, file)
    file.write_text(file.read_text() + "[keys.grace]\n")
    with pytest.raises(SettingsError, match="key 'grace': `sha256`"):
        load_keys(postgres, file)
    with pytest.raises(SettingsError, match="eve and frank have the same secret"):
        load_keys(postgres, key_file(tmp_path, eve="e", frank="e"))
    with pytest.raises(SettingsError, match="cannot read the key file"):
        load_keys(postgres, tmp_path / "nowhere.toml")
    assert stored_keys(postgres) == before


def test_only_a_key_that_exists_is_removed(postgres: DatabaseLocation) -> None:
    add_key(postgres, "alice", {})

    with pytest.raises(SettingsError, match=r"there is no key 'bob' in .*mayfly key list"):
        remove_key(postgres, "bob")
    assert remove_key(postgres, "alice") == 0
