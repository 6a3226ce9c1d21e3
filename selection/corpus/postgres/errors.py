"""Errors: PostgreSQL's errors as CorpusErrors that say what to do.

None contains the password, nor who is connected and where to, which not every client may see; notes
say that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout

from selection.corpus.postgres.schema import SCHEMA
from selection.errors import CorpusError, CorpusUnavailableError, first_line
from selection.location import DatabaseLocation

# What libpq says before a connection is made, when its errors have no code.
_REFUSED = re.compile(r'authentication failed|(role|database) ".*" does not exist')
_INSECURE = re.compile("certificate|does not support SSL|sslmode")
# The server has ended the connection of a transaction that was idle, or open, for too long; psycopg
# takes both for bugs of its caller.
_TRANSACTION_ENDED = ("25P03", "25P04")


@contextmanager
def translated(location: DatabaseLocation, change: str = "the corpora") -> Iterator[None]:
    """Turn PostgreSQL's errors into CorpusErrors.

    Args:
        location: the database.
        change: what was not changed, for messages.
    """
    try:
        yield
    except psycopg.Error as problem:
        translation = _translation(problem, change)
        if translation is None:
            raise
        translation.add_note(f"their database is {location}")
        raise translation from problem


def _translation(problem: psycopg.Error, change: str) -> CorpusError | None:
    """The error for users; None for a bug of ours."""
    if isinstance(problem, errors.InsufficientPrivilege):
        return CorpusError(
            f"the role of the corpora's database lacks a right: {first_line(problem)}; let it own "
            f"the schema {SCHEMA} and its tables"
        )
    if isinstance(problem, errors.UndefinedTable | errors.InvalidSchemaName):
        return CorpusError(
            f"the corpora's database lacks tables of Mayfly: {first_line(problem)}; start again "
            "to create them, or restore the database"
        )
    if isinstance(
        problem, errors.DiskFull | errors.ReadOnlySqlTransaction | errors.ProgramLimitExceeded
    ):
        return CorpusError(f"{change} was not changed: {first_line(problem)}")
    if isinstance(problem, errors.LockNotAvailable):
        return CorpusUnavailableError(
            f"{change} was not changed: another change of it takes too long; try again"
        )
    if isinstance(problem, errors.QueryCanceled):
        return CorpusUnavailableError(
            f"the corpora's database has cancelled a query, and {change} was not changed: "
            f"{first_line(problem)}; try again"
        )
    if isinstance(problem, errors.InvalidPassword | errors.InvalidAuthorizationSpecification):
        return _refused(problem)
    if (
        isinstance(problem, PoolTimeout | psycopg.OperationalError | psycopg.InterfaceError)
        or problem.sqlstate in _TRANSACTION_ENDED
    ):
        if _REFUSED.search(str(problem)):
            return _refused(problem)
        if _INSECURE.search(str(problem)):
            return _because(
                problem,
                CorpusError(
                    "the corpora's database cannot be reached as securely as its URL demands: "
                    "check sslmode in it, and sslrootcert, the file with the certificate of the "
                    "authority that has signed the server's"
                ),
            )
        return _because(
            problem,
            CorpusUnavailableError(
                "the corpora's database cannot be reached; a change under way may not have been "
                "made: try again"
            ),
        )
    if isinstance(problem, errors.UntranslatableCharacter) or (
        isinstance(problem, psycopg.DataError) and "NUL" in str(problem)
    ):
        return CorpusError(
            f"{change} was not changed: PostgreSQL cannot store the character U+0000; remove it"
        )
    return None


def _refused(problem: psycopg.Error) -> CorpusError:
    return _because(
        problem,
        CorpusError(
            "the corpora's database refuses the connection: check user, password and database in "
            "its URL"
        ),
    )


def _because(problem: psycopg.Error, translation: CorpusError) -> CorpusError:
    """An error with the server's own words as a note: not every client may see who and where."""
    translation.add_note(first_line(problem).rpartition("failed: ")[2])
    return translation
