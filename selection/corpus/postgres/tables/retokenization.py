"""Retokenization: as `selection.corpus.tables.retokenization`, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from selection.corpus.postgres.database import Database
from selection.corpus.tables.retokenization import MIN_TOKENS, TOKEN_BYTES, Tokenize, too_long
from selection.errors import CorpusError

_BATCH = 256


class Retokenization:
    """The replacement of one corpus's tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(
        self,
        tokenizer: str,
        template: str,
        tokenize: Tokenize,
        max_tokens: int,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Replace the tokens of every sequence by those of its text, or of its example."""
        with self._database.pinned():
            try:
                with self._database.writing():
                    self._database.execute(
                        "CREATE TEMP TABLE IF NOT EXISTS retokenized (corpus bigint NOT NULL, "
                        "sequence bigint PRIMARY KEY, tokens bytea NOT NULL, scored text)"
                    )
                    self._database.execute("DELETE FROM retokenized")
                self._collect(tokenize, on_progress)
                with self._database.writing():
                    # Documents may have been added since.
                    self._collect(tokenize, on_progress)
                    self._check_lengths(max_tokens)
                    return self._replace(tokenizer, template)
            finally:
                # It ends with the connection at the latest.
                with suppress(CorpusError), self._database.writing():
                    self._database.execute("DROP TABLE IF EXISTS pg_temp.retokenized")

    def _collect(self, tokenize: Tokenize, on_progress: Callable[[int], None]) -> None:
        """Tokenize the sequences that have no new tokens yet."""
        while rows := self._database.rows(
            "SELECT id, text, example FROM sequences WHERE corpus = %(corpus)s AND id > "
            "(SELECT coalesce(max(sequence), 0) FROM pg_temp.retokenized) "
            "ORDER BY id LIMIT %(limit)s",
            limit=_BATCH,
        ):
            new = tokenize([(text, example) for _, text, example in rows])
            self._database.execute_many(
                "INSERT INTO pg_temp.retokenized (corpus, sequence, tokens, scored) "
                "VALUES (%(corpus)s, %(sequence)s, %(tokens)s, %(scored)s)",
                [
                    {
                        "sequence": row[0],
                        "tokens": np.array(tokens, np.int32).tobytes(),
                        "scored": None if scored is None else json.dumps(scored),
                    }
                    for row, (tokens, scored) in zip(rows, new, strict=True)
                ],
            )
            on_progress(len(rows))

    def _check_lengths(self, max_tokens: int) -> None:
        ((count,),) = self._database.rows(
            "SELECT count(*) FROM sequences s JOIN pg_temp.retokenized r ON r.sequence = s.id "
            "WHERE s.corpus = %(corpus)s AND octet_length(r.tokens) > %(most)s",
            most=max_tokens * TOKEN_BYTES,
        )
        if count:
            raise too_long(self._database.name, count, max_tokens)

    def _replace(self, tokenizer: str, template: str) -> int:
        database = self._database
        database.execute(
            "UPDATE sequences s SET tokens = r.tokens, scored = r.scored "
            "FROM pg_temp.retokenized r WHERE s.corpus = %(corpus)s AND r.sequence = s.id"
        )
        database.execute("UPDATE corpora SET meta = meta - 'template' WHERE id = %(corpus)s")
        database.update_meta({"tokenizer": tokenizer})
        if database.rows(
            "SELECT 1 FROM sequences WHERE corpus = %(corpus)s AND example IS NOT NULL LIMIT 1"
        ):
            database.update_meta({"template": template})
        generation = database.advance_generation()
        short = MIN_TOKENS * TOKEN_BYTES
        database.execute(
            "INSERT INTO removed (corpus, sequence, generation) "
            "SELECT corpus, id, %(generation)s FROM sequences "
            "WHERE corpus = %(corpus)s AND octet_length(tokens) < %(short)s",
            generation=generation,
            short=short,
        )
        removed = database.execute(
            "DELETE FROM sequences WHERE corpus = %(corpus)s AND octet_length(tokens) < %(short)s",
            short=short,
        )
        database.recount_bytes()
        return removed
