"""HAProxy's configuration: what it forwards, what it rejects, and with which response.

Every request is parsed as HTTP and written anew, so that it does not depend on what came before it
on its connection. Malformed requests are rejected here in OpenAI's error shape. The replicas have
the same limits on requests (`serving.http.hardening`).

Limit: a client that goes on sending behind a malformed request, or more than a buffer (64 KiB)
behind another request that HAProxy rejects, may lose the response, since HAProxy closes the
connection without reading the rest (RFC 9112, section 9.6).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

# Seconds for which a client may leave a response unread; its adapter stays loaded meanwhile.
_UNREAD_SECONDS = 120
# Seconds in which all headers of a request must arrive.
_HEADER_SECONDS = 10
# Seconds in which the body, or a buffer full of it, must arrive; replicas have the same limit.
_BODY_SECONDS = 60
# Largest number of connections from clients.
_CLIENTS = 4000
# Largest size of a request's headers, in bytes; replicas count the request line, too.
_MAX_HEADERS = 32 << 10
# Size from which headers without an end are passed to a replica, which rejects them, in bytes.
_OVERSIZED = 48 << 10
# Largest length of HAProxy's own error responses in HTML, in characters.
_MAX_HTML = 400
ANY_ORIGIN = "*"
_CONFIG = """\
global
    maxconn {connections}
    no strict-limits
    nbthread 1
    tune.bufsize 65536
    tune.http.maxhdr 1000
    lua-load {folder}/error_bodies.lua
defaults connections
    mode tcp
    timeout connect 5s
    timeout client 24h
    timeout server 24h
    timeout client-fin {unread_seconds}s
    balance leastconn
    option redispatch 1
    retries 3
frontend public
    maxconn {clients}
    bind {address} tcp-ut {unread_seconds}s
    filter lua.error_bodies
    tcp-request inspect-delay 1s
    tcp-request content accept if HTTP
    # A replica rejects headers that do not fit into the buffer, once the client stops sending.
    acl oversized req.len gt {oversized}
    acl available nbsrv(replicas) gt 0
    use_backend oversized if available oversized !HTTP
    default_backend requests
backend requests
    server requests {internal}
backend oversized
{tracking_replicas}
defaults requests
    mode http
    timeout connect 5s
    timeout client {unread_seconds}s
    timeout server 24h
    timeout http-request {header_seconds}s
    timeout http-keep-alive 65s
    option http-no-delay
    option http-ignore-probes
    option abortonclose
    option redispatch 1
    # HTTP/2 is rejected here as the replicas reject it.
    option disable-h2-upgrade
    retries 3
    retry-on conn-failure
{error_files}
frontend requests
    bind {internal}
{cors}
    # Nothing answers before the body, or a buffer full of it, has arrived: if this frontend closed
    # meanwhile, `public` would fail to pass the body on, and drop the answer unread. So HAProxy
    # itself answers `Expect: 100-continue`, and removes it; it would cut off a response whose
    # headers reach it together with the replica's 100 and before the body.
    http-request wait-for-body time {body_seconds}s
    http-request return status 400 content-type application/json \
        file {folder}/version.json if !{{ req.ver 1.0 1.1 }}
    acl too_large req.hdrs,length gt {max_headers}
    http-request return status 431 content-type application/json \
        file {folder}/headers.json if too_large
    # Headers that concern this connection only, or ask for another protocol than HTTP/1.1.
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
# HAProxy rejects what it cannot parse with HTML, whatever `errorfile` says, and closes the
# connection. So each connection comes in as bytes and is passed on to the frontend that parses
# HTTP. On the way back this filter replaces such a response, which is always the last of its
# connection, by ours.
_LUA = """\
local responses = {{
{responses}
}}
local ErrorBodies = {{ id = "error_bodies", flags = 0 }}
ErrorBodies.__index = ErrorBodies
function ErrorBodies:new()
  return setmetatable({{}}, ErrorBodies)
end
function ErrorBodies:start_analyze(txn, channel)
  if channel:is_resp() then
    filter.register_data_filter(self, channel)
  end
end
function ErrorBodies:tcp_payload(txn, channel)
  local tail = channel:data(-{max_length})
  -- It is not a string when there is no new data.
  if type(tail) ~= "string" or not string.find(tail, "</body></html>%s*$") then
    return
  end
  local start, _, status = string.find(tail, "HTTP/1%.1 (%d%d%d) [^\\r\\n]+\\r\\nContent%-length: ")
  if start and responses[status] then
    local before = channel:input() - #tail + start - 1
    channel:remove(before, #tail - start + 1)
    channel:insert(responses[status], before)
  end
end
core.register_filter("error_bodies", ErrorBodies, function(filter) return filter end)
"""
# A browser hides HAProxy's own responses from a page of another origin without these headers. The
# replicas' responses have their own.
_CORS = """\
    http-request set-var(txn.origin) req.hdr(origin) if {{ req.hdr(origin) -m {match} }}
    acl from_page var(txn.origin) -m found
    acl has_own res.hdr(access-control-allow-origin) -m found
    http-after-response set-header vary origin if from_page !has_own
    http-after-response set-header access-control-expose-headers retry-after if from_page !has_own
    http-after-response set-header access-control-allow-origin %[var(txn.origin)] \
        if from_page !has_own
"""
# HAProxy's own errors: by its status, the status and the message of our response.
_ERRORS = {
    400: (
        400,
        "this is not a valid HTTP/1.1 request: it is malformed, its headers are far too large, or "
        "the connection was closed before its answer came",
    ),
    408: (
        408,
        f"the request headers were incomplete after {_HEADER_SECONDS} seconds, or the request body "
        f"after {_BODY_SECONDS} seconds",
    ),
    413: (400, "a GET, HEAD or DELETE request of HTTP/1.0 has no body; use HTTP/1.1"),
    422: (400, "the only supported Transfer-Encoding is chunked"),
    500: (500, "the server failed to answer; try again"),
    501: (501, "the request uses a feature of HTTP that is not supported"),
    502: (502, "the server stopped while it worked on this request; try again"),
    503: (503, "no engine is ready; try again in a few seconds"),
    504: (504, "the server did not answer in time; try again"),
}
# Errors that the configuration itself detects, by the name of the file with the response.
_REJECTIONS = {
    "version": "this version of HTTP is not supported; use HTTP/1.1",
    "headers": f"the request headers are larger than {_MAX_HEADERS >> 10} KiB",
}


