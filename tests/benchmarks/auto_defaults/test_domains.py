"""The text that defaults are chosen on: its pins, and that it is not the reported text."""

from __future__ import annotations

from benchmarks.auto_defaults.domains import DOMAINS, PINS, near_copies_of
from benchmarks.proof_of_gain.young_text import PINS as REPORTED_PINS
from benchmarks.quality.domains import PINS as QUALITY_PINS
from benchmarks.quality.domains import pinned_names
from selection.ingest.ingest import Document


def test_every_distribution_is_pinned() -> None:
    pinned = pinned_names(PINS)
    names = {each.partition("==")[0] for each in pinned}

    assert pinned == sorted(set(pinned))
    assert {name for domain in DOMAINS for name in domain.files} <= names | set(pinned)
    assert all(domain.pins == PINS for domain in DOMAINS)


def test_no_project_is_one_of_a_report() -> None:
    own, *reported = (
        {each.partition("==")[0] for each in pinned_names(pins)}
        for pins in (PINS, REPORTED_PINS, QUALITY_PINS)
    )

    assert own.isdisjoint(set().union(*reported))


def test_a_near_copy_of_reported_text_is_found() -> None:
    words = [f"word{n}" for n in range(40)]
    reported = [Document("reported", " ".join(words), {})]
    half = Document("half", " ".join([*words[:30], *(f"other{n}" for n in range(10))]), {})
    new = Document("new", " ".join(f"other{n}" for n in range(40)), {})
    short = Document("short", "word1", {})

    assert near_copies_of([half, new, short], reported) == ["half"]
