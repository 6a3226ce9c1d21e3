"""The vLLM engine of a replica, its adapters, and vLLM's own OpenAI application.

An adapter is staged as PEFT's two files in memory-backed storage and loaded. After the last request
that uses it, it is unloaded, and then its files are deleted; a few adapters of corpora stay for the
next request. No generation may run with an adapter
while it is unloaded: vLLM's engine dies of that. Ids are never used again. Name and path belong to
one adapter alone, since vLLM's prefix cache identifies adapters by them: one that is loaded again
finds the prompts that it has seen.

How a request gets its adapter is in `serving.engine.plugins.generate`. vLLM is imported here and in
`serving.engine.plugins` only; docs/seams.md lists what both rely on beyond vLLM's public interface.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections.abc import Coroutine
from typing import Any, TypeVar

import psutil
from transformers import AutoTokenizer

from adapters.adapter import Adapter
from selection.errors import first_line
from selection.examples.templates import set_chat_template
from serving.engine.config import EngineConfig
from serving.engine.core_process import main_of_spawned_processes
from serving.engine.current_request import LoadedAdapter
from serving.engine.plugins.generate import adapt_generation
from serving.engine.plugins.tokenization import tokenize_fairly
from serving.engine.rendering import prompt_tokens
from serving.engine.shared_adapters import SharedAdapters
from serving.engine.staging import Staging, shared_memory_of_children, track_shared_memory
from serving.engine.trial_adapter import trial_adapter
from serving.engine.vllm_arguments import read_arguments, reason
from serving.engine.vllm_flags import chat_template
from serving.engine.vllm_options import check_plugins
from serving.environment import core_share
from serving.errors import DownError, StartError
from serving.observability.log_relay import relay_errors
from serving.observability.startup_progress import report_startup
from serving.processes import is_stopped
from serving.versions import check_versions

# Seconds between checks whether an engine still runs while a call to it is in progress.
_POLL_SECONDS = 0.5

T = TypeVar("T")


class Engine:
    """One vLLM engine and its OpenAI application; create it with `await Engine.start(config)`.

    Attributes:
        app: vLLM's OpenAI application, an ASGI app.
        config: the configuration.
        tokenizer: the model's tokenizer; vLLM's own instance belongs to vLLM's threads.
        staging: where adapters are staged.
    """

    def __init__(self, llm: Any, app: Any, config: EngineConfig, staging: Staging) -> None:
        self.app = app
        self.config = config
        self.tokenizer = AutoTokenizer.from_pretrained(config.model)
        set_chat_template(self.tokenizer, chat_template(config.vllm_flags))
        self.staging = staging
        self._llm = llm
        self._ids = itertools.count(1)
        self._live: set[int] = set()
        self._adapters = SharedAdapters(
            self._load, self._unload, config.adapters, min(config.resident, config.adapters - 1)
        )
        self.staging.reserve(shared_memory_of_children())
        self._vllm_processes = psutil.Process().children(recursive=True)
        adapt_generation(llm, config.max_num_seqs, core_share())

    @classmethod
    async def start(cls, config: EngineConfig) -> Engine:
        """Load the model into a new engine and build vLLM's application around it.

        Raises:
            StartError: vLLM's version is not supported, it would not load Mayfly's plugins or
                adapters of the model, or it refuses a setting or a flag that the user passes on.
        """
        check_versions()
        check_plugins()
        arguments, engine_arguments = read_arguments(config)
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM's loggers pass nothing on to the root logger.
        relay_errors(logging.getLogger("vllm"))
        # Before vLLM changes transformers' classes of some models.
        trial = await asyncio.to_thread(trial_adapter, config)
        staging = Staging()
        report_startup("engine", "loading the model")
        with track_shared_memory(staging), main_of_spawned_processes():
            try:
                llm = AsyncLLM.from_engine_args(engine_arguments)
            # A value does not suit the model. An engine core that ends is another error.
            except ValueError as problem:
                raise StartError(f"vLLM refuses its configuration: {reason(problem)}") from problem
            tokenize_fairly(llm)
            report_startup("engine", "building the API")
            tasks = await llm.get_supported_tasks()
            app = build_app(arguments, tasks, llm.model_config)
            await init_app_state(llm, app.state, arguments, tasks)
        engine = cls(llm, app, config, staging)
        try:
            await engine.check_adapter(trial)
        except BaseException:
            engine.stop()
            raise
        return engine

    async def check_adapter(self, trial: Adapter) -> None:
        """Check that vLLM has a module for every projection of an adapter, and forget the adapter.

        Raises:
            StartError: it lacks some, which the message names.
            DownError: the engine has stopped.
        """
        try:
            await self.unload(await self.load(trial))
        except DownError:
            raise
        # vLLM raises errors of many types.
        except Exception as problem:
            raise StartError(
                f"vLLM cannot serve adapters of the model {trial.base_model!r}: "
                f"{first_line(problem)}; use another model, or set --lora-target"
            ) from problem

    @property
    def version(self) -> str:
        """vLLM's version."""
        import vllm

        return str(vllm.__version__)

    @property
    def context(self) -> int:
        """The context length of the model in the engine, in tokens."""
        return int(self._llm.model_config.max_model_len)

    async def models(self) -> list[dict[str, Any]]:
        """The models that clients may name, as OpenAI's objects, with whether they have a chat
        template.

        vLLM's `root`, the folder of the model on this machine, is replaced by the name.
        """
        listed = await self.app.state.openai_serving_models.show_available_models()
        chats = self.tokenizer.chat_template is not None
        return [
            {**card.model_dump(), "root": card.id, "chat_template": chats} for card in listed.data
        ]

    async def prompt_tokens(self, path: str, body: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
        """As `serving.engine.rendering.prompt_tokens`, of this engine's application."""
        return await prompt_tokens(self.app, path, body)

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        """Stage an adapter and load it, waiting for a free slot, unless it is loaded already;
        `unload` must follow.
        """
        return await self._adapters.acquire(adapter)

    async def unload(self, loaded: LoadedAdapter, *, keeps: bool = False) -> None:
        """Unload an adapter and delete its files, unless another request uses it; no generation of
        this request may be running with it. `keeps` keeps it for the next request, as long as its
        slot is not needed.
        """
        await self._adapters.release(loaded, keeps=keeps)

    def retire(self, name: str) -> None:
        """Unload an adapter that is kept, in the background; one that a request uses is unloaded
        afterwards.
        """
        self._adapters.retire(name)

    async def _load(self, adapter: Adapter) -> LoadedAdapter:
        from vllm.lora.request import LoRARequest

        loaded = LoadedAdapter(adapter.name, next(self._ids), self.staging.path / adapter.name)
        self._live.add(loaded.id)
        try:
            await asyncio.to_thread(adapter.save, loaded.folder)
            await self._while_alive(
                self._llm.add_lora(LoRARequest(loaded.name, loaded.id, str(loaded.folder)))
            )
        except BaseException:
            await self._unload(loaded)
            raise
        return loaded

    async def _unload(self, loaded: LoadedAdapter) -> None:
        try:
            await self._while_alive(self._llm.remove_lora(loaded.id))
        finally:
            shutil.rmtree(loaded.folder, ignore_errors=True)
            self._live.discard(loaded.id)

    async def loaded(self) -> list[int]:
        """Ids of the adapters in vLLM's worker.

        Raises:
            DownError: the engine has stopped.
        """
        return sorted(await self._while_alive(self._llm.list_loras()))

    def live(self) -> int:
        """Number of adapters that are loaded or being loaded."""
        return len(self._live)

    async def check(self) -> None:
        """Check that the engine has not stopped.

        Raises:
            DownError: the engine has stopped.
        """
        if failure := self.failure():
            raise failure

    async def check_health(self) -> None:
        """Wait until the engine responds; an engine that hangs never does.

        The call is one that the engine's core answers by itself between two steps: a worker that
        gets a call spins for a second afterwards. A worker that hangs in a step keeps the core from
        answering, and a worker that has been stopped by a signal is noticed here.

        Raises:
            DownError: the engine has stopped.
        """
        await self._while_alive(self._llm.is_paused())
        while any(is_stopped(each) for each in self._vllm_processes):
            await self.check()
            await asyncio.sleep(_POLL_SECONDS)

    def failure(self) -> DownError | None:
        """The error with which every call fails now, or None while the engine runs."""
        if not self._llm.errored:
            return None
        return DownError("the engine has stopped and is restarting; try again in a few seconds")

    def stop(self) -> None:
        """End the engine's processes and delete the staging folder."""
        self._llm.shutdown()
        self.staging.end()

    async def _while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call to the engine, which vLLM itself would await for ever if the engine stops.

        Raises:
            DownError: the engine has stopped.
        """
        task = asyncio.create_task(call)
        try:
            while not task.done():
                if failure := self.failure():
                    raise failure
                await asyncio.wait([task], timeout=_POLL_SECONDS)
            return task.result()
        finally:
            task.cancel()
