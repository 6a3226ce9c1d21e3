"""Text younger than SmolLM2, whose training data end in 2024, from pinned source distributions.

The projects were first released or rewritten since then (`young.txt`). Code is a whole project;
documentation and changelogs are those of a project, or of several; metadata are the descriptions
that a package index holds. No package carries enough tickets or mail for a domain of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from benchmarks.corpus_adapters.corpora import UNEARTH
from benchmarks.harness.provenance import CACHE
from benchmarks.quality.domains import Domain, fetch, pinned_names, read
from selection.ingest.ingest import Document

PINS = Path(__file__).with_name("young.txt")
Kind: TypeAlias = Literal["code", "documentation", "changelogs", "metadata"]

# Changelogs are long files.
_MAX_BYTES = 1_000_000
# What a release begins with in a changelog; the first of them that it has at all.
_RELEASES = [
    re.compile(pattern, re.MULTILINE) for pattern in (r"^(?=<Update )", r"^(?=## \[?v?\d)")
]


@dataclass(frozen=True)
class YoungDomain:
    """A kind of text of a project, or of several.

    Attributes:
        name: name of the domain.
        kind: what text it is.
        files: by distribution, a pattern that matches the whole path of each file.
        held_out: pattern that matches the whole name of each document that may be held out.
        is_side_by_side: whether the corpus has several releases of the same documents.
        pins: file of the pins of its distributions.
    """

    name: str
    kind: Kind
    files: dict[str, str]
    held_out: str = r".*"
    is_side_by_side: bool = False
    pins: Path = PINS

    def documents(self) -> list[Document]:
        """All its documents; those of the same content under other names are kept.

        Raises:
            RuntimeError: a download failed.
        """
        archives = fetch(self.files, CACHE / "distributions", UNEARTH, self.pins)
        domain = Domain(self.name, self.files)
        found = read(domain, archives, distinct=False, max_bytes=_MAX_BYTES)
        return by_release(found) if self.kind == "changelogs" else found


DOMAINS = (
    YoungDomain("mcp", "code", {"mcp": r"src/.*\.py"}),
    YoungDomain("a2a-sdk", "code", {"a2a_sdk": r"src/.*\.py"}),
    YoungDomain("claude-agent-sdk", "code", {"claude_agent_sdk": r".*\.py"}),
    YoungDomain("zensical", "code", {"zensical": r"crates/.*\.rs"}),
    YoungDomain(
        "deepagents, three releases",
        "code",
        {
            f"deepagents=={version}": r"deepagents/.*\.py"
            for version in ("0.5.9", "0.6.12", "0.7.32")
        },
        held_out=r"deepagents==0\.7\.32/.*",
        is_side_by_side=True,
    ),
    YoungDomain("mcp manual", "documentation", {"mcp": r"docs/.*\.md"}),
    YoungDomain(
        "openai-agents manual",
        "documentation",
        {"openai_agents": r"docs/(?!ja/|ko/|zh/|ref/).*\.md"},
    ),
    YoungDomain(
        "fastmcp manual, three versions",
        "documentation",
        {"fastmcp": r"docs/(?!python-sdk/|snippets/|changelog|updates).*\.mdx"},
        held_out=r"fastmcp/docs/(?!v2/|v3/).*",
        is_side_by_side=True,
    ),
    YoungDomain(
        "changelogs",
        "changelogs",
        {
            "a2a_sdk": r"CHANGELOG\.md",
            "fastmcp": r"docs/changelog\.mdx",
            "openai_agents": r"CHANGELOG\.md",
        },
        # The first releases are as old as the model.
        held_out=r".*\b202[56]-.*",
    ),
    YoungDomain("metadata", "metadata", dict.fromkeys(pinned_names(PINS), "PKG-INFO")),
)


def by_release(changelogs: Sequence[Document]) -> list[Document]:
    """The releases of changelogs, each a document that is named by its heading."""
    releases = []
    for changelog in changelogs:
        begins = next((each for each in _RELEASES if each.search(changelog.text)), _RELEASES[-1])
        for text in begins.split(changelog.text):
            if heading := text.partition("\n")[0]:
                name = f"{changelog.name}: {heading}"
                releases.append(Document(name, text, changelog.metadata))
    return releases
