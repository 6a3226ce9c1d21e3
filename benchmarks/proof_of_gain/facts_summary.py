"""What the answers to the questions on the handbook come to; intervals are over documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.proof_of_gain.arms import SHOWN_ALONE
from benchmarks.quality.bootstrap import interval


@dataclass(frozen=True)
class FactsRow:
    """What was answered to a question.

    Attributes:
        document: the document that has the answer.
        question: the question.
        answer: the right answer.
        is_shown: whether the chosen text, where it is shown alone, has the answer.
        arms: whether the answer is `right`, and its `line`, by name of the arm.
    """

    document: str
    question: str
    answer: str
    is_shown: bool
    arms: Mapping[str, Mapping[str, Any]]

    def right(self, arm: str) -> float:
        """100 if the answer of an arm is right, otherwise 0."""
        return float(100 * self.arms[arm]["right"])


def facts_summary(rows: Sequence[FactsRow]) -> dict[str, Any]:
    """Per cent of right answers by arm, how many points these are above those of the chosen text
    shown alone, and of how many questions that text has the answer; None without questions.
    """
    if not rows:
        return dict.fromkeys(("facts_right", "facts_minus_shown", "facts_in_shown"))
    documents, shown = [row.document for row in rows], SHOWN_ALONE.name
    return {
        "facts_right": {
            arm: interval([row.right(arm) for row in rows], documents) for arm in rows[0].arms
        },
        "facts_minus_shown": {
            arm: interval([row.right(arm) - row.right(shown) for row in rows], documents)
            for arm in rows[0].arms
            if arm != shown
        },
        "facts_in_shown": interval([100.0 * row.is_shown for row in rows], documents),
    }
