"""The pages of the documentation about data of one's own can be followed from top to bottom: half
of all, so that another process follows the others (`test_docs`) at the same time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.pages import CORPUS_PAGES, Readers, follow, in_groups, readers

__all__ = ["readers"]


@pytest.mark.parametrize("page", in_groups(CORPUS_PAGES), ids=lambda page: page.stem)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, readers: Readers) -> None:
    follow(page, readers.reader(page))
