"""Text on which the defaults of `auto` are chosen: of other projects than any that is reported.

The projects are as young as those of the proof (`benchmarks.proof_of_gain.young_text`), and their
kinds of text are the same: two of code, two of documentation, changelogs, descriptions, and three
releases of a project side by side (`domains.txt`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.proof_of_gain.young_text import YoungDomain
from benchmarks.quality.domains import pinned_names
from benchmarks.quality.passages import shingles
from selection.ingest.ingest import Document

PINS = Path(__file__).with_name("domains.txt")

DOMAINS = (
    YoungDomain("verifiers", "code", {"verifiers": r"verifiers/.*\.py"}, pins=PINS),
    YoungDomain(
        "tombi", "code", {"tombi": r"crates/tombi-(lsp|linter|formatter)/.*\.rs"}, pins=PINS
    ),
    YoungDomain(
        "docling-mcp, three releases",
        "code",
        {
            f"docling_mcp=={version}": r"docling_mcp/.*\.py"
            for version in ("1.3.4", "2.0.0", "3.3.0")
        },
        held_out=r"docling_mcp==3\.3\.0/.*",
        is_side_by_side=True,
        pins=PINS,
    ),
    YoungDomain("rumdl manual", "documentation", {"rumdl": r"docs/.*\.md"}, pins=PINS),
    YoungDomain(
        "agentcore manual",
        "documentation",
        {"bedrock_agentcore_starter_toolkit": r"documentation/docs/.*\.md"},
        pins=PINS,
    ),
    YoungDomain(
        "changelogs",
        "changelogs",
        dict.fromkeys(
            (
                "bedrock_agentcore",
                "bedrock_agentcore_starter_toolkit",
                "kernel",
                "mcpo",
                "openai_guardrails",
                "perplexityai",
                "rumdl",
            ),
            r"CHANGELOG\.md",
        ),
        # Of rumdl, which has most of the text, only some releases.
        held_out=r"(?!rumdl/).*|.* 2026-(09|10)-.*",
        pins=PINS,
    ),
    YoungDomain(
        "descriptions", "metadata", dict.fromkeys(pinned_names(PINS), "PKG-INFO"), pins=PINS
    ),
)


def near_copies_of(documents: Iterable[Document], others: Iterable[Document]) -> list[str]:
    """Names of the documents of which at least half of the runs of eight words are in others.

    Args:
        documents: the documents.
        others: other documents, which may be many: they are read one at a time.
    """
    own = {document.name: shingles(document.text) for document in documents}
    everything = set().union(*own.values())
    shared: set[int] = set()
    for other in others:
        shared |= shingles(other.text) & everything
    return [name for name, runs in own.items() if runs and 2 * len(runs & shared) >= len(runs)]
