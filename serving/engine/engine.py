"""The only vllm import beside its plugins: the engine, its adapter slots, and vLLM's own OpenAI
application.

vLLM validates and renders a request as it always does, and calls `generate` last. That is where a
request's adapter comes in: `Engine` puts itself before that one method, asks the request in hand (a
context variable) for its adapter, and hands vLLM a LoRARequest that was never registered under a
name. So whatever vLLM refuses costs no adaptation, and everything else (chat, completions, streams,
tools, log-probabilities) is vLLM's.

An adapter is staged as PEFT's two files in memory-backed storage, loaded, and after its request
unloaded and deleted, in this order: no request may be running when its adapter goes (vLLM's engine
dies of that). Names, ids and paths are never used twice: vLLM's prefix cache knows adapters by name
and path.

Seams into vLLM 0.32 (pinned, a contract test each): `build_app`, `init_app_state`,
`AsyncLLM.generate`, `AsyncLLM.is_paused`, `InputProcessor.process_inputs`,
`StructuredOutputManager.grammar_init`, `openai_serving_models`, the `_inner` of the renderer's
`_executor`, where prompts are tokenised.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
from transformers import AutoTokenizer

from adapters.adapter import Adapter
from serving.engine.config import EngineConfig
from serving.engine.grammars import Grammars
from serving.engine.limits import MAX_ANSWERS
from serving.engine.plugins.parent_death import is_stopped
from serving.engine.staging import Staging, naming, shared_by_children
from serving.engine.turns import Turns, TurnsExecutor
from serving.environment import STRICT_LORA
from serving.errors import DownError, MayflyError, StartError
from serving.observability.log_relay import relay_errors
from serving.observability.start_news import tell
from serving.observability.tracing import span

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for max_lora_rank
_PLUGINS = {"mayfly_cpu_lora", "mayfly_parent_death", "mayfly_strict_lora"}
# Tokens of one step on a CPU: each token of every answer waits for a whole step, however many
# prompts others have in it. A larger one computes hardly more tokens a second.
_STEP_TOKENS = 256
_LOOK_SECONDS = 0.5  # between looks whether an engine that is asked still lives

T = TypeVar("T")


class Adapted(Protocol):
    """The request in hand, as far as the engine sees it."""

    problem: Exception | None  # why it fails, told in place of what vLLM makes of it

    @property
    def may_adapt(self) -> bool:
        """Whether there can be an adapter to answer with."""

    async def speaker(self) -> LoadedAdapter | None:
        """The adapter to answer with, trained and loaded when first asked for; None for the base
        model.
        """

    def answering(self, task: asyncio.Task[None]) -> None:
        """Told of each generation, so that the adapter stays until all of them have ended."""


REQUEST: ContextVar[Adapted | None] = ContextVar("request", default=None)


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in the engine: vLLM's id for it, and where it is staged."""

    name: str
    id: int
    folder: Path


