"""Outcomes of a client's tests, from its JUnit report, and the failures that are excused.

An excuse names tests, the text of their failure, and why a small text model cannot pass them: a
test that fails in another way has failed. Knows nothing of what the tests check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Case:
    """The outcome of a test, and the reason if it did not pass."""

    name: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True)
class Excuse:
    """Tests that cannot pass.

    Attributes:
        tests: regular expression for their names.
        says: regular expression for the text of their failure.
        reason: why they cannot pass.
    """

    tests: str
    says: str
    reason: str

    def matches(self, case: Case) -> bool:
        """Whether the excuse is for this failure."""
        return bool(re.search(self.tests, case.name) and re.search(self.says, case.why))


def read_report(file: Path) -> list[Case]:
    """The tests of a JUnit report."""
    return [_case(element) for element in ElementTree.parse(file).iter("testcase")]  # noqa: S314  # written by our child


def with_excuses(cases: Sequence[Case], excuses: Sequence[Excuse]) -> Iterator[Case]:
    """The cases, with excused failures as skips."""
    for case in cases:
        reasons = [
            excuse.reason for excuse in excuses if case.outcome == "failed" and excuse.matches(case)
        ]
        yield replace(case, outcome="skipped", why=reasons[0]) if reasons else case


def _case(element: ElementTree.Element) -> Case:
    name = f"{element.get('classname', '')}.{element.get('name', '')}"
    for tag in ("failure", "error", "skipped"):
        child = element.find(tag)
        if child is not None:
            message = child.get("message", "")
            if tag == "skipped":
                return Case(name, "skipped", message)  # the element's text only adds the place
            return Case(name, "failed", f"{message}\n{child.text or ''}".strip())
    return Case(name, "passed")
