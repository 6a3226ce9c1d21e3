"""Runner: measures one passage at a time, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.corpus_adapters.learning import open_selector
from benchmarks.corpus_adapters.quality import Answer, QualityRunner, ResidentModel
from benchmarks.proof_of_gain.arms import (
    AUTO,
    COMPARED_SHOWN_TOO,
    COMPARED_TRAININGS,
    LINE_ARMS,
    TRAININGS,
    shown_too,
)
from benchmarks.proof_of_gain.auto import AutoAnswers
from benchmarks.proof_of_gain.cases import Case, Size
from benchmarks.proof_of_gain.copies import share_of_copies
from benchmarks.proof_of_gain.next_line import LineWriter, edit_similarity, first_line, is_exact
from benchmarks.quality.passages import Passage
from selection import Selector
from selection.config import DEFAULT


class ProofRunner:
    """Measures passages of several cases; for one thread.

    Args:
        model: folder of the base model.
        home: home of the corpora.
        cases: the case of each corpus, by the name of the corpus.
        size: the amount of work.
    """

    def __init__(self, model: str, home: Path, cases: Mapping[str, Case], size: Size) -> None:
        self._model, self._home, self._cases, self._size = model, home, cases, size
        self._resident = ResidentModel(model, size.prefix)
        self._selectors: dict[str, Selector] = {}
        self._runners: dict[tuple[str, bool], QualityRunner] = {}

    def measure(self, passage: Passage, corpus: str) -> dict[str, Any]:
        """Bits per byte, seconds and tokens of each arm; the next line of some arms, in code."""
        case = self._cases[corpus]
        named = {
            arm.name: answer for arm, answer in self._runner(case).answers(passage, corpus).items()
        }
        if not case.compares:
            prompt, answer_tokens = passage.tokens[: self._size.prefix], self._size.suffix
            named[AUTO] = self._auto.answer(prompt, corpus, answer_tokens)
        arms = {name: self._scored(passage, answer) for name, answer in named.items()}
        if not case.compares and case.domain.kind == "code":
            wanted = first_line(passage.suffix)
            for name in (name for name in LINE_ARMS if name in named):
                line = self._writer.write(named[name].prompt, named[name].weights)
                arms[name]["line"] = [is_exact(line, wanted), edit_similarity(line, wanted)]
        copies = share_of_copies(self._selector(case.kernel), passage, corpus)
        return {"arms": arms, "copies": copies}

    def _scored(self, passage: Passage, answer: Answer) -> dict[str, Any]:
        return {
            "bits": round(self._resident.bits(passage, answer), 5),
            "seconds": round(answer.seconds, 4),
            "tokens": len(answer.prompt),
            "is_new": answer.is_new,
        }

    def _runner(self, case: Case) -> QualityRunner:
        key = case.kernel, case.compares
        if key not in self._runners:
            choice = self._size.trainings
            self._runners[key] = QualityRunner(
                self._resident,
                {"corpus": self._selector(case.kernel)},
                *(
                    (COMPARED_TRAININGS[choice], COMPARED_SHOWN_TOO)
                    if case.compares
                    else (TRAININGS[choice], shown_too(choice))
                ),
            )
        return self._runners[key]

    def _selector(self, kernel: str) -> Selector:
        if kernel not in self._selectors:
            self._selectors[kernel] = open_selector(self._home, self._model, kernel)
        return self._selectors[kernel]

    @cached_property
    def _auto(self) -> AutoAnswers:
        return AutoAnswers(self._resident, self._selector(DEFAULT), self._model)

    @cached_property
    def _writer(self) -> LineWriter:
        return LineWriter(self._model, self._resident.trainer.scale)
