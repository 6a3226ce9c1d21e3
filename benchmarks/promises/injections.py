"""Faults that are no kill: what is done to a running server from outside, and what its struck
requests may get for it.

Each is real: a learning rate at which training diverges, a trainer that the kernel gives no more
memory, one that is stopped, a shared memory without a free byte, a corpus whose files are scribbled
over. Knows nothing of clients.
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
from selection.corpus.calibration import Calibration, model_digest, to_remember
from selection.corpus.corpus import Corpus
from serving.config import bundled_model

WILD = "wild"  # a corpus with a learning rate at which every training diverges
HANG_SECONDS = 3.0
_PAGE, _SLACK = 4096, 64 << 20


class Injection(Protocol):
    """One kind of fault."""

    name: str
    for_all: bool  # whether other requests may feel it, too
    budget: str  # of the requests that it strikes

    def inject(self, server: Server) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """The fault, for the length of a `with`; gives more fields of the struck requests' bodies."""

    def declared(self, status: int, told: Mapping[str, Any]) -> bool:
        """Whether that is an answer that a struck request may get."""


class Diverging:
    """Not a number: the corpus's own learning rate makes it of every adapter."""

    name, for_all, budget = "nan", False, "steps=2"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Named by the request."""
        yield {"adaptation": {"corpus": WILD}}

    def declared(self, status: int, told: Mapping[str, Any]) -> bool:
        """The base model answers, and the report says that training diverged."""
        return (
            status == 200
            and not told["adaptation"]["adapted"]
            and told["adaptation"]["stop"] == "diverged"
        )


class Starved:
    """Out of memory: the kernel gives the trainer little more than it has.

    With no more at all it is Ray's own threads that end it, and now and then the raylet too: its
    shared store breaks.
    """

    name, for_all, budget = "oom", True, "steps=20"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """By its limit of address space."""
        trainer = server.workers().get("trainer")
        if trainer is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.rlimit(
                    psutil.RLIMIT_AS, (trainer.memory_info().vms + _SLACK, resource.RLIM_INFINITY)
                )
        try:
            yield {"adaptation": {"plan": "batched"}}  # larger batches than it has had memory for
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                if trainer is not None:
                    trainer.rlimit(
                        psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                    )

    def declared(self, status: int, told: Mapping[str, Any]) -> bool:
        """As long as what it has suffices, an adapter; else the reason."""
        return status == 429 or (status == 200 and explained(told))


class Stopped:
    """A trainer that hangs for a while."""

    name, for_all, budget = "hang", True, "seconds=1"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """By SIGSTOP."""
        trainer = server.workers().get("trainer")
        if trainer is not None:
            trainer.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        try:
            yield {}
        finally:
            time.sleep(max(0.0, HANG_SECONDS - (time.monotonic() - begun)))
            if trainer is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    trainer.send_signal(signal.SIGCONT)

    def declared(self, status: int, told: Mapping[str, Any]) -> bool:
        """An adapter, or the reason."""
        return status == 429 or (status == 200 and explained(told))


class Full:
    """No room for an adapter: not a byte is free in shared memory, which must be the server's own."""

    name, for_all, budget = "memory", True, "steps=2"

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """By a file that takes all there is."""
        file = server.memory / "full"
        with file.open("wb", buffering=0) as full, contextlib.suppress(OSError):
            while True:
                full.write(bytes(1 << 20))
        with file.open("ab", buffering=0) as full, contextlib.suppress(OSError):
            while True:
                full.write(bytes(_PAGE))
        try:
            yield {}
        finally:
            file.unlink()

    def declared(self, status: int, told: Mapping[str, Any]) -> bool:
        """The base model answers and the report says that it failed; an adapter where another's has
        just gone.
        """
        return status == 429 or (status == 200 and explained(told))


class Unreadable:
    """A corpus whose files do not hold what they held: a new copy each time, damaged at other
    places.
    """

    name, for_all, budget = "corpus", False, "steps=2"

    def __init__(self, home: Path, like: str, draw: random.Random) -> None:
        # Copied while nobody has it open: later part of it would lie in a log, beside what is
        # damaged.
        self._corpora, self._sound, self._draw, self._numbers = (
            home / "corpora",
            home / "sound",
            draw,
            itertools.count(),
        )
        shutil.copytree(self._corpora / like, self._sound)

    @contextlib.contextmanager
    def inject(self, server: Server) -> Iterator[dict[str, Any]]:
        """Noise over some places of each file, or a file cut short."""
        folder = self._corpora / f"damaged-{next(self._numbers)}"
        shutil.copytree(self._sound, folder)
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            if file.name == "corpus.db" or self._draw.random() < 0.5:
                self._damage(file)
        try:
            yield {"adaptation": {"corpus": folder.name}}
        finally:
            shutil.rmtree(folder)

    def declared(self, status: int, told: Mapping[str, Any]) -> bool:
        """The corpus is refused as damaged; where the damage is in what nobody reads, an adapter,
        or the reason.
        """
        return (status == 400 and told["error"]["code"] == "corpus_mismatch") or (
            status == 200 and explained(told)
        )

    def _damage(self, file: Path) -> None:
        size = file.stat().st_size
        if self._draw.random() < 0.2:
            with file.open("r+b") as cut:
                cut.truncate(self._draw.randrange(size + 1))
            return
        with file.open("r+b") as scribbled:
            for _ in range(self._draw.randint(1, 20)):
                scribbled.seek(self._draw.randrange(size + 1))
                scribbled.write(self._draw.randbytes(64))


def explained(told: Mapping[str, Any]) -> bool:
    """An adapted answer, or one whose report says why it is not."""
    return bool(told["adaptation"]["adapted"] or told["adaptation"]["reason"])


def make_wild(home: Path, like: str) -> None:
    """The corpus WILD, of the same documents as another."""
    shutil.copytree(home / "corpora" / like, home / "corpora" / WILD)
    corpus = Corpus.open(home / "corpora", WILD)
    calibration = Calibration(
        regularisation=0.1,
        gain=0.4,
        learning_rate=1e30,
        rank=16,
        passages=1,
        percent_of_base=100.0,
        percent_by_default=100.0,
    )
    corpus.remember(to_remember(calibration, corpus.meta(), model_digest(bundled_model())))
    corpus.close()