def write_config(
    folder: Path, host: str, port: int, replicas: Sequence[int], origins: Sequence[str]
) -> Path:
    """Write HAProxy's configuration and its responses into a folder; returns the configuration.

    Args:
        folder: folder to write to, created if necessary.
        host, port: public address.
        replicas: ports on 127.0.0.1 where replicas may answer.
        origins: origins of the web pages that may read HAProxy's own responses; "*" for any.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    responses = {own: _response(status, message) for own, (status, message) in _ERRORS.items()}
    for own, response in responses.items():
        (folder / f"{own}.http").write_text(response, newline="")
    for name, message in _REJECTIONS.items():
        (folder / f"{name}.json").write_text(_error(400, message))
    table = "\n".join(
        f"  [{json.dumps(str(own))}] = {json.dumps(response)},"
        for own, response in responses.items()
    )
    lua = _LUA.format(responses=table, max_length=_MAX_HTML)
    (folder / "error_bodies.lua").write_text(lua)
    match = "found" if ANY_ORIGIN in origins else " ".join(["str -i --", *origins])
    config = _CONFIG.format(
        folder=folder,
        connections=2 * _CLIENTS,
        clients=_CLIENTS,
        internal=f"abns@mayfly-http-{secrets.token_hex(8)}",
        error_files="\n".join(f"    errorfile {own} {folder}/{own}.http" for own in responses),
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        cors=_CORS.format(match=match) if origins else "",
        replicas="\n".join(f"    server {each} 127.0.0.1:{each}" for each in replicas),
        tracking_replicas="\n".join(
            f"    server {each} 127.0.0.1:{each} track replicas/{each}" for each in replicas
        ),
        oversized=_OVERSIZED,
        unread_seconds=_UNREAD_SECONDS,
        header_seconds=_HEADER_SECONDS,
        body_seconds=_BODY_SECONDS,
        max_headers=_MAX_HEADERS,
    )
    file = folder / "haproxy.cfg"
    file.write_text(config)
    return file


def _response(status: int, message: str) -> str:
    """A whole HTTP response."""
    body = _error(status, message)
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", "connection: close"]
    lines += ["retry-after: 5"] * (status == 503)
    return "\r\n".join([*lines, "", body])


def _error(status: int, message: str) -> str:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
