"""A trainer on the bundled model, small corpora, and a server process that trains them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.config import TrainerConfig
from adapters.fingerprint import model_fingerprint
from adapters.training import TrainingRequest, TrainingResult
from selection.config import AdapterShape
from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embedder
from selection.ingest.ingest import tokenizer_digest
from selection.library.library import Library
from selection.threaded_embedder import ThreadedEmbedder
from serving.calls import SerialExecutor
from serving.corpus_training import course
from serving.corpus_training import trainings as trainings_module
from serving.corpus_training.trainings import CorpusTrainings
from serving.workers.stages import TrainerWorker

DOCUMENTS = 12
SEQUENCES = 4  # of a document
_SHIPS = ("sloop", "ketch", "yawl", "cutter", "schooner", "brig", "barque", "lugger")


def texts(document: int, sequences: int = SEQUENCES) -> list[str]:
    """The sequences of a document, which have much in common with those of others."""
    ship = _SHIPS[document % len(_SHIPS)]
    return [
        f"The {ship} number {document} has {number + 2} sails and belongs to the harbour of Yth."
        for number in range(sequences)
    ]


@pytest.fixture(scope="session")
def trainer(nano: str) -> TrainerWorker:
    return TrainerWorker(TrainerConfig(nano, precision="float32", slots=2))


@pytest.fixture(scope="session")
def shape(nano: str) -> AdapterShape:
    config = TrainerConfig(nano)
    return AdapterShape(model_fingerprint(Path(nano)), config.rank, config.targets)


AddDocuments = Callable[..., None]


@pytest.fixture
def add(words: Embedder, tokenizer: Any) -> AddDocuments:
    """Adds documents of these numbers to a corpus."""

    def add(corpus: Corpus, *documents: int) -> None:
        for document in documents:
            chunks = [
                Chunk(0, text, tuple(tokenizer.encode(text, add_special_tokens=False)))
                for text in texts(document)
            ]
            embeddings = words.embed([chunk.text for chunk in chunks])
            corpus.add(f"document {document}", str(document), chunks, embeddings)

    return add


@pytest.fixture
def corpus(tmp_path: Path, words: Embedder, tokenizer: Any, add: AddDocuments) -> Iterator[Corpus]:
    """A corpus of DOCUMENTS documents."""
    corpus = Corpus.create(tmp_path / "corpora", "ships", words, tokenizer_digest(tokenizer))
    add(corpus, *range(DOCUMENTS))
    yield corpus
    corpus.close()


@pytest.fixture
def boats(corpus: Corpus, words: Embedder, add: AddDocuments) -> None:
    """Another vector store beside `ships`, of two documents."""
    boats = Corpus.create(corpus.folder.parent, "boats", words, corpus.meta()["tokenizer"])
    add(boats, 1, 2)
    boats.close()


class PausableTrainer:
    """A trainer that holds its first `free` requests back no longer than it must, and all others
    until `running` is set. It says that it is several: `number`.
    """

    def __init__(self, trainer: TrainerWorker, free: int = 0, number: int = 1) -> None:
        self.number, self.held = number, 0
        self.learning_rate, self.loss = trainer.learning_rate, trainer.loss
        self.corpus_rates, self.compare = trainer.corpus_rates, trainer.compare
        self.give_way_calls: list[float] = []
        self.running, self.waiting = asyncio.Event(), asyncio.Event()
        self._trainer, self._free = trainer, free

    async def train(self, request: TrainingRequest, on_step: Any = None) -> TrainingResult:
        if self._free:
            self._free -= 1
        else:
            self.waiting.set()
            self.held += 1
            await self.running.wait()
        return await self._trainer.train(request, on_step)

    async def count(self) -> int:
        return self.number

    async def give_way(self, seconds: float) -> None:
        self.give_way_calls.append(seconds)


@pytest.fixture
def library(
    tmp_path: Path, corpus: Corpus, words: Embedder, tokenizer: Any
) -> Iterator[SerialExecutor[Library]]:
    library = Library(
        tmp_path / "corpora", ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "files"
    )
    yield SerialExecutor(library)
    library.close()


Serve = Callable[..., Any]


@pytest.fixture
def serving(
    library: SerialExecutor[Library], shape: AdapterShape, monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """The trainings of a server process, which ends with the `with` block."""
    for name in ("RECORD_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(trainings_module, name, 0.05)
    monkeypatch.setattr(course, "TRIAL_SEQUENCES", 2 * SEQUENCES)

    @asynccontextmanager
    async def serving(
        trainer: Any, *, busy: bool = False, keeps_fresh: bool = False
    ) -> AsyncIterator[CorpusTrainings]:
        trainings = CorpusTrainings(trainer, library, shape, lambda: busy, keeps_fresh=keeps_fresh)
        task = asyncio.create_task(trainings.run())
        yield trainings
        task.cancel()
        await asyncio.wait([task])

    return serving


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition on what another task does."""
    while not await condition():  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.02)
