"""Work that is done again: for ever, or until it succeeds.

Trainings of corpora take hours, in which a stage or a database may restart: what fails because of
that goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from selection.errors import CorpusUnavailableError
from serving.errors import USER_ERRORS, StageFailedError
from serving.observability.logs import log_failure

log = logging.getLogger(__name__)

# A stage or a database may restart meanwhile; attempts are counted from the last progress on.
ATTEMPTS, RETRY_SECONDS = 3, 10.0


async def repeat(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Work again and again; what it raises is logged.

    Args:
        work: the work.
        seconds: seconds from its end to its next beginning.
    """
    while True:
        try:
            await work()
        except Exception as problem:
            log_failure(log, "cannot look after the trainings of corpora", problem)
        await asyncio.sleep(seconds)


async def until_done(
    work: Callable[[], Awaitable[None]], reached: Callable[[], int], what: str
) -> None:
    """Work until it succeeds.

    Args:
        work: the work.
        reached: how far it has come.
        what: what it is, for the log.

    Raises:
        Exception: what it has raised at last: an error that will not pass by itself, or that of the
            last of ATTEMPTS without progress.
    """
    failures = done = 0
    while True:
        try:
            return await work()
        except Exception as problem:
            may_pass = isinstance(problem, StageFailedError | CorpusUnavailableError)
            now = reached()
            failures, done = 1 if now > done else failures + 1, max(now, done)
            if failures == ATTEMPTS or (isinstance(problem, USER_ERRORS) and not may_pass):
                raise
            log.warning("%s goes on: %s", what, problem)
            await asyncio.sleep(RETRY_SECONDS)
