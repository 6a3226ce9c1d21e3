"""The page at `/` in headless Chromium with a real server: streams, budgets, errors, a phone, and
copied code.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.engine.conftest import Server

_CHROMIUM = shutil.which("chromium")
if _CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.async_api", reason="needs playwright")

PROMPT = "from starlette.requests import Request\n\n\nclass Middleware:\n    def __init__("
_SECONDS = 120


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as tools:
        yield await tools.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])


@pytest_asyncio.fixture
async def page(browser: Any, server: Server) -> AsyncIterator[Any]:
    """The page with its corpora loaded and short answers. Errors and warnings of its console, other
    than refused requests, fail the test.
    """
    context = await browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = await context.new_page()
    page.set_default_timeout(1000 * _SECONDS)
    messages: list[str] = []
    page.on("pageerror", lambda problem: messages.append(str(problem)))
    page.on(
        "console",
        lambda message: (
            messages.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    await page.route("**/completions", shorten)
    await page.goto(server.url)
    await page.get_by_role("option", name=re.compile("web")).wait_for(state="attached")
    yield page
    await context.close()
    assert [text for text in messages if "Failed to load resource" not in text] == []


async def shorten(route: Any) -> None:
    """Pass a request on with a limit of a few tokens."""
    await route.continue_(post_data=json.dumps({**route.request.post_data_json, "max_tokens": 24}))


async def ask(
    page: Any, prompt: str = PROMPT, corpus: str | None = "web", steps: int | None = None
) -> None:
    """Fill in the form and send it."""
    await page.get_by_role("textbox", name="Prompt").fill(prompt)
    if corpus is not None:
        await page.get_by_label("Learn from").select_option(corpus)
    if steps is not None:
        await page.get_by_role("radio", name="Steps").check()
        await page.get_by_role("slider", name="Steps at most").fill(str(steps))
    await page.get_by_role("button", name="Answer").click()


async def wait_for_status(page: Any, text: str) -> None:
    """Wait until the page announces this text."""
    await page.get_by_role("status").filter(has_text=text).first.wait_for()


async def test_two_answers_stream_and_the_report_is_shown(page: Any) -> None:
    await ask(page, steps=3)
    await wait_for_status(page, "Both answers are complete.")

    adapted = page.get_by_role("article", name="Adapted")
    note = await adapted.locator(".note").text_content()
    assert re.match(r"Loss of the prompt itself: \d+\.\d\d \u2192 \d+\.\d\d\. 3 steps in", note)
    assert await page.get_by_text(
        "The prompt itself, which is never trained on, has a loss of"
    ).is_visible()
    for article in (adapted, page.get_by_role("article", name="Base model")):
        assert len(await article.locator(".answer").text_content()) > len("    def __init__(")
    for figure in (
        "Loss of the prompt itself",
        "Uncertainty over 3 steps",
        "Loss of the training texts",
    ):
        assert await page.get_by_role("img", name=figure).is_visible()
    await page.get_by_text("All steps as a table").click()
    assert await page.locator("#steps-table tbody tr").count() == 4
    times = await page.locator("#sources tbody td:nth-child(3)").all_text_contents()
    assert sum(map(int, times)) == 3
    stages = await page.locator("#time-table tbody th").all_text_contents()
    assert {"training", "loading the adapter", "answering"} <= set(stages)


async def test_the_training_documents_can_be_read(page: Any) -> None:
    await ask(page, steps=2)
    await wait_for_status(page, "Both answers are complete.")

    await page.get_by_role("button", name=re.compile("^Read ")).first.click()

    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("status").filter(has_text="The adapter was trained on").wait_for()
    passage = dialog.locator("section").first
    assert "Used" in await passage.get_by_role("heading").text_content()
    assert len(await passage.locator("pre").text_content()) > 40
    await page.keyboard.press("Escape")
    assert await dialog.count() == 0


async def test_the_chosen_budget_is_sent(page: Any) -> None:
    sent: list[str] = []
    page.on(
        "request",
        lambda request: (
            sent.append(request.headers["compute-budget"]) if request.method == "POST" else None
        ),
    )

    await page.get_by_role("radio", name="Seconds").check()
    await page.get_by_role("slider", name="Seconds at most").fill("4")
    assert await page.get_by_text("4 seconds").is_visible()
    await ask(page)
    await wait_for_status(page, "Both answers are complete.")
    await page.get_by_role("radio", name="None").check()
    await ask(page)
    await wait_for_status(page, "The answer is complete.")

    assert sorted(sent[:2]) == ["none", "seconds=4"]
    assert sent[2:] == ["none"]
    assert not await page.locator("#adapted").is_visible()
    assert not await page.locator("#report").is_visible()


async def test_the_form_has_the_limits_of_the_server(page: Any) -> None:
    async def with_other_terms(route: Any) -> None:
        listed = await (await route.fetch()).json()
        listed["data"][0]["adaptation"] = {
            "auto": {"steps": 300, "seconds": 5.0, "alpha": None, "gain": None},
            "limits": {"steps": 300, "seconds": 5.0, "alpha": None, "gain": None},
            "corpus": False,
        }
        await route.fulfill(json=listed)

    sliders = [page.locator("#steps"), page.locator("#seconds")]
    assert [await slider.get_attribute("max") for slider in sliders] == ["50", "60"]
    assert await page.get_by_text(
        "Up to 50 steps, fewer if the loss of the prompt itself stops falling"
    ).is_visible()
    await page.route("**/v1/models", with_other_terms)
    await page.reload()

    await page.get_by_text("Up to 300 steps.").wait_for()
    assert [await slider.get_attribute("max") for slider in sliders] == ["300", "5"]
    assert (
        await page.locator("#corpus option").first.text_content()
        == "Nothing: the base model answers"
    )


async def test_a_chat_is_answered(page: Any) -> None:
    await page.get_by_role("radio", name="Chat").check()
    await ask(page, steps=1)
    await wait_for_status(page, "Both answers are complete.")

    assert await page.get_by_role("article", name="Adapted").locator(".answer").text_content()


async def test_a_refused_request_is_announced_in_place_of_the_answer(
    page: Any, server: Server
) -> None:
    async with server.client() as client:
        store = (await client.post("/v1/vector_stores", json={"name": "short-lived"})).json()["id"]
        await page.reload()
        await page.get_by_role("option", name=re.compile("short-lived")).wait_for(state="attached")
        await client.delete(f"/v1/vector_stores/{store}")

    await ask(page, corpus="short-lived", steps=2)

    alert = page.get_by_role("article", name="Adapted").get_by_role("alert")
    await alert.wait_for()
    assert "short-lived" in await alert.text_content()
    await page.get_by_role("button", name="Answer").wait_for()


async def test_an_answer_can_be_stopped(page: Any, server: Server) -> None:
    await ask(page, steps=50)
    await page.get_by_role("button", name="Stop").click()

    await wait_for_status(page, "Stopped.")
    assert await page.get_by_role("button", name="Answer").is_visible()
    for _ in range(200):
        if not await server.engine.loaded() and not server.engine.staging.names():
            break
        await asyncio.sleep(0.1)
    assert await server.engine.loaded() == []


async def test_markup_in_a_prompt_is_shown_as_text(page: Any) -> None:
    await ask(page, prompt="<img src=x onerror=alert(1)><b>bold</b>", steps=1)
    await wait_for_status(page, "Both answers are complete.")

    assert await page.locator("article img, article b").count() == 0
    assert "<b>bold</b>" in await page.locator("#adapted .answer").text_content()


async def test_a_phone_shows_everything_without_horizontal_scrolling(page: Any) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await ask(page, steps=3)
    await wait_for_status(page, "Both answers are complete.")
    await page.get_by_text("All steps as a table").click()

    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    outside = "nodes => nodes.filter(n => n.getBoundingClientRect().right > 360).length"
    assert (
        await page.locator("button, input, select, textarea, svg, table, pre").evaluate_all(outside)
        == 0
    )


@pytest.mark.parametrize("kind", ["Completion", "Chat"])
async def test_the_copied_code_runs(page: Any, kind: str) -> None:
    await page.get_by_role("radio", name=kind).check()
    await page.get_by_role("radio", name="Steps").check()
    await page.get_by_role("slider", name="Steps at most").fill("1")
    await page.get_by_label("Learn from").select_option("web")
    await page.get_by_role("textbox", name="Prompt").fill('it\'s "quoted" $HOME \\n `x`\nand é 🪰')

    outputs = []
    for button, program in (
        ("Copy as curl", ["bash", "-c"]),
        ("Copy as Python", [sys.executable, "-c"]),
    ):
        await page.get_by_role("button", name=button).click()
        await wait_for_status(page, "copied")
        code = re.sub(
            r"(max_tokens\W+)256", r"\g<1>4", await page.evaluate("navigator.clipboard.readText()")
        )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*program, code, stdout=pipe, stderr=pipe)
        out, problem = await asyncio.wait_for(process.communicate(), _SECONDS)
        assert process.returncode == 0, problem.decode()
        outputs.append(out.decode())

    assert '"adapted": true' in outputs[0]
    assert "'steps': 1" in outputs[1]
