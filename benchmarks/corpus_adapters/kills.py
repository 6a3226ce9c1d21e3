"""`mayfly corpus train`, killed at random moments: does it go on, is anything half-written used?

Rounds: some runs of the command are killed by SIGKILL, the next one may end. Every second kill
comes while a checkpoint or an adapter is being written, the others once there is a checkpoint.
After each kill the corpus's adapter is looked up as a request would: there must be none, or the
finished one, and the next run must go on from where the checkpoint is. A run that ends must have
made the adapter of an uninterrupted run, bit by bit. Then single bits of the adapter's files are
flipped: it must not be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.corpus_adapters.learning import (
    learn,
    train_command,
    trained_shape,
)
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.server import MODEL, create_corpora, source_documents
from selection.corpus.corpus import Corpus
from selection.errors import CorpusError
from selection.ingest.ingest import Chunking, Document
from serving.config import bundled_model
from serving.corpus_training.stored import Recipe, StoredCorpus, calls_here
from serving.environment import environment

CORPUS = "killed"
# Runs side by side, each with a corpus and a core of its own.
RUNS = 2
KILLS_PER_ROUND = (3, 6)
FLIPS = 20
# Documents enough to hold some out; short, since a start of the command takes longest.
_DOCUMENTS, _CHARACTERS, _LENGTH = 12, 2000, 64
# A kill during a write comes at most these seconds after its first file has appeared.
_WRITE_SECONDS = 0.03
_POLL_SECONDS = 0.001


class KillRun:
    """One run over one corpus.

    Args:
        home: an empty folder.
        rng: draws the moments of the kills and the flipped bits.

    Attributes:
        injected: number of kills.
        in_writes: those of them while something was being written.
        with_checkpoint: those of them after which there was a checkpoint.
        resumed: those of `with_checkpoint` after which the next run went on from there.
        half_written: number of lookups that found an adapter other than the finished one.
        finished: number of runs that ended, with the adapter of an uninterrupted run.
        different: number of runs that ended with another adapter.
        flips: number of flipped bits.
        flips_used: those with which an adapter was used that was not the finished one.
    """

    def __init__(self, home: Path, rng: random.Random) -> None:
        self._home, self._rng = home, rng
        self._shape = trained_shape(bundled_model())
        self.injected = self.in_writes = self.with_checkpoint = self.resumed = 0
        self.half_written = self.finished = self.different = self.flips = self.flips_used = 0
        create_corpora(home, {CORPUS: _documents()}, Chunking(max_length=_LENGTH))
        started = time.monotonic()
        self.uninterrupted = learn(home, CORPUS, MODEL, threads=1)
        self._seconds = time.monotonic() - started
        self._weights = self._used()
        assert self._weights is not None, "an uninterrupted run makes an adapter"
        self._flip_bits()
        self._forget()

    def run(self, kills: int, limit: TimeLimit) -> None:
        """Kill, look, let the command end, and begin again, until there were as many kills, or the
        time is over.
        """
        while self.injected < kills and not limit.is_over:
            round_kills = min(self._rng.randint(*KILLS_PER_ROUND), kills - self.injected)
            has_ended, before = False, 0
            for _ in range(round_kills):
                has_ended = not self._kill_once()
                taken = self._taken()
                self.resumed += 0 < before <= taken
                if has_ended:
                    break
                progress(f"kill {self.injected} of {kills}")
                self.with_checkpoint += taken > 0
                before = taken
            if not has_ended:
                self._finish()
                self.resumed += before > 0
            is_same = self._used() == self._weights
            self.finished += is_same
            self.different += not is_same
            self._forget()

    def _kill_once(self) -> bool:
        """Kill a run, and look for what it left; whether it had not ended before."""
        process = subprocess.Popen(
            train_command(self._home, CORPUS, MODEL),
            env={**os.environ, **environment(1)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        is_writing = self._wait(process, until_write=self.injected % 2 == 1)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return False
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the command ended with {process.returncode} before it was killed")
        self.injected += 1
        self.in_writes += is_writing
        used = self._used()
        self.half_written += used is not None and used != self._weights
        return True

    def _wait(self, process: subprocess.Popen[bytes], *, until_write: bool) -> bool:
        """Wait for a random moment, and after that for a write, or before it for a checkpoint;
        whether there was a write.
        """
        checkpoint = self._home / "corpora" / CORPUS / "trained" / "checkpoint.json"
        while not until_write and process.poll() is None and not checkpoint.exists():
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._rng.uniform(0, self._seconds))
        known = self._files()
        while until_write and process.poll() is None:
            if self._files() - known:
                time.sleep(self._rng.uniform(0, _WRITE_SECONDS))
                return process.poll() is None
            time.sleep(_POLL_SECONDS)
        return False

    def _finish(self) -> None:
        """Let the command end: it must not take the steps again that were kept."""
        before = self._taken()
        outcome = learn(self._home, CORPUS, MODEL, threads=1)
        limit = self.uninterrupted["steps"] - before
        if before and outcome["steps"] > limit:
            raise RuntimeError(f"{outcome['steps']} steps after a kill, and not at most {limit}")

    def _files(self) -> set[Path]:
        """The files beside the corpus, of the adapter and of checkpoints."""
        return set((self._home / "corpora" / CORPUS / "trained").rglob("*"))

    def _taken(self) -> int:
        """The number of steps behind the checkpoint; of a finished training, all of them."""
        with self._corpus() as corpus:
            stored = corpus.training.load_checkpoint()
            if stored is None:
                status = corpus.training.status(self._shape)
                is_finished = status.learnt and not status.not_learnt
                return int(self.uninterrupted["steps"]) if is_finished else 0
            of = stored.progress["recipe"]
            recipe = Recipe(self._shape, of["learning_rate"], tuple(of["rates"]))
            side = StoredCorpus(calls_here(corpus.training), recipe)
            checkpoint = asyncio.run(side.resume())
        assert checkpoint is not None, "it is for this trainer"
        return checkpoint.count[0]

    def _used(self) -> bytes | None:
        """The adapter that a request would start from."""
        with self._corpus() as corpus:
            found = corpus.trained.start(self._shape, None)
            assert found is not None, "the corpus is not divided"
            if found.start is None:
                return None
            try:
                return corpus.trained.weights(found.start).weights
            except CorpusError:
                return None

    def _flip_bits(self) -> None:
        """Flip one bit at a time in the adapter's files, and look it up."""
        files = sorted(file for file in self._files() if file.stat().st_size)
        for _ in range(FLIPS):
            file = self._rng.choice(files)
            content = file.read_bytes()
            damaged = bytearray(content)
            damaged[self._rng.randrange(len(damaged))] ^= 1 << self._rng.randrange(8)
            file.write_bytes(damaged)
            used = self._used()
            self.flips += 1
            self.flips_used += used is not None and used != self._weights
            file.write_bytes(content)

    def _forget(self) -> None:
        with self._corpus() as corpus, corpus.training.lock():
            corpus.training.remove()

    @contextlib.contextmanager
    def _corpus(self) -> Iterator[Corpus]:
        with closing(Corpus.open(self._home / "corpora", CORPUS)) as corpus:
            yield corpus


def measure_kills(home: Path, kills: int, seed: int, limit: TimeLimit) -> dict[str, Any]:
    """The whole run.

    Args:
        home: an empty folder.
        kills: number of kills.
        seed: of the moments and of the flipped bits.
        limit: no round begins after it.
    """

    def run(number: int) -> KillRun:
        one = KillRun(home / str(number), random.Random(f"{seed} {number}"))  # noqa: S311
        one.run(kills // RUNS, limit)
        return one

    with ThreadPoolExecutor(RUNS) as pool:
        runs = [*pool.map(run, range(RUNS))]

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in runs)

    return {
        **{name: total(name) for name in ("injected", "in_writes", "with_checkpoint", "resumed")},
        "half_written_used": total("half_written"),
        "finished_equal": total("finished"),
        "finished_different": total("different"),
        "flips": {"injected": total("flips"), "used": total("flips_used")},
        "uninterrupted": runs[0].uninterrupted,
    }


def _documents() -> list[Document]:
    found = [each for each in source_documents() if len(each.text) >= _CHARACTERS]
    return [Document(each.name, each.text[:_CHARACTERS]) for each in found[:_DOCUMENTS]]
