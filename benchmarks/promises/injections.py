"""Faults other than kills: what is done to a running server, and what targeted requests may get.

Each is real: a learning rate at which training diverges, a trainer without further memory, a
stopped trainer, a shared memory without a free byte, a corpus with damaged files. Knows nothing of
clients.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks.harness.server import Server
from selection.corpus.calibration import Calibration, calibration_meta, model_digest
from selection.corpus.corpus import Corpus
from serving.config import bundled_model

# Name of a corpus with a learning rate at which every training diverges.
DIVERGING_CORPUS = "diverging"
HANG_SECONDS = 3.0
_PAGE_BYTES, _SPARE_BYTES = 4096, 64 << 20


class Injection(Protocol):
    """One kind of fault.

    Attributes:
        name: kind of fault.
        affects_all: whether it may affect other requests than the targeted ones.
        budget: Compute-Budget of the targeted requests.
    """

    name: str
    affects_all: bool
    budget: str

    def inject(self, server: Server) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Inject the fault within the `with` block; yields body fields for targeted requests."""

    def is_allowed(self, status: int, body: Mapping[str, Any]) -> bool:
        """Whether a targeted request may get this response."""


class Diverging:
    """Training that diverges, by the learning rate of the request's corpus."""

    name, affects_all, budget = "nan", False, "steps=2"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Name that corpus in the request."""
        yield {"adaptation": {"corpus": DIVERGING_CORPUS}}

    def is_allowed(self, status: int, body: Mapping[str, Any]) -> bool:
        """The base model answers, and the report says that training diverged."""
        return (
            status == 200
            and not body["adaptation"]["adapted"]
            and body["adaptation"]["stop"] == "diverged"
        )


class OutOfMemory:
    """A trainer out of memory: the kernel gives it little more than it has.

    Without any spare memory, Ray's own threads would end the trainer, and sometimes the raylet.
    """

    name, affects_all, budget = "oom", True, "steps=20"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Limit the trainer's address space."""
        trainer = server.workers().get("trainer")
        if trainer is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.rlimit(
                    psutil.RLIMIT_AS,
                    (trainer.memory_info().vms + _SPARE_BYTES, resource.RLIM_INFINITY),
                )
        try:
            yield {"adaptation": {"plan": "batched"}}  # larger batches than before
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                if trainer is not None:
                    trainer.rlimit(
                        psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                    )

    def is_allowed(self, status: int, body: Mapping[str, Any]) -> bool:
        """An adapter while memory suffices, else a reason, or a 429."""
        return status == 429 or (status == 200 and is_explained(body))


class Hanging:
    """A trainer that hangs for HANG_SECONDS."""

    name, affects_all, budget = "hang", True, "seconds=1"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Stop the trainer by SIGSTOP."""
        trainer = server.workers().get("trainer")
        if trainer is not None:
            trainer.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        try:
            yield {}
        finally:
            time.sleep(max(0.0, HANG_SECONDS - (time.monotonic() - started)))
            if trainer is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    trainer.send_signal(signal.SIGCONT)

    def is_allowed(self, status: int, body: Mapping[str, Any]) -> bool:
        """An adapter, or a reason, or a 429."""
        return status == 429 or (status == 200 and is_explained(body))


class FullSharedMemory:
    """No byte free for an adapter in the shared memory, which must be the server's own."""

    name, affects_all, budget = "memory", True, "steps=2"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Fill the shared memory with one file."""
        file = server.shared_memory / "full"
        with file.open("wb", buffering=0) as full, contextlib.suppress(OSError):
            while True:
                full.write(bytes(1 << 20))
        with file.open("ab", buffering=0) as full, contextlib.suppress(OSError):
            while True:
                full.write(bytes(_PAGE_BYTES))
        try:
            yield {}
        finally:
            file.unlink()

    def is_allowed(self, status: int, body: Mapping[str, Any]) -> bool:
        """The base model with a reason; or an adapter, where another has just freed its space."""
        return status == 429 or (status == 200 and is_explained(body))


class DamagedCorpus:
    """A damaged corpus: a new copy each time, damaged at other places."""

    name, affects_all, budget = "corpus", False, "steps=2"

    def __init__(self, home: Path, source: str, rng: random.Random) -> None:
        # Copied while it is closed, so that no part of it is in a write-ahead log.
        self._corpora, self._original, self._rng, self._numbers = (
            home / "corpora",
            home / "sound",
            rng,
            itertools.count(),
        )
        shutil.copytree(self._corpora / source, self._original)

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Overwrite some places of each file with noise, or truncate it."""
        folder = self._corpora / f"damaged-{next(self._numbers)}"
        shutil.copytree(self._original, folder)
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            if file.name == "corpus.db" or self._rng.random() < 0.5:
                self._damage(file)
        try:
            yield {"adaptation": {"corpus": folder.name}}
        finally:
            shutil.rmtree(folder)

    def is_allowed(self, status: int, body: Mapping[str, Any]) -> bool:
        """The corpus is refused as damaged; or an adapter or a reason, where the damage is in
        parts that are not read.
        """
        return (status == 400 and body["error"]["code"] == "corpus_mismatch") or (
            status == 200 and is_explained(body)
        )

    def _damage(self, file: Path) -> None:
        size = file.stat().st_size
        if self._rng.random() < 0.2:
            with file.open("r+b") as truncated:
                truncated.truncate(self._rng.randrange(size + 1))
            return
        with file.open("r+b") as damaged:
            for _ in range(self._rng.randint(1, 20)):
                damaged.seek(self._rng.randrange(size + 1))
                damaged.write(self._rng.randbytes(64))


def is_explained(body: Mapping[str, Any]) -> bool:
    """Whether an answer is adapted, or its report gives the reason why not."""
    return bool(body["adaptation"]["adapted"] or body["adaptation"]["reason"])


def create_diverging_corpus(home: Path, source: str) -> None:
    """Create DIVERGING_CORPUS from the documents of another corpus."""
    shutil.copytree(home / "corpora" / source, home / "corpora" / DIVERGING_CORPUS)
    corpus = Corpus.open(home / "corpora", DIVERGING_CORPUS)
    calibration = Calibration(
        regularisation=0.1,
        gain=0.4,
        learning_rate=1e30,
        rank=16,
        passages=1,
        percent_of_base=100.0,
        percent_by_default=100.0,
    )
    corpus.update_meta(calibration_meta(calibration, corpus.meta(), model_digest(bundled_model())))
    corpus.close()
