"""Changes of the API keys in a database, each in one transaction.

They are checked as those of a key file before anything is written. Servers notice them by
themselves (`serving.api_keys.database`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selection.location import DatabaseLocation
from serving.api_keys.database import key_table, tables_of
from serving.api_keys.key import (
    check_distinct,
    digest,
    parse_key,
    parse_keys,
    parse_tables,
    unreadable,
)
from serving.errors import SettingsError


@dataclass(frozen=True)
class Loaded:
    """What became of the keys of a file: the names of those that were added, replaced or the same
    before.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]


def new_secret() -> str:
    """A secret that nobody can guess."""
    return f"mf-{secrets.token_urlsafe(24)}"


def add_key(
    location: DatabaseLocation, name: str, entries: Mapping[str, Any], replace: bool = False
) -> str:
    """Add a key with a new secret, or give an existing one a new secret.

    Args:
        location: the database.
        name: name of the key.
        entries: its entries beside `sha256`; others of an existing key stay.
        replace: whether there may be a key of that name.

    Returns:
        The secret, which is stored nowhere.

    Raises:
        SettingsError, BudgetError: an entry is invalid, or there is such a key and `replace` is
            false.
        CorpusError: the database cannot be used.
    """
    from selection.corpus.postgres.api_keys import StoredKey

    secret = new_secret()
    with key_table(location).changing() as change:
        before = change.all().get(name)
        if before is not None and not replace:
            raise SettingsError(
                f"there is a key {name!r} in {location}: choose another name, or give it a new "
                "secret with --replace"
            )
        key = StoredKey(name, digest(secret), {**(before.entries if before else {}), **entries})
        parse_key(name, tables_of([key])[name])
        change.put([key])
    return secret


def load_keys(location: DatabaseLocation, file: Path) -> Loaded:
    """Put the keys of a key file into a database; other keys there stay.

    Raises:
        SettingsError: the file cannot be read, an entry is invalid, or two keys have one secret;
            nothing was changed.
        CorpusError: the database cannot be used.
    """
    from selection.corpus.postgres.api_keys import StoredKey

    try:
        content = file.read_bytes()
    except OSError as problem:
        raise unreadable(file, problem) from problem
    tables = parse_tables(content, file)
    keys, errors = parse_keys(tables, str(file))
    if errors:
        raise SettingsError("; ".join(errors.values()))
    check_distinct(((key.name, key.sha256) for key in keys), str(file))
    given = {
        key.name: StoredKey(
            key.name,
            key.sha256.hex(),
            {entry: value for entry, value in tables[key.name].items() if entry != "sha256"},
        )
        for key in keys
    }
    with key_table(location).changing() as change:
        before = change.all()
        after = {**before, **given}.values()
        check_distinct(
            ((key.name, bytes.fromhex(key.sha256)) for key in after), f"{file} and {location}"
        )
        changed = [key for key in given.values() if before.get(key.name) != key]
        change.put(changed)
    names = {key.name for key in changed}
    return Loaded(
        added=tuple(name for name in given if name not in before),
        replaced=tuple(name for name in given if name in before and name in names),
        unchanged=tuple(name for name in given if name not in names),
    )


def remove_key(location: DatabaseLocation, name: str) -> int:
    """Remove a key; returns how many are left.

    Raises:
        SettingsError: there is no such key.
        CorpusError: the database cannot be used.
    """
    with key_table(location).changing() as change:
        if not change.remove(name):
            raise SettingsError(
                f"there is no key {name!r} in {location}; `mayfly key list` shows its keys"
            )
        return len(change.all())


def stored_keys(
    location: DatabaseLocation,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The entries of each key, without its digest; and what is wrong with those that are invalid;
    both by name.

    Raises:
        CorpusError: the database cannot be used.
    """
    changed = key_table(location).changed()
    assert changed is not None
    tables = tables_of(changed[1])
    _, errors = parse_keys(tables, str(location))
    for entries in tables.values():
        del entries["sha256"]
    return tables, errors
