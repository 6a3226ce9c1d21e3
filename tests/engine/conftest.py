"""One real engine for all tests here: vLLM, selector and trainer behind a gateway, without Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from adapters.fingerprint import model_fingerprint
from adapters.trainer import TrainerConfig
from selection.config import AdapterShape
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder
from selection.ingest.ingest import Document, find_files, ingest, package_folder, tokenizer_digest
from selection.selector import SelectorConfig
from serving.adaptation.admission import Capacity
from serving.config import Config
from serving.engine.config import EngineConfig

SLOTS = 8


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)


@dataclass(frozen=True)
class Server:
    """A running gateway and its parts.

    Attributes:
        url: address of the gateway.
        engine: the engine.
        trainer, selector: configuration of the trainer and the selector.
        gateway: runs another gateway to the same engine with a changed configuration.
    """

    url: str
    engine: Any
    trainer: TrainerConfig
    selector: SelectorConfig
    gateway: Callable[..., AbstractAsyncContextManager[str]]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=120)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, tokenizer: Any) -> Path:
    """A home with the corpus `web`, which contains a real package, and the empty corpus `void`."""
    home = tmp_path_factory.mktemp("home")
    folder = package_folder("starlette")
    corpus = Corpus.create(home / "corpora", "web", embedder, tokenizer_digest(tokenizer))
    documents = [
        Document(str(file.relative_to(folder)), file.read_text())
        for file in find_files(folder)
        if len(file.read_bytes()) < 6000
    ]
    assert ingest(corpus, documents, embedder, tokenizer).chunks > 50
    corpus.close()
    Corpus.create(home / "corpora", "void", embedder, tokenizer_digest(tokenizer)).close()
    return home


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(nano: str, corpora: Path) -> AsyncIterator[Server]:
    """The gateway on a free port."""
    import uvicorn

    os.environ |= {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # Nothing may need a compiler.
    os.environ["CXX"] = "/no/compiler"
    from serving.engine.engine import Engine
    from serving.http.gateway import Gateway
    from serving.http.hardening import ErrorShapeMiddleware
    from serving.http.limited_protocol import LimitedHttpProtocol
    from serving.workers.corpora import CorporaWorker
    from serving.workers.stages import TrainerWorker

    # With it an adapter does not depend on concurrent ones.
    trainer = TrainerConfig(nano, precision="float32")
    config = Config(
        engine=EngineConfig(
            nano,
            "nano",
            trainer.rank,
            trainer.targets,
            max_model_len=1024,
            adapters=SLOTS,
            kv_cache_bytes=256 << 20,
        ),
        trainer=trainer,
        selector=SelectorConfig(
            corpora / "corpora",
            base_model=nano,
            adapters=AdapterShape(model_fingerprint(Path(nano)), trainer.rank, trainer.targets),
        ),
        corpus="web",
        # No request gets fewer steps because of others.
        capacity=Capacity(adaptations=64, undegraded=64),
    )
    engine = await Engine.start(config.engine)
    selects, trains = CorporaWorker(config.selector), TrainerWorker(config.trainer)

    @asynccontextmanager
    async def run_gateway(**changes: Any) -> AsyncIterator[str]:
        gateway: Any = ErrorShapeMiddleware(
            Gateway(engine, selects, trains, replace(config, **changes)), single_replica=False
        )
        web = uvicorn.Server(
            uvicorn.Config(
                gateway,
                http=LimitedHttpProtocol,
                host="127.0.0.1",
                port=0,
                log_level="error",
                lifespan="off",
            )
        )
        serving = asyncio.create_task(web.serve())
        while not web.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
        web.should_exit = True
        await serving

    async with run_gateway() as url:
        yield Server(url, engine, config.trainer, config.selector, run_gateway)
    engine.stop()
    assert not any(name.startswith(f"mayfly-{os.getpid()}-") for name in os.listdir("/dev/shm"))
