"""What became of a client's tests, read from its JUnit report, and the failures that are no fault
of the server.

An excuse names tests, what their failure must say, and why a small text model cannot pass them: a
test that fails in another way than excused has failed. What the tests are is the client's affair.
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
    """One test: what became of it, and why, where it did not pass."""

    name: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True)
class Excuse:
    """Tests that cannot pass, by patterns (of `re`) for their names and for what their failure
    says.
    """

    tests: str
    says: str
    reason: str

    def covers(self, case: Case) -> bool:
        """Whether this failure is the one that is meant."""
        return bool(re.search(self.tests, case.name) and re.search(self.says, case.why))


def read_report(file: Path) -> list[Case]:
    """The tests of a JUnit report."""
    return [_case(element) for element in ElementTree.parse(file).iter("testcase")]  # noqa: S314  # written by our child


def excused(cases: Sequence[Case], excuses: Sequence[Excuse]) -> Iterator[Case]:
    """The cases, a failure that is excused as a skip with its reason."""
    for case in cases:
        reasons = [
            excuse.reason for excuse in excuses if case.outcome == "failed" and excuse.covers(case)
        ]
        yield replace(case, outcome="skipped", why=reasons[0]) if reasons else case


def _case(element: ElementTree.Element) -> Case:
    name = f"{element.get('classname', '')}.{element.get('name', '')}"
    for kind in ("failure", "error", "skipped"):
        found = element.find(kind)
        if found is not None:
            message = found.get("message", "")
            if kind == "skipped":
                return Case(name, "skipped", message)  # the text only adds where in which file
            return Case(name, "failed", f"{message}\n{found.text or ''}".strip())
    return Case(name, "passed")
