"""docs/seams.md: the page names files and tests that exist, and all of vLLM's plugins."""

from __future__ import annotations

import re
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[3]
_PAGE = (_REPOSITORY / "docs" / "seams.md").read_text()


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"`((?:serving|adapters|selection|tests|deploy)(?:/[\w.]+)*)`", _PAGE)

    missing = [path for path in sorted(set(paths)) if not (_REPOSITORY / path).exists()]

    assert len(set(paths)) > 40
    assert missing == []


def test_every_plugin_is_on_the_page() -> None:
    plugins = (_REPOSITORY / "serving" / "engine" / "plugins").glob("[a-z]*.py")

    missing = [each.name for each in plugins if f"plugins/{each.name}`" not in _PAGE]

    assert missing == []
