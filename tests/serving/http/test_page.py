"""The page's files over HTTP: their types, caching, and that they reach no other host."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from serving.http.page import FOLDER, page_routes
from tests.serving.http.web_server import application, serve

# Our own files; those under vendor/ are checked against what was released.
_FILES = sorted(file for file in FOLDER.iterdir() if file.is_file())
_SCRIPTS = [file for file in _FILES if file.suffix == ".js"]
# The name of a namespace, not an address.
_SVG = "http://www.w3.org/2000/svg"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a web server that serves nothing but the page."""
    with (
        serve(application(page_routes())) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "file", "media"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page/page.css", "page.css", "text/css; charset=utf-8"),
        ("/page/page.js", "page.js", "text/javascript; charset=utf-8"),
        ("/page/vendor/marked.js", "vendor/marked.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_is_served_with_its_media_type(
    client: httpx.Client, path: str, file: str, media: str
) -> None:
    reply = client.get(path)

    assert reply.status_code == 200
    assert reply.headers["content-type"] == media
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.content == (FOLDER / file).read_bytes()


def test_a_cached_file_is_not_sent_again(client: httpx.Client) -> None:
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


def test_head_answers_as_get_without_a_body(client: httpx.Client) -> None:
    get, head = client.get("/"), client.head("/")

    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["etag"] == get.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/nothing.js",
        "/page/index.html",
        "/page/../page.py",
        "/page/%2e%2e/page.py",
        "/page//page.js",
        "/page/./page.js",
        "/page/page.js%0a",
        "/page/page.js/",
        "//",
    ],
)
def test_other_paths_are_not_found(client: httpx.Client, path: str) -> None:
    # httpx would remove the dots.
    connection = http.client.HTTPConnection(client.base_url.netloc.decode())
    connection.request("GET", path)
    reply = connection.getresponse()
    error = json.loads(reply.read())["error"]
    connection.close()

    assert (reply.status, error["code"]) == (404, "unknown_url")


def test_the_policy_permits_only_the_servers_own_files(client: httpx.Client) -> None:
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


def test_the_page_refers_to_existing_files_and_has_nothing_inline(client: httpx.Client) -> None:
    references: list[str] = []
    inline: list[str] = []

    class Collector(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            references.extend(value for name, value in attrs if name in ("src", "href") and value)
            inline.extend(name for name, _ in attrs if name == "style" or name.startswith("on"))
            inline.extend(
                [tag] if tag == "style" or (tag == "script" and "src" not in dict(attrs)) else []
            )

    Collector().feed(client.get("/").text)

    assert references
    assert inline == []
    assert [client.get(f"/{path}").status_code for path in references] == [200] * len(references)


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
def test_every_imported_script_exists(client: httpx.Client, file: Path) -> None:
    imported = re.findall(r'from "\./([^"]+)"', file.read_text())

    assert [client.get(f"/page/{name}").status_code for name in imported] == [200] * len(imported)


def test_the_markdown_library_is_the_released_file() -> None:
    content = (FOLDER / "vendor" / "marked.js").read_bytes()

    # lib/marked.esm.js of marked 18.2.1, unchanged.
    assert (
        hashlib.sha256(content).hexdigest()
        == "5371fea86fd0656b4fc7bea7c94c663109d82789b69433eeee78d42895aa44de"
    )


def test_only_the_lexer_of_the_markdown_library_is_used() -> None:
    imports = [
        line
        for file in _SCRIPTS
        for line in re.findall(r'import .* from "\./vendor/[^"]+";', file.read_text())
    ]

    # Its renderer makes HTML, which the page does not use.
    assert imports == ['import { lexer } from "./vendor/marked.js";']
