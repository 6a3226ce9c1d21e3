"""The page at `/` in headless Chromium with a real server: conversations, Markdown, budgets,
documents, errors, keys, a phone, and copied code.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from selection.corpus.corpus import Corpus
from selection.embedding import Embedder
from serving.api_keys.key import digest
from tests.chromium import answer_with, article, browser, note_messages, prompt_of, wait_for_status
from tests.engine.conftest import Server

__all__ = ["browser"]

PROMPT = "from starlette.requests import Request\n\n\nclass Middleware:\n    def __init__("
_SECONDS = 120
_MARKDOWN = """# Title

Some **bold**, *italic* and `code &amp;` text &amp; a [link](https://example.org/a),
a [trap](javascript:alert(1)), ![picture](https://example.org/b.png),
and <img src=x onerror=alert(1)>.

- one
  1. inner

| a | b |
| --- | --: |
| 1 | <b>2</b> |

```python
print("a < b")
```

<script>alert(1)</script>
"""


@pytest_asyncio.fixture
async def page(browser: Any, server: Server) -> AsyncIterator[Any]:
    """The page with its corpora loaded and short answers. Errors and warnings of its console, other
    than refused requests, fail the test.
    """
    context = await browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = await context.new_page()
    page.set_default_timeout(1000 * _SECONDS)
    messages = note_messages(page)
    await page.route("**/completions", shorten)
    await page.goto(server.url)
    await page.get_by_role("option", name=re.compile("^web ")).wait_for(state="attached")
    yield page
    await context.close()
    assert messages == []


async def shorten(route: Any) -> None:
    """Pass a request on with a limit of a few tokens."""
    await route.continue_(post_data=json.dumps({**route.request.post_data_json, "max_tokens": 24}))


def sent_bodies(page: Any) -> list[tuple[str, dict[str, Any]]]:
    """The budget and the body of each completion that the page requests from now on."""
    sent: list[tuple[str, dict[str, Any]]] = []

    def record(request: Any) -> None:
        if request.method == "POST" and request.url.endswith("/completions"):
            sent.append((request.headers["compute-budget"], request.post_data_json))

    page.on("request", record)
    return sent


async def choose(page: Any, budget: str | None = None, kind: str | None = None) -> None:
    """Choose a budget ("None", or a number of steps) and the kind of answers."""
    if kind is not None:
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_role("radio", name=kind).check()
        await page.get_by_role("button", name="Close").click()
    if budget is not None and budget.isdecimal():
        await page.get_by_role("radio", name="Steps").check()
        await page.get_by_role("slider", name="Steps at most").fill(budget)
    elif budget is not None:
        await page.get_by_role("radio", name=budget).check()


async def ask(page: Any, prompt: str = PROMPT, steps: int | None = None) -> None:
    """Write a prompt and send it."""
    await choose(page, None if steps is None else str(steps))
    await prompt_of(page).fill(prompt)
    await prompt_of(page).press("Enter")


async def ask_and_wait(page: Any, prompt: str = PROMPT, steps: int = 1) -> None:
    await ask(page, prompt, steps)
    await wait_for_status(page, "Both answers are complete.")


async def test_two_answers_stream_and_the_report_is_shown(page: Any) -> None:
    await choose(page, kind="Completion")
    await ask_and_wait(page, steps=3)

    adapted = article(page, "Adapted")
    note = await adapted.locator(".note").text_content()
    assert re.match(r"Loss of the prompt itself: \d+\.\d\d \u2192 \d+\.\d\d\. 3 steps in", note)
    assert "every step of the budget was taken" in note
    assert "Learned from " in note
    for each in (adapted, article(page, "Base model")):
        assert len(await each.locator(".answer").text_content()) > len("    def __init__(")
        assert re.search(r"24 tokens, [\d.]+ a second", await each.text_content())

    await adapted.get_by_role("button", name="Details").click()
    dialog = page.get_by_role("dialog")
    assert await dialog.get_by_text("which is never trained on, has a loss of").is_visible()
    for figure in (
        "Loss of the prompt itself",
        "Uncertainty over 3 steps",
        "Loss of the training texts",
    ):
        assert await dialog.get_by_role("img", name=figure).is_visible()
    await dialog.get_by_text("All steps as a table").click()
    assert await page.locator("#steps-table tbody tr").count() == 4
    times = await page.locator("#sources tbody td:nth-child(3)").all_text_contents()
    assert sum(map(int, times)) == 3
    stages = await page.locator("#time-table tbody th").all_text_contents()
    assert {"training", "loading the adapter", "answering"} <= set(stages)


async def test_the_training_documents_can_be_read(page: Any) -> None:
    await ask_and_wait(page, steps=2)

    await page.get_by_role("button", name="Details").click()
    await page.get_by_role("button", name=re.compile("^Read ")).first.click()

    dialog = page.locator("#document-dialog")
    await dialog.get_by_role("status").filter(has_text="The adapter was trained on").wait_for()
    passage = dialog.locator("section").first
    assert "Used" in await passage.get_by_role("heading").text_content()
    assert len(await passage.locator("pre").text_content()) > 40
    await page.keyboard.press("Escape")
    await page.keyboard.press("Escape")
    assert await page.get_by_role("dialog").count() == 0


async def test_pasted_examples_are_learned_from_and_shown(page: Any) -> None:
    sent = sent_bodies(page)
    rows = page.get_by_label("One example in each line")
    await page.get_by_role("button", name="Paste examples").click()
    await rows.fill('{"prompt": "One tea.", "completion": "1*tea"}\n{"prompt": "Two teas."}')
    await page.get_by_text("Line 2: no `completion`").wait_for()
    await page.keyboard.press("Escape")
    await ask(page, "Five teas.")
    await rows.wait_for()
    assert await page.locator("#thread > li").count() == 0

    await rows.fill('{"prompt": "One tea.", "completion": "1*tea"}\nThree teas.\t3*tea')
    await page.get_by_label("Use the examples alone").check()
    await page.get_by_role("button", name="Close").click()
    await page.get_by_text("2 examples").wait_for()
    await page.get_by_role("slider", name="Show in the prompt").fill("2")
    await ask(page, "Five teas.", steps=2)
    await wait_for_status(page, "All answers are complete.")

    pairs = [
        {"prompt": "One tea.", "completion": "1*tea"},
        {"prompt": "Three teas.", "completion": "3*tea"},
    ]
    shown = {"examples": pairs, "corpus": None, "show": 2, "progress": True}
    requests = {(budget, body["adaptation"]["show"]): body["adaptation"] for budget, body in sent}
    assert requests == {
        ("steps=2", 2): {**shown, "examples_as": "leave-one-out"},
        ("none", 2): shown,
        ("none", 0): {"show": 0, "progress": True},
    }
    assert "Shown in the prompt: 2 passages" in await article(page, "Shown only").text_content()
    assert "of the request" in await article(page, "Adapted").locator(".note").text_content()
    await page.get_by_role("button", name="Details").click()
    assert "from 2 examples of the request" in await page.locator("#report-shown").text_content()
    assert "of the request" in await page.locator("#sources").text_content()
    assert await page.get_by_role("button", name=re.compile("^Read ")).count() == 0
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Copy as Python").click()
    await wait_for_status(page, "copied")
    code = await page.evaluate("() => navigator.clipboard.readText()")
    compile(code, "copied", "exec")
    assert '"corpus": None' in code


async def test_the_chosen_budget_is_sent(page: Any) -> None:
    sent = sent_bodies(page)

    await page.get_by_role("radio", name="Seconds").check()
    await page.get_by_role("slider", name="Seconds at most").fill("4")
    assert await page.get_by_text("4 seconds").is_visible()
    await ask(page)
    await wait_for_status(page, "Both answers are complete.")
    await choose(page, "None")
    await ask(page)
    await wait_for_status(page, "The answer is complete.")
    await page.get_by_role("radio", name="Instant").check()
    meaning = await page.locator("#budget-meaning").text_content()

    assert meaning == (
        "The adapter of the corpus answers, if it has one: nothing is trained for the question."
    )
    budgets = [budget for budget, _ in sent]
    assert sorted(budgets[:2]) == ["none", "seconds=4"]
    assert budgets[2:] == ["none"]
    assert await page.get_by_role("article", name="Adapted").count() == 1
    assert await page.get_by_role("article", name="Base model").count() == 2


async def test_the_form_has_the_limits_and_the_terms_of_the_server(page: Any) -> None:
    async def with_other_terms(route: Any) -> None:
        listed = await (await route.fetch()).json()
        listed["data"][0]["adaptation"] = {
            "auto": {"steps": 300, "seconds": 5.0, "alpha": None, "gain": None},
            "limits": {"steps": 300, "seconds": 5.0, "alpha": None, "gain": None},
            "corpus": False,
            "examples": {"count": 128, "tokens": 32768},
            "show": 0,
        }
        listed["data"][0]["chat_template"] = False
        await route.fulfill(json=listed)

    async def without_corpora(route: Any) -> None:
        await route.fulfill(json={"data": [], "has_more": False})

    sliders = [page.locator("#steps"), page.locator("#seconds")]
    chat = page.locator("input[value=chat]")
    assert [await slider.get_attribute("max") for slider in sliders] == ["50", "60"]
    assert await page.get_by_text(
        "Up to 50 steps, fewer if the loss of the prompt itself stops falling"
    ).is_visible()
    assert await chat.is_checked()
    first = page.locator("#corpus option").first
    assert re.fullmatch(r"web \(default, \d+ documents\)", await first.text_content())

    await page.route("**/v1/models", with_other_terms)
    await page.route("**/v1/vector_stores*", without_corpora)
    await page.reload()

    await page.get_by_text("Up to 300 steps.").wait_for()
    assert [await slider.get_attribute("max") for slider in sliders] == ["300", "5"]
    await page.get_by_role("option", name="No corpus").wait_for(state="attached")
    assert await chat.is_disabled()
    assert await page.locator("input[value=completion]").is_checked()


async def test_a_chat_sends_its_settings_and_the_conversation(page: Any) -> None:
    sent = sent_bodies(page)
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    await page.get_by_label("Temperature").fill("0")
    await page.get_by_label("Tokens at most").fill("20")
    await page.get_by_label("Show the base model's answer").uncheck()
    await page.get_by_label("Train the adapter of the previous answer further").check()
    await page.get_by_role("button", name="Close").click()

    for prompt in ("first", "second"):
        await ask(page, prompt, steps=1)
        await wait_for_status(page, "The answer is complete.")

    answer = await page.locator("article .answer").first.text_content()
    assert [budget for budget, _ in sent] == ["steps=1", "steps=1"]
    body = sent[1][1]
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert [body["messages"][i]["content"] for i in (0, 1, 3)] == ["Be brief.", "first", "second"]
    assert answer.strip()[:8] in body["messages"][2]["content"]
    assert (body["temperature"], body["max_tokens"]) == (0, 20)
    assert body["adaptation"]["reuse"] == "conversation"


async def test_the_last_answer_is_edited_and_regenerated(page: Any) -> None:
    sent = sent_bodies(page)
    await ask_and_wait(page, "first")

    await page.get_by_role("button", name="Edit the prompt").click()
    await page.get_by_role("textbox", name="Edited prompt").fill("changed")
    await page.get_by_role("textbox", name="Edited prompt").press("Enter")
    await page.get_by_role("button", name="Stop").wait_for()
    await wait_for_status(page, "Both answers are complete.")
    await page.get_by_role("button", name="Regenerate").click()
    await page.get_by_role("button", name="Stop").wait_for()
    await wait_for_status(page, "Both answers are complete.")

    prompts = [[message["content"] for message in body["messages"]] for _, body in sent]
    assert prompts == [["first"]] * 2 + [["changed"]] * 4
    assert [body["seed"] for _, body in sent] == [0, 0, 0, 0, 1, 1]
    assert await page.locator("#thread > li").count() == 1


async def test_conversations_are_kept_in_the_browser(page: Any) -> None:
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await ask_and_wait(page, "about cats")
    await page.get_by_role("button", name="New conversation").click()
    await ask_and_wait(page, "about ships")
    await page.reload()

    assert await page.locator("#thread > li").count() == 0
    await page.get_by_role("button", name="about cats", exact=True).click()
    assert await page.locator("#thread > li").count() == 1
    assert await article(page, "Adapted").locator(".note").text_content()
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Export").click()
    file = await (await download.value).path()
    exported = json.loads(file.read_text())
    assert [each["turns"][0]["prompt"] for each in exported] == ["about ships", "about cats"]

    await page.get_by_role("button", name="Delete about cats").click()
    await page.get_by_role("button", name="about cats", exact=True).wait_for(state="detached")
    await page.get_by_role("button", name="Delete all").click()
    await page.get_by_text("Conversations are stored in this browser.").wait_for()
    assert await page.locator("#conversations li").count() == 0

    await page.locator("#import-file").set_input_files(file)
    await wait_for_status(page, "2 conversations imported.")
    assert await page.locator(".conversation").all_text_contents() == ["about ships", "about cats"]
    await page.locator("#import-file").set_input_files(
        {"name": "other.json", "mimeType": "application/json", "buffer": b'[{"turns": 1}]'}
    )
    await wait_for_status(page, "This file has no conversations")


async def test_markdown_is_rendered_and_markup_is_shown_as_text(page: Any) -> None:
    thoughts = "<think>First, *think*.</think>"
    await page.route("**/completions", answer_with(thoughts + _MARKDOWN))
    await choose(page, "None")
    await ask(page, "<img src=x onerror=alert(1)><b>bold</b>")
    await wait_for_status(page, "The answer is complete.")

    answer = page.locator("article .answer")
    assert await answer.get_by_role("heading", name="Title").is_visible()
    assert await answer.locator("strong").text_content() == "bold"
    assert await answer.locator("p code").text_content() == "code &amp;"
    assert "text & a link" in await answer.text_content()
    assert await answer.locator("ul ol li").text_content() == "inner"
    assert await answer.locator("td").all_text_contents() == ["1", "<b>2</b>"]
    links = answer.get_by_role("link")
    assert [await link.get_attribute("href") for link in await links.all()] == [
        "https://example.org/a",
        "https://example.org/b.png",
    ]
    assert await links.first.get_attribute("rel") == "noopener noreferrer"
    assert await page.locator("#thread :is(img, b, script)").count() == 0
    assert "<script>alert(1)</script>" in await answer.text_content()
    assert "<b>bold</b>" in await page.locator(".prompt .text").text_content()
    assert "think" not in await answer.text_content()
    await page.get_by_text("Thoughts").click()
    assert await page.get_by_text("First, think.").is_visible()

    await answer.get_by_role("button", name="Copy the code").click()
    await wait_for_status(page, "Code copied.")
    assert await page.evaluate("() => navigator.clipboard.readText()") == 'print("a < b")'


async def test_dropped_documents_become_the_corpus_of_the_chat(page: Any) -> None:
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    text = "Leave is asked for in the yellow book, a week ahead. " * 30
    drop = await page.evaluate_handle(
        """(text) => {
            const drop = new DataTransfer();
            drop.items.add(new File([text], "leave.md"));
            drop.items.add(new File([new Uint8Array([0, 200, 255])], "picture.png"));
            return drop;
        }""",
        text,
    )
    await page.dispatch_event("body", "dragover", {"dataTransfer": drop})
    assert await page.get_by_text("Drop documents to learn from them").is_visible()
    await page.dispatch_event("body", "drop", {"dataTransfer": drop})

    await wait_for_status(page, "1 of 2 documents added to Documents of")
    lines = page.get_by_role("list", name="Documents").get_by_role("listitem")
    assert "Added" in await lines.filter(has_text="leave.md").text_content()
    problem = await lines.filter(has_text="picture.png").get_by_role("alert").text_content()
    assert "picture.png is not UTF-8 text" in problem
    await ask_and_wait(page, "How do I ask for leave?")
    assert "Learned from leave.md" in await article(page, "Adapted").locator(".note").text_content()

    await page.get_by_role("button", name="Delete this corpus").click()
    await wait_for_status(page, "was deleted.")
    assert await page.locator("#corpus").input_value() == ""


async def test_files_that_the_server_would_refuse_are_named(page: Any) -> None:
    async def refuse(route: Any) -> None:
        await route.fulfill(status=413, json={"error": {"message": "an upload is at most 64 MiB"}})

    await page.route("**/v1/files", refuse)
    await page.locator("#files").set_input_files(
        {"name": "large.txt", "mimeType": "text/plain", "buffer": b"large"}
    )

    alert = page.get_by_role("list", name="Documents").get_by_role("alert")
    await alert.wait_for()
    assert await alert.text_content() == "an upload is at most 64 MiB"
    await wait_for_status(page, "0 of 1 document added")


async def test_only_corpora_that_the_model_can_use_are_offered(
    page: Any, server: Server, embedder: Embedder
) -> None:
    corpus = Corpus.create(server.selector.root, "foreign", embedder, "another tokenizer")
    await page.reload()

    await page.get_by_text("1 corpus of another model or embedder is not listed.").wait_for()
    corpus.remove()
    assert await page.get_by_role("option", name=re.compile("foreign")).count() == 0


async def test_a_refused_request_is_announced_in_place_of_the_answer(
    page: Any, server: Server
) -> None:
    async with server.client() as client:
        store = (await client.post("/v1/vector_stores", json={"name": "short-lived"})).json()["id"]
        await page.reload()
        await page.get_by_role("option", name=re.compile("short-lived")).wait_for(state="attached")
        await client.delete(f"/v1/vector_stores/{store}")
    await page.get_by_label("Learn from").select_option("short-lived")

    await ask(page, steps=2)

    alert = article(page, "Adapted").get_by_role("alert")
    await alert.wait_for()
    assert "short-lived" in await alert.text_content()
    assert "being adapted" not in await page.locator("#status").text_content()
    await page.get_by_role("button", name="Send").wait_for()
    assert await article(page, "Base model").locator(".answer").text_content()
    assert "adapted" not in await page.locator("#status").text_content()


async def test_prompts_that_are_empty_or_too_long_are_refused(page: Any) -> None:
    await ask(page, "  \n")
    await wait_for_status(page, "The prompt is empty.")
    assert await page.locator("#thread > li").count() == 0

    await choose(page, "None")
    await ask(page, "word " * 3000)
    alert = article(page, "Base model").get_by_role("alert")
    await alert.wait_for()
    assert "1024" in await alert.text_content()


async def test_an_answer_whose_stream_breaks_off_is_kept_and_marked(page: Any) -> None:
    async def break_off(route: Any) -> None:
        chunk = {"choices": [{"delta": {"content": "half of it"}}]}
        await route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\n")

    await page.route("**/completions", break_off)
    await choose(page, "None")
    await ask(page)

    alert = article(page, "Base model").get_by_role("alert")
    await alert.wait_for()
    assert await alert.text_content() == ("The answer is incomplete: the server closed the stream.")
    assert await page.locator("article .answer").text_content() == "half of it"
    await page.route("**/completions", lambda route: route.abort())
    await page.get_by_role("button", name="Regenerate").click()
    await page.get_by_text("The server cannot be reached.").wait_for()


async def test_a_server_with_keys_is_unlocked_by_a_valid_one(page: Any, server: Server) -> None:
    async with server.gateway(key_digests=(digest("right"),)) as url:
        await page.goto(url)
        field = page.get_by_label("This server requires an API key")
        await field.fill("wrong")
        await page.get_by_role("button", name="Use this key").click()
        await page.get_by_text("The server does not accept this key.").wait_for()
        await field.fill("right")
        await page.get_by_role("button", name="Use this key").click()
        await page.get_by_role("option", name=re.compile("^web ")).wait_for(state="attached")

        assert not await field.is_visible()
        await choose(page, "None")
        await ask(page)
        await wait_for_status(page, "The answer is complete.")
        await page.goto(server.url)


async def test_an_answer_can_be_stopped(page: Any, server: Server) -> None:
    await ask(page, steps=50)
    await page.get_by_role("button", name="Stop").click()

    await wait_for_status(page, "Stopped.")
    assert await page.get_by_role("button", name="Send").is_visible()
    for _ in range(200):
        if not await server.engine.loaded() and not server.engine.staging.names():
            break
        await asyncio.sleep(0.1)
    assert await server.engine.loaded() == []


async def test_a_phone_shows_everything_without_horizontal_scrolling(page: Any) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.get_by_role("button", name="Options").click()
    await ask_and_wait(page, steps=3)
    outside = "nodes => nodes.filter(n => n.getBoundingClientRect().right > 360).length"
    shown = "main :is(button, p, pre, table), #ask :is(button, input, select, textarea)"
    assert await page.evaluate("() => document.documentElement.scrollWidth") == 360
    assert await page.locator(shown).evaluate_all(outside) == 0

    await page.get_by_role("button", name="Details").click()
    await page.get_by_text("All steps as a table").click()
    assert await page.locator("#report-dialog :is(svg, table, button)").evaluate_all(outside) == 0
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Conversations").click()
    assert await page.get_by_role("button", name="New conversation").is_visible()


@pytest.mark.parametrize("kind", ["Completion", "Chat"])
async def test_the_copied_code_runs(page: Any, kind: str) -> None:
    await choose(page, "1", kind)
    await prompt_of(page).fill('it\'s "quoted" $HOME \\n `x`\nand é 🪰')

    outputs = []
    for button, program in (
        ("Copy as curl", ["bash", "-c"]),
        ("Copy as Python", [sys.executable, "-c"]),
    ):
        await page.get_by_role("button", name=button).click()
        await wait_for_status(page, "copied")
        code = re.sub(
            r"(max_tokens\W+)512",
            r"\g<1>4",
            await page.evaluate("() => navigator.clipboard.readText()"),
        )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*program, code, stdout=pipe, stderr=pipe)
        out, problem = await asyncio.wait_for(process.communicate(), _SECONDS)
        assert process.returncode == 0, problem.decode()
        outputs.append(out.decode())

    assert '"adapted": true' in outputs[0]
    assert "'steps': 1" in outputs[1]
