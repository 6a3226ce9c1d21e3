"""The page's files over HTTP: what they are, that they are not sent twice, and that they reach for
nobody else.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
import uvicorn

from serving.errors import RouteError
from serving.http.page import FOLDER, PageFiles

_FILES = sorted(FOLDER.iterdir())
_SCRIPTS = [file for file in _FILES if file.suffix == ".js"]
_SVG = "http://www.w3.org/2000/svg"  # a name, not an address


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a web server that has nothing but the page."""
    web = uvicorn.Server(
        uvicorn.Config(PageFiles(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    port = web.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    web.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("path", "file", "media"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page/page.css", "page.css", "text/css; charset=utf-8"),
        ("/page/page.js", "page.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_comes_with_its_type(client: httpx.Client, path: str, file: str, media: str) -> None:
    reply = client.get(path)

    assert reply.status_code == 200
    assert reply.headers["content-type"] == media
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.content == (FOLDER / file).read_bytes()


def test_what_the_client_has_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/")
    etag = first.headers["etag"]

    again = [
        client.get("/", headers={"If-None-Match": seen}) for seen in (etag, f'"old", W/{etag}', "*")
    ]
    other = client.get("/", headers={"If-None-Match": '"old"'})

    assert first.headers["cache-control"] == "no-cache"
    assert [reply.status_code for reply in again] == [304, 304, 304]
    assert all(reply.content == b"" and reply.headers["etag"] == etag for reply in again)
    assert other.status_code == 200


def test_a_head_is_a_get_without_its_body(client: httpx.Client) -> None:
    get, head = client.get("/"), client.head("/")

    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["etag"] == get.headers["etag"]


@pytest.mark.parametrize(
    "path", ["/page", "/page/", "/page/nothing.js", "/page/index.html", "/page/../page_files.py"]
)
async def test_there_is_nothing_else(path: str) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("nothing is received or sent")

    with pytest.raises(RouteError):
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await PageFiles()(scope, never, never)  # type: ignore[arg-type]


def test_the_policy_lets_only_the_servers_own_files_run(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]

    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert (
        rules["script-src"]
        == rules["style-src"]
        == rules["connect-src"]
        == rules["img-src"]
        == "'self'"
    )
    assert "unsafe" not in policy


def test_the_page_names_files_that_are_there_and_has_nothing_inline(client: httpx.Client) -> None:
    named: list[str] = []
    inline: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named.extend(value for name, value in attrs if name in ("src", "href") and value)
            inline.extend(name for name, _ in attrs if name == "style" or name.startswith("on"))
            inline.extend(
                [tag] if tag == "style" or (tag == "script" and "src" not in dict(attrs)) else []
            )

    Reader().feed(client.get("/").text)

    assert named
    assert inline == []
    assert [client.get(f"/{path}").status_code for path in named] == [200] * len(named)


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)
def test_no_file_names_another_host(file: Path) -> None:
    text = file.read_text().replace(_SVG, "")

    assert not re.findall(r"""https?:|["'(]//|@import|\burl\(""", text)


@pytest.mark.parametrize("file", _SCRIPTS, ids=lambda file: file.name)
def test_no_script_reads_text_as_html_or_as_code(file: Path) -> None:
    text = file.read_text()

    assert not re.findall(
        r"(inner|outer)HTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function",
        text,
    )


@pytest.mark.parametrize("file", _SCRIPTS, ids=lambda file: file.name)
def test_what_a_script_imports_is_there(client: httpx.Client, file: Path) -> None:
    imported = re.findall(r'from "\./([^"]+)"', file.read_text())

    assert [client.get(f"/page/{name}").status_code for name in imported] == [200] * len(imported)
