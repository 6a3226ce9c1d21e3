"""The pages of the documentation about corpora can be followed from top to bottom: half of all, so
that another process follows the others (`test_docs`) at the same time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.pages import CORPUS_PAGES, Reader, follow, reader

__all__ = ["reader"]


@pytest.mark.parametrize("page", CORPUS_PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, reader: Reader) -> None:
    follow(page, reader)
