"""A picture of the page while a request adapts, for the README.

Run it through `make screenshot`, beside a running server whose corpus is networkx:
`mayfly corpus add nx --package networkx`, `mayfly serve --corpus nx`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

PROMPT = 'def shortest_path(G, source=None, target=None, weight=None):\n    """Compute '
STEPS = 40
_TIMEOUT_MS = 120_000


def main() -> None:
    """Fill in the form, wait until half of the steps are taken, and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server.")
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"), help="PNG file.")
    arguments = parser.parse_args()
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1100, "height": 820})
        page.set_default_timeout(_TIMEOUT_MS)
        page.goto(arguments.url)
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_role("radio", name="Steps").check()
        page.get_by_role("slider", name="Steps at most").fill(str(STEPS))
        page.get_by_role("button", name="Answer").click()
        page.wait_for_function(
            "half => document.querySelector('#adapted progress').value >= half", arg=STEPS // 2
        )
        page.screenshot(path=arguments.out)
        browser.close()


if __name__ == "__main__":
    main()
