"""The documentation: its pages can be followed from top to bottom, every page is listed, and every
link leads somewhere. `test_corpus_pages` follows those about data of one's own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.engine.pages import CORPUS_PAGES, PAGES, ROOT, Readers, follow, in_groups, readers

__all__ = ["readers"]

OTHER_PAGES = [page for page in PAGES if page not in CORPUS_PAGES]
LINKED_PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks", ROOT / "deploy")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)


@pytest.mark.parametrize("page", in_groups(OTHER_PAGES), ids=lambda page: page.stem)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, readers: Readers) -> None:
    follow(page, readers.reader(page))


def test_every_page_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == {page for page in pages if f"({page})" in index}


@pytest.mark.parametrize("page", LINKED_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]+))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in anchors, f"{target}#{anchor}"
