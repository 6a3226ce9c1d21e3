"""Retokenization: the tokens of all sequences are replaced by those of another tokenizer or chat
template in one transaction.

Texts, embeddings, the ids of sequences and the corpus's `uuid` stay, so indexes and shards remain
valid. The new tokens are collected in a temporary table, which no other process sees and which ends
with the connection, so a run that is killed leaves no trace.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from selection.corpus.tables.database import Database
from selection.errors import CorpusError
from selection.examples.example import Spans

# The tokens and the scored tokens of each sequence, which is given by its text and its example.
Tokenize: TypeAlias = Callable[
    [list[tuple[str, str | None]]], Sequence[tuple[Sequence[int], Spans | None]]
]

_BATCH = 256
TOKEN_BYTES = np.dtype(np.int32).itemsize
MIN_TOKENS = 2  # a single token has nothing to predict


def too_long(corpus: str, count: int, max_tokens: int) -> CorpusError:
    """The error for sequences that do not fit into the context of a model."""
    return CorpusError(
        f"corpus {corpus!r} was not changed: {count} of its sequences have more than {max_tokens} "
        "tokens, the context of the model; add the documents to a new corpus with --model"
    )


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
        """Replace the tokens of every sequence by those of its text, or of its example.

        Args:
            tokenizer: digest of the new tokenizer, for the corpus's metadata.
            template: digest of the new chat template, for the metadata of a corpus of examples.
            tokenize: the tokens of each text or example, and which of them to train on.
            max_tokens: maximum number of tokens of a sequence.
            on_progress: called with the number of sequences just tokenized.

        Returns:
            The number of sequences that were removed, because they have fewer than two tokens.

        Raises:
            CorpusError: a sequence has more than `max_tokens` tokens, or the corpus cannot be
                written; nothing was changed.
        """
        with self._database.errors():
            self._database.execute(
                "CREATE TEMP TABLE retokenized (sequence INTEGER PRIMARY KEY, "
                "tokens BLOB NOT NULL, scored TEXT)"
            )
            try:
                self._collect(tokenize, on_progress)
                with self._database.writing():
                    # Documents may have been added since.
                    self._collect(tokenize, on_progress)
                    self._check_lengths(max_tokens)
                    return self._replace(tokenizer, template)
            finally:
                self._database.execute("DROP TABLE temp.retokenized")

    def _collect(self, tokenize: Tokenize, on_progress: Callable[[int], None]) -> None:
        """Tokenize the sequences that have no new tokens yet."""
        while rows := self._database.rows(
            "SELECT id, text, example FROM sequences WHERE id > "
            "(SELECT coalesce(max(sequence), 0) FROM temp.retokenized) ORDER BY id LIMIT ?",
            (_BATCH,),
        ):
            new = tokenize([(text, example) for _, text, example in rows])
            self._database.execute_many(
                "INSERT INTO temp.retokenized VALUES (?, ?, ?)",
                [
                    (
                        row[0],
                        np.array(tokens, np.int32).tobytes(),
                        None if scored is None else json.dumps(scored),
                    )
                    for row, (tokens, scored) in zip(rows, new, strict=True)
                ],
            )
            on_progress(len(rows))

    def _check_lengths(self, max_tokens: int) -> None:
        rows = self._database.rows(
            "SELECT count(*) FROM sequences s JOIN temp.retokenized r ON r.sequence = s.id "
            "WHERE length(r.tokens) > ?",
            (max_tokens * TOKEN_BYTES,),
        )
        if rows[0][0]:
            raise too_long(self._database.name, rows[0][0], max_tokens)

    def _replace(self, tokenizer: str, template: str) -> int:
        execute = self._database.execute
        execute(
            "UPDATE sequences SET (tokens, scored) = (SELECT tokens, scored FROM temp.retokenized "
            "r WHERE r.sequence = sequences.id)"
        )
        self._database.update_meta({"tokenizer": tokenizer})
        execute("DELETE FROM meta WHERE key = 'template'")
        if self._database.rows("SELECT 1 FROM sequences WHERE example IS NOT NULL LIMIT 1"):
            self._database.update_meta({"template": template})
        self._database.advance_generation()
        short = (MIN_TOKENS * TOKEN_BYTES,)
        execute(
            "INSERT INTO removed SELECT id, (SELECT value FROM meta WHERE key = 'generation') "
            "FROM sequences WHERE length(tokens) < ?",
            short,
        )
        return execute("DELETE FROM sequences WHERE length(tokens) < ?", short).rowcount
