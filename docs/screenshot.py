"""A picture of the page while a request adapts, for the README.

Run it through `make screenshot`, beside a running server whose corpus is networkx:
`mayfly corpus add networkx --package networkx`, `mayfly serve --corpus networkx`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

PROMPT = "What does shortest_path return in networkx when no target is given?"
STEPS = 30
TOKENS = 120
_TIMEOUT_MS = 120_000


def main() -> None:
    """Send a prompt, wait until half of the steps are taken, and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server.")
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"), help="PNG file.")
    arguments = parser.parse_args()
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1200, "height": 860})
        page.set_default_timeout(_TIMEOUT_MS)
        page.goto(arguments.url)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Tokens at most").fill(str(TOKENS))
        page.get_by_role("button", name="Close").click()
        page.get_by_role("radio", name="Steps").check()
        page.get_by_role("slider", name="Steps at most").fill(str(STEPS))
        page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
        page.get_by_role("button", name="Send").click()
        page.wait_for_function(
            "half => document.querySelector('.adapted progress').value >= half", arg=STEPS // 2
        )
        page.screenshot(path=arguments.out)
        browser.close()


if __name__ == "__main__":
    main()
