"""Databases of earlier versions: what they contain is found as before."""

from __future__ import annotations

import hashlib

import psycopg
import pytest

from selection.corpus.postgres import migration
from selection.corpus.postgres.connections import close_pools
from selection.corpus.postgres.schema import MIGRATIONS, VERSION
from selection.corpus.postgres.store import PostgresStore
from selection.location import DatabaseLocation
from tests import postgres_server
from tests.selection.corpus.store_helpers import META, add


@pytest.mark.parametrize("version", range(1, VERSION))
def test_documents_of_an_earlier_version_are_found_by_name(
    version: int,
    postgres_url: str,
    postgres: DatabaseLocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = hashlib.shake_256(b"a name").hexdigest(4000)
    with postgres_server.database(postgres_url) as url:
        place = DatabaseLocation(url, postgres.cache) / "notes"
        with monkeypatch.context() as earlier:
            earlier.setattr(migration, "MIGRATIONS", MIGRATIONS[:version])
            earlier.setattr(migration, "VERSION", version)
            PostgresStore(place).initialise(META)
        close_pools()
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE mayfly.corpora SET last_document = 2")
            connection.execute(
                "INSERT INTO mayfly.documents (corpus, id, name, sha256, metadata, fields) "
                "SELECT c.id, n, 'n' || n, 'digest', '{}', '{}' "
                "FROM mayfly.corpora c, generate_series(1, 2) n"
            )

        store = PostgresStore(place)
        assert (store.has("n1", "digest"), store.has_name("n3")) == (True, False)
        add(store, "n1", "one")
        add(store, long, "two")

        assert [(each.id, each.name) for each in store.documents()] == [
            (4, long),
            (3, "n1"),
            (2, "n2"),
        ]
        with (
            psycopg.connect(url) as connection,
            pytest.raises(psycopg.errors.UniqueViolation, match="documents_by_name"),
        ):
            connection.execute("UPDATE mayfly.documents SET name = 'n2' WHERE name = 'n1'")
