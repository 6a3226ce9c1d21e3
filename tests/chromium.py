"""Headless Chromium for the tests of the page; they are skipped without it, or playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

_CHROMIUM = shutil.which("chromium")
if _CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.async_api", reason="needs playwright")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as tools:
        yield await tools.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])


def note_messages(page: Any) -> list[str]:
    """The errors and warnings of a page's console from now on, other than refused requests."""
    messages: list[str] = []

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            messages.append(message.text)

    page.on("pageerror", lambda problem: messages.append(str(problem)))
    page.on("console", note)
    return messages


def answer_with(text: str, report: dict[str, Any] | None = None) -> Callable[[Any], Any]:
    """Let every request be answered with this text, and with a report."""
    chunk: dict[str, Any] = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
    if report is not None:
        chunk["adaptation"] = report
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"

    async def fulfil(route: Any) -> None:
        await route.fulfill(content_type="text/event-stream", body=body)

    return fulfil


def prompt_of(page: Any) -> Any:
    return page.get_by_role("textbox", name="Prompt", exact=True)


async def wait_for_status(page: Any, text: str) -> None:
    """Wait until the page announces this text."""
    await page.get_by_role("status").filter(has_text=text).first.wait_for()


def article(page: Any, name: str) -> Any:
    """The last answer of the adapted or of the base model."""
    return page.get_by_role("article", name=name).last
