"""Study: the quality of all arms for one model, over several corpora; an interrupted one goes on.

Each corpus is in two homes if parts are compared: in one its adapter has one part, in the other
several.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.corpus_adapters.arms import TRAININGS, Start, arms_of
from benchmarks.corpus_adapters.corpora import HeldOut, Size, copied, hold_out
from benchmarks.corpus_adapters.learning import learn, open_selector
from benchmarks.corpus_adapters.summary import (
    Row,
    by_arm,
    by_corpus,
    combined_gain,
    instant_shares,
)
from benchmarks.corpus_adapters.workers import Workers
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit
from benchmarks.latency.journal import Journal
from benchmarks.quality.passages import Passage
from selection.corpus.trained.division import PART_SIZE

# Share of the time in which adapters of corpora are trained at most.
_TRAINING_SHARE = 0.5


class Study:
    """The study of one model.

    Args:
        model: folder of the model.
        size: the amount of work.
        folder: where the corpora and the measurements are kept.
        workers: number of trainings, and then of passages, at once; each takes one core.
    """

    def __init__(self, model: str, size: Size, folder: Path, workers: int) -> None:
        self._model, self._size, self._workers = model, size, workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._trainings = TRAININGS[size.trainings]
        folder.mkdir(parents=True, exist_ok=True)
        starts = {training.start for training in self._trainings} - {"fresh"}
        self._homes: dict[Start, Path] = {start: folder / start for start in sorted(starts)}
        self._journal = Journal(folder / "measured.json")

    def prepare(self, limit: TimeLimit) -> dict[str, HeldOut]:
        """Make and learn the corpora.

        Args:
            limit: no training begins after it.

        Returns:
            The corpora that have an adapter, and the passages that were held out of each.
        """
        made = {kind: self._held_out(kind) for kind in self._size.kinds}
        self._learn(made, limit)
        return {kind: each for kind, each in made.items() if f"learnt {kind}" in self._journal}

    def run(self, limit: TimeLimit) -> dict[str, Any] | None:
        """Make and learn the corpora, measure the passages, and sum up what was measured; None if
        nothing was.

        Args:
            limit: no training and no passage begins after it.
        """
        passages = self.prepare(TimeLimit(_TRAINING_SHARE * limit.left))
        self._measure(passages, limit)
        rows = [
            Row(kind, passage.name, self._journal.once(_key(kind, passage), dict))
            for kind, passage in _in_turn(passages)
            if _key(kind, passage) in self._journal
        ]
        if not rows:
            return None
        arms = arms_of(self._trainings)
        return {
            "passages": len(rows),
            "passages_of": {kind: sum(row.corpus == kind for row in rows) for kind in passages},
            "workers": self._workers,
            "arms": by_arm(rows, arms),
            "by_corpus": by_corpus(rows, arms),
            "instant": instant_shares(rows, arms),
            "sift_from_corpus_minus_best_single": combined_gain(rows, arms),
            "learnt": {
                kind: {
                    "sequences": each.sequences,
                    **self._journal.once(f"learnt {kind}", dict),
                }
                for kind, each in passages.items()
            },
            "rows": [vars(row) for row in rows],
        }

    def _held_out(self, kind: str) -> HeldOut:
        def make() -> dict[str, Any]:
            selector = open_selector(self._homes["corpus"], self._model)
            made = hold_out(kind, self._size, self._model, selector)
            selector.corpora.close()
            return made.as_dict()

        return HeldOut.from_dict(self._journal.once(f"corpus {kind}", make))

    def _learn(self, passages: Mapping[str, HeldOut], limit: TimeLimit) -> None:
        """Train the adapters of the corpora, and keep what the command says of each."""
        missing = [kind for kind in passages if f"learnt {kind}" not in self._journal]

        def train(number: int, kind: str) -> dict[str, Any]:
            rounds = math.ceil((len(missing) - number) / self._workers) * len(self._homes)
            return {} if limit.is_over else self._outcome(passages[kind], limit.left / rounds)

        with ThreadPoolExecutor(self._workers) as pool:
            for kind, outcome in zip(
                missing, pool.map(train, range(len(missing)), missing), strict=True
            ):
                if outcome and all(each["adapter"]["sequences"] for each in outcome.values()):
                    self._journal.once(f"learnt {kind}", lambda: outcome)  # noqa: B023
                else:
                    progress(f"{kind}: the time was over before anything was learnt\n")

    def _outcome(self, held_out: HeldOut, seconds: float) -> dict[str, Any]:
        """Train the adapters of a corpus, each for at most these seconds."""
        limited = [] if seconds == math.inf else ["--seconds", f"{max(1.0, seconds):.0f}"]
        outcome: dict[str, Any] = {}
        for start, home in self._homes.items():
            copied(self._homes["corpus"], held_out.corpus, home)
            parts = max(2, round(held_out.sequences / PART_SIZE)) if start == "parts" else 1
            options = ["--parts", str(parts), *limited]
            outcome[start] = learn(
                home, held_out.corpus, self._model, *options, threads=self._threads
            )
        return outcome

    def _measure(self, held_out: Mapping[str, HeldOut], limit: TimeLimit) -> None:
        """Score the passages that no former run has scored, in turn those of each corpus."""
        missing = [
            (kind, passage)
            for kind, passage in _in_turn(held_out)
            if _key(kind, passage) not in self._journal
        ]
        if not missing or limit.is_over:
            return
        with Workers(
            self._workers, self._model, self._homes, self._trainings, self._size.prefix
        ) as workers:
            tasks = ((kind, passage, held_out[kind].corpus) for kind, passage in missing)
            for kind, passage, scores in workers.measure(tasks, limit):
                self._journal.once(_key(kind, passage), lambda: scores)  # noqa: B023


def _key(kind: str, passage: Passage) -> str:
    return f"{kind}: {passage.key}"


def _in_turn(held_out: Mapping[str, HeldOut]) -> Iterator[tuple[str, Passage]]:
    longest = max((len(each.passages) for each in held_out.values()), default=0)
    for number in range(longest):
        for kind, each in held_out.items():
            if number < len(each.passages):
                yield kind, each.passages[number]
