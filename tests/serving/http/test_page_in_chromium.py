"""The page in headless Chromium with answers and reports that a test gives: what it says about
them, what it shows of its window, and where the focus goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from selection.corpus.sqlite_store import Source
from serving.adaptation.auto import BASE, CORPUS, AutoChoice, Way
from serving.adaptation.shown import Shown
from serving.budget import AUTO, LIMITS, Terms
from serving.http.page import page_routes
from serving.report import AdaptationReport, Stage, StopReason
from tests.chromium import answer_with, article, browser, note_messages, prompt_of, wait_for_status
from tests.serving.http.web_server import application, serve

__all__ = ["browser"]

_SECONDS = 60
SHOW, BOTH = Way(corpus=False, shown=True), Way(corpus=True, shown=True)
LEARNT = {"from": "corpus", "documents": 3, "sequences": 1200, "not_learnt": 1}
PASSAGES = tuple(
    Source(i, i, name, 0, "text")
    for i, name in enumerate(["a.py", "b.py", f"file-{'0' * 24}/leave.md", "a.py"])
)


def report_of(
    choice: AutoChoice,
    stop: StopReason = StopReason.AUTO,
    shown: Shown | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The report of an answer to `auto`."""
    uses_corpus = choice.best.corpus
    fields: dict[str, Any] = {
        "adapted": uses_corpus,
        "reason": None if uses_corpus else choice.no_adapter_reason,
        "clamped": (),
        "calibrated": False,
        "strategy": "sift",
        "shed": None,
        "targets": None,
        "corpus": "vs_1",
        "seed": 0,
        "start": LEARNT if uses_corpus else None,
        "reused": None,
        "uncertainty": (1.0,),
        "irreducible": 0.2,
        "losses": (),
        "prompt_losses": (),
        "learnt": 0,
        "sources": (),
        "seconds": {Stage.SEARCH: 0.1, Stage.COMPARE: 3.0},
        "spent_seconds": 3.2,
        "adapter": "mayfly" if uses_corpus else None,
    }
    values = fields | more
    auto, shows = choice.as_dict(), shown.as_dict() if shown else None
    return AdaptationReport(budget=AUTO, stop=stop, auto=auto, shown=shows, **values).as_dict()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Address of a web server that serves nothing but the page."""
    with serve(application(page_routes())) as url:
        yield url


@pytest_asyncio.fixture
async def page(browser: Any, url: str) -> AsyncIterator[Any]:
    """The page of a server whose default corpus `web` has an adapter, and whose corpus `new` has
    none. Errors and warnings of its console fail the test.
    """
    model = {
        "id": "tiny",
        "chat_template": True,
        "adaptation": Terms(AUTO, LIMITS, "web").as_dict(None),
    }
    stores = [
        {
            "id": f"vs_{name}",
            "name": name,
            "file_counts": {"completed": 2},
            "adaptation": {"default": name == "web", "usable": True, "reason": None},
        }
        for name in ("web", "new")
    ]

    async def models(route: Any) -> None:
        await route.fulfill(json={"data": [model, {**model, "id": "tiny:web"}]})

    async def corpora(route: Any) -> None:
        await route.fulfill(json={"data": stores, "has_more": False})

    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    page.set_default_timeout(1000 * _SECONDS)
    messages = note_messages(page)
    await page.route("**/v1/models", models)
    await page.route("**/v1/vector_stores*", corpora)
    await page.goto(url)
    await page.get_by_role("option", name="web (default, 2 documents)").wait_for(state="attached")
    yield page
    await context.close()
    assert messages == []


async def ask(page: Any, report: dict[str, Any], text: str = "An answer.") -> None:
    """Send a prompt, and wait for these answers."""
    await page.route("**/completions", answer_with(text, report))
    await prompt_of(page).fill("A question?")
    await prompt_of(page).press("Enter")
    await wait_for_status(page, "Both answers are complete.")


@pytest.mark.parametrize(
    ("losses", "shown", "says", "measured"),
    [
        (
            {BASE: 3.0, CORPUS: 2.5},
            None,
            "Loss of the prompt itself: 3.00 \u2192 2.50. 0 steps in 3.20 s: the adapter of the "
            "corpus answered, since it lowers the loss of the prompt. It has learned 1,200 "
            "passages, and not yet 1 newer one.",
            "3.00 with the base model; 2.50 with the adapter of the corpus.",
        ),
        (
            {BASE: 3.0, CORPUS: 2.5, BOTH: 2.0},
            Shown(4, PASSAGES, 90),
            "3.00 \u2192 2.00. 0 steps in 3.20 s: the adapter of the corpus answered, since it "
            "lowers the loss of the prompt. It has learned 1,200 passages, and not yet 1 newer "
            "one. Shown in the prompt: 4 passages, 90 tokens, from a.py (2 times), b.py, leave.md.",
            "; 2.00 with the adapter of the corpus and chosen text in the prompt.",
        ),
        (
            {BASE: 3.0, SHOW: 2.0},
            Shown(4, PASSAGES[:2], 50, "no room"),
            "3.00 \u2192 2.00. No adapter was needed: chosen text in the prompt helps the base "
            "model enough. Shown in the prompt: 2 passages, 50 tokens, from a.py, b.py (no room).",
            "3.00 with the base model; 2.00 with the base model and chosen text in the prompt.",
        ),
    ],
    ids=["corpus", "corpus, shown", "base, shown"],
)
async def test_what_auto_has_decided_is_said_with_its_losses(
    page: Any, losses: dict[Way, float], shown: Shown | None, says: str, measured: str
) -> None:
    await ask(page, report_of(AutoChoice(losses), shown=shown))

    assert says in await article(page, "Adapted").locator(".note").text_content()
    await page.get_by_role("button", name="Details").click()
    dialog = page.get_by_role("dialog")
    assert measured in await dialog.locator("#helped").text_content()
    assert await dialog.locator(".figures").is_hidden()
    color = "element => getComputedStyle(element).backgroundColor"
    swatch = dialog.locator("#time-table .swatch.stage-compare")
    assert await swatch.evaluate(color) != "rgba(0, 0, 0, 0)"


async def test_text_beside_the_adapter_of_a_corpus_needs_no_loss_of_its_own(page: Any) -> None:
    choice = AutoChoice({BASE: 3.0, CORPUS: 2.5}, shows_beside_corpus=True)

    await ask(page, report_of(choice, shown=Shown(8, PASSAGES, 90)))

    note = await article(page, "Adapted").locator(".note").text_content()
    assert "Loss of the prompt itself: 3.00 \u2192 2.50. 0 steps" in note
    assert "Shown in the prompt: 4 passages, 90 tokens" in note
    await page.get_by_role("button", name="Details").click()
    helped = await page.get_by_role("dialog").locator("#helped").text_content()
    assert helped.endswith("2.50 with the adapter of the corpus.")


async def test_a_training_from_the_adapter_of_a_corpus_says_so(page: Any) -> None:
    sources = ({"document": 1, "name": "a.py", "start": 0, "times": 2},)
    report = report_of(
        AutoChoice({BASE: 3.0, CORPUS: 2.5}),
        StopReason.STEPS,
        strategy="nn",
        uncertainty=(1.0, 0.8, 0.7),
        losses=(2.0, 1.9),
        prompt_losses=((0, 2.5), (2, 2.25)),
        learnt=2,
        sources=sources,
    )
    await ask(page, report)

    note = await article(page, "Adapted").locator(".note").text_content()
    assert "Loss of the prompt itself: 2.50 \u2192 2.25. 2 steps in 3.20 s" in note
    assert "It started from the adapter of the corpus, which has learned 1,200 passages" in note
    await page.get_by_role("button", name="Details").click()
    dialog = page.get_by_role("dialog")
    assert await dialog.get_by_text(
        "has a loss of 2.25 with this adapter and of 2.50 with the adapter of the corpus"
    ).is_visible()
    assert await dialog.get_by_text("Chosen by nearest neighbours.").is_visible()


async def test_a_corpus_with_an_adapter_is_named(page: Any) -> None:
    hint = page.get_by_text("It has an adapter, which Instant and Auto use.")
    assert await hint.is_visible()

    await page.get_by_label("Learn from").select_option("new")

    assert await hint.is_hidden()


async def test_the_window_follows_the_adapted_answer_and_shows_what_is_sent_at_its_top(
    page: Any,
) -> None:
    where = "element => element.getBoundingClientRect().toJSON()"
    report = report_of(AutoChoice({BASE: 3.0, CORPUS: 2.5}))

    await ask(page, report, "word " * 3000)

    prompt_top = (await page.locator("#ask").evaluate(where))["top"]
    adapted = await article(page, "Adapted").evaluate(where)
    assert adapted["top"] < 0
    assert adapted["bottom"] <= prompt_top + 1
    await ask(page, report)
    header = await page.locator("header").evaluate(where)
    sent = await page.locator("#thread > li").last.evaluate(where)
    assert header["bottom"] <= sent["top"] < header["bottom"] + 40


async def test_a_small_window_shows_the_options_only_when_they_are_wanted(page: Any) -> None:
    budget, options = page.get_by_role("radio", name="Auto"), page.get_by_role("button", name="Opt")
    assert await budget.is_visible()
    await options.click()
    assert await budget.is_hidden()
    await options.click()

    await page.set_viewport_size({"width": 1280, "height": 600})
    await budget.wait_for(state="hidden")
    await options.click()
    await ask(page, report_of(AutoChoice({BASE: 3.0, CORPUS: 2.5})))

    assert await budget.is_hidden()
    assert await options.get_attribute("aria-expanded") == "false"


async def test_the_focus_returns_to_the_button_that_has_opened_the_menu(page: Any) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    opens = page.get_by_role("button", name="Conversations")

    await opens.click()
    await page.keyboard.press("Escape")

    assert await opens.evaluate("element => element === document.activeElement")
