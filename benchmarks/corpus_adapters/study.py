"""Study: corpora, their adapters, and what is measured on passages held out of them, for one model.

Everything is kept in a folder, and an interrupted study goes on. Each corpus is in two homes if
parts are compared: in one its adapter has one part, in the other several.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.corpus_adapters.arms import Start
from benchmarks.corpus_adapters.corpora import HeldOut, copied
from benchmarks.corpus_adapters.learning import learn
from benchmarks.corpus_adapters.workers import Runner, Workers
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit
from benchmarks.latency.journal import Journal
from benchmarks.quality.passages import Passage
from selection.corpus.trained.division import PART_SIZE
from serving.corpus_training.values import End


class Study:
    """The study of one model.

    Args:
        model: folder of the model.
        folder: where the corpora and the measurements are kept.
        starts: the kinds of adapters that corpora get.
        hold_out: makes the corpus of a kind in a home, and its passages.
        workers: number of trainings, or of passages, at once; each takes one core.
        threads: threads of a training; None for its share of the cores.
        options: further options of the command that trains the adapter of a kind.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        starts: Iterable[Start],
        hold_out: Callable[[str, Path], HeldOut],
        workers: int,
        threads: int | None = None,
        options: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._options = options
        self._model, self._hold_out, self._workers = model, hold_out, workers
        self._threads = threads or max(1, (os.cpu_count() or 1) // workers)
        folder.mkdir(parents=True, exist_ok=True)
        self.homes: dict[Start, Path] = {start: folder / start for start in sorted(starts)}
        self.journal = Journal(folder / "measured.json")

    def hold_out(self, kind: str) -> HeldOut:
        """The corpus of a kind, and its passages."""

        def make() -> dict[str, Any]:
            return self._hold_out(kind, self.homes["corpus"]).as_dict()

        return HeldOut.from_dict(self.journal.once(f"corpus {kind}", make))

    def prepare(self, kinds: Iterable[str], limit: TimeLimit) -> dict[str, HeldOut]:
        """Make and learn corpora.

        Args:
            kinds: of corpora.
            limit: no training begins after it.

        Returns:
            The corpora that have an adapter, and the passages that were held out of each.
        """
        made = {kind: self.hold_out(kind) for kind in kinds}
        self._learn(made, limit)
        return {kind: each for kind, each in made.items() if self._learnt(kind) in self.journal}

    def learnt(self, held_out: Mapping[str, HeldOut]) -> dict[str, Any]:
        """What the command said of the adapters of corpora."""
        return {
            kind: {
                "sequences": each.sequences,
                **self.journal.once(self._learnt(kind), dict),
            }
            for kind, each in held_out.items()
        }

    def add(self, passage: str, scores: Any) -> None:
        """Keep what was measured on a passage, by its `passage_key`."""
        self.journal.once(passage, lambda: scores)

    def measure(
        self,
        held_out: Mapping[str, HeldOut],
        open_runner: Callable[[], Runner],
        limit: TimeLimit,
    ) -> list[tuple[str, Passage, Any]]:
        """What was measured on passages, by this run or a former one; in turn of each corpus.

        Args:
            held_out: the corpora and their passages.
            open_runner: makes the runner of a process.
            limit: no passage begins after it.
        """
        missing = [
            (kind, passage)
            for kind, passage in _in_turn(held_out)
            if passage_key(kind, passage) not in self.journal
        ]
        if missing and not limit.is_over:
            with Workers(self._workers, open_runner) as workers:
                tasks = ((kind, passage, held_out[kind].corpus) for kind, passage in missing)
                for kind, passage, scores in workers.measure(tasks, limit):
                    self.add(passage_key(kind, passage), scores)
        return [
            (kind, passage, self.journal.once(passage_key(kind, passage), dict))
            for kind, passage in _in_turn(held_out)
            if passage_key(kind, passage) in self.journal
        ]

    def _learn(self, passages: Mapping[str, HeldOut], limit: TimeLimit) -> None:
        """Train the adapters of the corpora, and keep what the command says of each.

        One that had no more time in a former run is trained further, unless something was measured
        with it.
        """
        former = {kind: self._former_outcome(kind) for kind in passages}
        kinds = [
            kind
            for kind, outcome in former.items()
            if not outcome or not (_are_learnt(outcome) or self._is_measured(kind, passages[kind]))
        ]
        missing = [(kind, start) for kind in kinds for start in self.homes]
        # Before any is trained: a copy has no adapter.
        for kind, start in missing:
            copied(self.homes["corpus"], passages[kind].corpus, self.homes[start])

        def train(number: int, adapter: tuple[str, Start]) -> dict[str, Any] | None:
            rounds = math.ceil((len(missing) - number) / self._workers)
            if limit.is_over:
                return None
            kind, start = adapter
            outcome = self._outcome(kind, passages[kind], start, limit.left / rounds)
            if before := former[kind].get(start):
                outcome |= {key: before[key] + outcome[key] for key in ("steps", "seconds")}
            return outcome if outcome["adapter"]["sequences"] else None

        with ThreadPoolExecutor(self._workers) as pool:
            outcomes = pool.map(train, range(len(missing)), missing)
            for kind in kinds:
                outcome = dict(zip(self.homes, islice(outcomes, len(self.homes)), strict=True))
                if all(outcome.values()):
                    self.journal.record(self._learnt(kind), outcome)
                elif not former[kind]:
                    progress(f"{kind}: the time was over before anything was learnt\n")

    def _is_measured(self, kind: str, held_out: HeldOut) -> bool:
        return any(passage_key(kind, each) in self.journal for each in held_out.passages)

    def _former_outcome(self, kind: str) -> Mapping[str, Any]:
        name = self._learnt(kind)
        found: dict[str, Any] = self.journal.once(name, dict) if name in self.journal else {}
        return found

    def _outcome(
        self, kind: str, held_out: HeldOut, start: Start, seconds: float
    ) -> dict[str, Any]:
        """Train an adapter of a corpus, for at most these seconds."""
        parts = max(2, round(held_out.sequences / PART_SIZE)) if start == "parts" else 1
        limited = [] if seconds == math.inf else ["--seconds", f"{max(1.0, seconds):.0f}"]
        options = ["--parts", str(parts), *limited, *self._options.get(kind, ())]
        home = self.homes[start]
        return learn(home, held_out.corpus, self._model, *options, threads=self._threads)

    @staticmethod
    def _learnt(kind: str) -> str:
        return f"learnt {kind}"


def _are_learnt(outcome: Mapping[str, Any]) -> bool:
    """Whether all adapters of a corpus were trained to the end."""
    return all(each["end"] != End.SECONDS for each in outcome.values())


def passage_key(kind: str, passage: Passage) -> str:
    """Identifies a passage among those of all corpora."""
    return f"{kind}: {passage.key}"


def _in_turn(held_out: Mapping[str, HeldOut]) -> Iterator[tuple[str, Passage]]:
    longest = max((len(each.passages) for each in held_out.values()), default=0)
    for number in range(longest):
        for kind, each in held_out.items():
            if number < len(each.passages):
                yield kind, each.passages[number]
