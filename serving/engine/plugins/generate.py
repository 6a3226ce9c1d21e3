"""Give each generation the adapter of its request.

vLLM validates and renders a request as it always does and calls `AsyncLLM.generate` last.
The replacement of that one method waits for the request's adapter and passes vLLM a LoRARequest for
it. So a request that vLLM rejects costs no adaptation. The adapter is passed with the call, so
clients cannot name it. Why a request fails that cannot be adapted is sent in place of vLLM's error
(`serving.http.response`); vLLM gets an error of its own type, for which it logs no stack.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

from adapters.core_share import CoreShare
from serving.engine.current_request import REQUEST, AdaptableRequest
from serving.engine.fair_share import FairShares
from serving.engine.grammars import Grammars
from serving.errors import USER_ERRORS, MayflyError
from serving.observability.tracing import span


def adapt_generation(llm: Any, max_num_seqs: int, cores: CoreShare | None = None) -> None:
    """Replace the method `generate` of an `AsyncLLM`.

    Args:
        llm: the `AsyncLLM`.
        max_num_seqs: number of sequences that it runs at the same time.
        cores: the engine's share of the machine's cores; None for a fixed number of threads.
    """
    llm.generate = _Generator(llm, max_num_seqs, cores.busy if cores else nullcontext).generate


class _Generator:
    """Generates with an `AsyncLLM` as it was before its method `generate` was replaced."""

    def __init__(
        self, llm: Any, max_num_seqs: int, busy: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._llm, self._busy = llm, busy
        self._vllm_generate: Callable[..., AsyncIterator[Any]] = llm.generate
        self._shares = FairShares(max_num_seqs)

    def generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """As `AsyncLLM.generate`, whose arguments it takes."""
        request = REQUEST.get()
        if request is None:
            return self._vllm_generate(*args, **kwargs)
        kwargs["priority"] = self._shares.of(request).next_priority()
        if request.may_adapt:
            return self._generate_adapted(request, args, kwargs)
        return self._generate_plain(request, args, kwargs)

    async def _generate_plain(
        self, request: AdaptableRequest, args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        """Generate with the base model, without the task and the queue of adapted generations."""
        report_is_set = False
        if _has_grammar(*args):
            with _errors_as_vllms():
                await self._validate(*args)
        async with self._shares.of(request).engine_slot():
            with self._busy():
                async for output in self._vllm_generate(*args, **kwargs):
                    if not report_is_set:
                        # There is no adapter: this only sets the report, once vLLM has accepted the
                        # request.
                        await request.adapter()
                        report_is_set = True
                    yield output

    async def _generate_adapted(
        self, request: AdaptableRequest, args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        """Generate with the request's adapter.

        The generation runs in a task of its own. When a client disconnects, the cancel scope of
        Starlette's response (anyio's) cancels not one await of its request, but each one until the
        scope ends. If that interrupted vLLM's abort, the engine would continue with an adapter that
        is being unloaded.
        """
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.create_task(self._run(request, outputs, args, kwargs))

        def end_queue(task: asyncio.Task[None]) -> None:
            # A cancelled task puts nothing into the queue.
            if task.cancelled():
                outputs.put_nowait(asyncio.CancelledError())

        task.add_done_callback(end_queue)
        request.track_generation(task)
        try:
            while (output := await outputs.get()) is not None:
                if isinstance(output, BaseException):
                    raise output
                yield output
        finally:
            task.cancel()

    async def _run(
        self, request: AdaptableRequest, outputs: asyncio.Queue[Any], args: Any, kwargs: Any
    ) -> None:
        """Put the outputs into the queue, then None, or the exception that ended the generation."""
        try:
            share = self._shares.of(request)
            with _errors_as_vllms():
                async with share.event_loop_slot():
                    await self._validate(*args)
                adapter = await request.adapter()
            if adapter is not None:
                from vllm.lora.request import LoRARequest

                kwargs["lora_request"] = LoRARequest(adapter.name, adapter.id, str(adapter.folder))
            async with share.engine_slot():
                with span("generate"), self._busy():
                    async for output in self._vllm_generate(*args, **kwargs):
                        outputs.put_nowait(output)
            outputs.put_nowait(None)
        except Exception as problem:
            outputs.put_nowait(problem)

    async def _validate(self, prompt: Any, sampling_params: Any, request_id: str) -> None:
        """Raise now, before training, what vLLM or its engine would raise later."""
        tasks, processor = await self._llm.get_supported_tasks(), self._llm.input_processor
        if not _has_grammar(prompt, sampling_params):
            processor.process_inputs(request_id, prompt, sampling_params.clone(), tasks)
            return
        from vllm.v1.request import Request

        # This variant runs in a thread, since it parses the grammar.
        core_request = await processor.process_inputs_async(
            request_id, prompt, sampling_params.clone(), tasks
        )
        try:
            await self._grammars.check(Request.from_engine_core_request(core_request, None))
        except MayflyError as problem:
            if (request := REQUEST.get()) is not None:
                request.fail(problem)
            raise

    @cached_property
    def _grammars(self) -> Grammars:
        from vllm.v1.structured_output import StructuredOutputManager

        return Grammars(StructuredOutputManager(self._llm.vllm_config))


@contextmanager
def _errors_as_vllms() -> Iterator[None]:
    from vllm.exceptions import GenerationError

    try:
        yield
    except USER_ERRORS as problem:
        raise GenerationError(str(problem)) from problem


def _has_grammar(_prompt: Any, sampling_params: Any, *_: Any, **__: Any) -> bool:
    return getattr(sampling_params, "structured_outputs", None) is not None
