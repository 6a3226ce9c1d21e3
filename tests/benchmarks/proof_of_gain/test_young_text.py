"""Domains of young text: their pins, and the releases of a changelog."""

from __future__ import annotations

from benchmarks.proof_of_gain.young_text import DOMAINS, PINS, by_release
from benchmarks.quality.domains import pinned_names
from selection.ingest.ingest import Document


def test_every_distribution_is_pinned() -> None:
    pinned = pinned_names(PINS)
    names = {each.partition("==")[0] for each in pinned}

    assert pinned == sorted(set(pinned))
    assert {name for domain in DOMAINS for name in domain.files} <= names | set(pinned)


def test_each_release_of_a_changelog_is_a_document() -> None:
    changelog = Document(
        "thing/CHANGELOG.md",
        "# Changelog\n\n## [1.1.0](url) (2026-01-02)\n\n### Features\n\n* more\n"
        "## 1.0.0\n\n* first\n",
        {"domain": "changelogs"},
    )

    documents = by_release([changelog])

    assert [document.name for document in documents] == [
        "thing/CHANGELOG.md: # Changelog",
        "thing/CHANGELOG.md: ## [1.1.0](url) (2026-01-02)",
        "thing/CHANGELOG.md: ## 1.0.0",
    ]
    assert "".join(document.text for document in documents) == changelog.text
    assert all(document.metadata == changelog.metadata for document in documents)


def test_headings_inside_the_update_of_a_release_do_not_divide_it() -> None:
    text = '<Update label="v2">\n## [v2: a name](url)\n</Update>\n<Update label="v1">\n</Update>\n'

    documents = by_release([Document("changelog.mdx", text, {})])

    assert [document.name.partition(": ")[2] for document in documents] == [
        '<Update label="v2">',
        '<Update label="v1">',
    ]