class Engine:
    """One vLLM engine and its OpenAI application; make it with `await Engine.start(config)`."""

    def __init__(self, llm: Any, app: Any, config: EngineConfig, staging: Staging) -> None:
        self.app = app
        self.config = config
        self._llm = llm
        self._plain_generate: Callable[..., AsyncIterator[Any]] = llm.generate
        # VLLM's own belongs to its threads.
        self.tokenizer = AutoTokenizer.from_pretrained(config.model)
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(config.adapters)
        self._live: set[int] = set()
        self._turns = Turns(config.max_num_seqs)
        self.staging = staging
        self.staging.adopt(shared_by_children())
        self._processes = psutil.Process().children(recursive=True)  # vLLM's
        llm.generate = self._generate

    @classmethod
    async def start(cls, config: EngineConfig) -> Engine:
        """Load the model into a new engine and build vLLM's application around it.

        Raises:
            StartError: vLLM would not find Mayfly's plugins.
        """
        _check_plugins()
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # vLLM's own bound is lower than the one that `serving.http.body` tells clients of.
        os.environ.setdefault("VLLM_MAX_COMPLETION_PROMPTS", str(MAX_ANSWERS))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # The event loop waits for it.
        os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "2")
        os.environ.update(STRICT_LORA)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.platforms import current_platform
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        relay_errors(logging.getLogger("vllm"))  # which hands nothing on to the root logger
        on_cpu = current_platform.is_cpu()
        if on_cpu:  # "auto" would bind the threads to cores that the trainer computes on too
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            # Else ranks of log-probabilities need a C++ compiler.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(_arguments(config, on_cpu))
        staging = Staging()
        tell("engine", "loading the model")
        with naming(staging):
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(arguments))
            tokenising = llm.renderer._executor
            tokenising.shutdown(wait=False)
            tokenising._inner = TurnsExecutor(REQUEST.get)
            tell("engine", "building the API")
            tasks = await llm.get_supported_tasks()
            app = build_app(arguments, tasks, llm.model_config)
            await init_app_state(llm, app.state, arguments, tasks)
        return cls(llm, app, config, staging)

    @cached_property
    def _grammars(self) -> Grammars:
        from vllm.v1.structured_output import StructuredOutputManager

        return Grammars(StructuredOutputManager(self._llm.vllm_config))

    @property
    def version(self) -> str:
        """vLLM's version."""
        import vllm

        return str(vllm.__version__)

    async def models(self) -> list[dict[str, Any]]:
        """The names that clients may use, as OpenAI's objects; without the model's folder, which
        vLLM tells.
        """
        listed = await self.app.state.openai_serving_models.show_available_models()
        return [{**card.model_dump(), "root": card.id} for card in listed.data]

    async def load(self, adapter: Adapter) -> LoadedAdapter:
        """Stage an adapter and load it, waiting for a free slot; `unload` must follow."""
        from vllm.lora.request import LoRARequest

        await self._slots.acquire()
        loaded = LoadedAdapter(adapter.name, next(self._ids), self.staging.path / adapter.name)
        self._live.add(loaded.id)
        try:
            await asyncio.to_thread(adapter.save, loaded.folder)
            await self._told(
                self._llm.add_lora(LoRARequest(loaded.name, loaded.id, str(loaded.folder)))
            )
        except BaseException:
            await self.unload(loaded)
            raise
        return loaded

    async def unload(self, loaded: LoadedAdapter) -> None:
        """Forget an adapter; no generation may be running with it."""
        try:
            await self._told(self._llm.remove_lora(loaded.id))
        finally:
            shutil.rmtree(loaded.folder, ignore_errors=True)
            self._live.discard(loaded.id)
            self._slots.release()

    async def loaded(self) -> list[int]:
        """Ids of the adapters that vLLM's worker holds.

        Raises:
            DownError: it has ended.
        """
        return sorted(await self._told(self._llm.list_loras()))

    def live(self) -> int:
        """How many adapters are loaded, or being loaded."""
        return len(self._live)

    async def check(self) -> None:
        """Whether it can answer.

        Raises:
            DownError: it has ended.
        """
        if problem := self.trouble():
            raise problem

    async def check_health(self) -> None:
        """Wait for a word from the engine; one that hangs gives none.

        Its core is asked what it knows by itself, between two of its steps. A worker that is asked
        anything spins for a second afterwards; one that hangs in a step keeps the core from
        answering, and one that is stopped is seen.

        Raises:
            DownError: it has ended.
        """
        await self._told(self._llm.is_paused())
        while any(is_stopped(each) for each in self._processes):
            await self.check()
            await asyncio.sleep(_LOOK_SECONDS)

    def trouble(self) -> DownError | None:
        """Why whatever it does now fails."""
        if not self._llm.errored:
            return None
        return DownError("the engine has ended and is started again; try again in some seconds")

    def stop(self) -> None:
        """End the engine's processes and delete the staging folder."""
        self._llm.shutdown()
        self.staging.end()

    async def _told(self, call: Coroutine[Any, Any, T]) -> T:
        """What the engine answers; if it ends meanwhile, vLLM itself would wait for ever.

        Raises:
            DownError: it has ended.
        """
        task = asyncio.create_task(call)
        try:
            while not task.done():
                if problem := self.trouble():
                    raise problem
                await asyncio.wait([task], timeout=_LOOK_SECONDS)
            return task.result()
        finally:
            task.cancel()

    async def _generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Stands before `AsyncLLM.generate`, with its signature.

        The generation runs in a task of its own: the web server cancels every await of a request
        whose client has gone, again and again, and vLLM's abort must not be cut short by that, or
        the engine would go on with an adapter that is being unloaded.
        """
        request = REQUEST.get()
        if request is None:
            async for output in self._plain_generate(*args, **kwargs):
                yield output
            return
        turn = self._turns.of(request)
        kwargs["priority"] = turn.number()
        if not request.may_adapt:  # a task and a queue less for each token
            told = False
            if _asks_for_a_grammar(*args):
                await self._refuse_early(*args)
            async with turn.in_the_engine():
                async for output in self._plain_generate(*args, **kwargs):
                    if not told:
                        # None; now that vLLM has taken the request, its report says so.
                        await request.speaker()
                        told = True
                    yield output
            return
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self._answer(request, outputs, args, kwargs))
        # Whoever waits for an output would wait for ever, were the task cancelled: perhaps before
        # it has begun.
        task.add_done_callback(
            lambda task: outputs.put_nowait(asyncio.CancelledError()) if task.cancelled() else None
        )
        request.answering(task)
        try:
            while (output := await outputs.get()) is not None:
                if isinstance(output, BaseException):
                    raise output
                yield output
        finally:
            task.cancel()

    async def _refuse_early(self, prompt: Any, sampling_params: Any, request_id: str) -> None:
        """What vLLM or its engine would refuse later on is refused before an adapter is trained for
        it.
        """
        tasks, processor = await self._llm.get_supported_tasks(), self._llm.input_processor
        if not _asks_for_a_grammar(prompt, sampling_params):
            processor.process_inputs(request_id, prompt, sampling_params.clone(), tasks)
            return
        from vllm.v1.request import Request

        # In a thread, since it parses the grammar.
        core_request = await processor.process_inputs_async(
            request_id, prompt, sampling_params.clone(), tasks
        )
        try:
            await self._grammars.check(Request.from_engine_core_request(core_request, None))
        except MayflyError as problem:
            if (request := REQUEST.get()) is not None:
                request.problem = problem
            raise

    async def _answer(
        self, request: Adapted, outputs: asyncio.Queue[Any], args: Any, kwargs: Any
    ) -> None:
        try:
            turn = self._turns.of(request)
            async with turn.in_the_loop():
                await self._refuse_early(*args)
            speaker = await request.speaker()
            if speaker is not None:
                from vllm.lora.request import LoRARequest

                kwargs["lora_request"] = LoRARequest(speaker.name, speaker.id, str(speaker.folder))
            async with turn.in_the_engine():
                with span("generate"):
                    async for output in self._plain_generate(*args, **kwargs):
                        outputs.put_nowait(output)
            outputs.put_nowait(None)
        except Exception as problem:
            outputs.put_nowait(problem)


def _asks_for_a_grammar(_prompt: Any, sampling_params: Any, *_: Any, **__: Any) -> bool:
    return getattr(sampling_params, "structured_outputs", None) is not None


def _check_plugins() -> None:
    there = {each.name for each in entry_points(group="vllm.general_plugins")}
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None:
        there &= set(allowed.split(","))
    if missing := sorted(_PLUGINS - there):
        raise StartError(
            f"vLLM would not load {', '.join(missing)}: install Mayfly again (`make install`, or pip), "
            "and let VLLM_PLUGINS, where it is set, name them"
        )


def _arguments(config: EngineConfig, on_cpu: bool) -> list[str]:
    rank = next(r for r in _RANKS if r >= config.rank)
    arguments = [
        "--model",
        config.model,
        "--served-model-name",
        config.served_name,
        *config.more_names,
    ]
    arguments += ["--load-format", "safetensors"]  # nothing is unpickled
    arguments += ["--dtype", "float32" if on_cpu and config.dtype == "auto" else config.dtype]
    arguments += ["--max-num-seqs", str(config.max_num_seqs), "--scheduling-policy", "priority"]
    # One slot more than adapters in flight: the LRU never has to evict one that is in use.
    arguments += [
        "--enable-lora",
        "--max-loras",
        str(config.adapters + 1),
        "--max-lora-rank",
        str(rank),
    ]
    arguments += ["--lora-target-modules", *config.targets]
    if config.tool_call_parser is not None:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", config.tool_call_parser]
    if config.max_model_len is not None:
        arguments += ["--max-model-len", str(config.max_model_len)]
    if not on_cpu:
        arguments += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    if on_cpu:
        arguments += ["--max-num-batched-tokens", str(max(_STEP_TOKENS, config.max_num_seqs))]
        arguments += ["--enforce-eager", "--kv-cache-memory-bytes", str(config.kv_cache_bytes)]
    return arguments
