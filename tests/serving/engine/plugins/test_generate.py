"""Generations of requests: what vLLM gets where one cannot be adapted, and when it is busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import GenerationError

from adapters.core_share import CoreShare
from serving.engine.current_request import REQUEST, LoadedAdapter
from serving.engine.plugins.generate import adapt_generation
from serving.errors import AdaptationFailedError, GrammarError
from tests.core_members import sees_busy


class Request:
    """A request whose adaptation fails."""

    may_adapt = True

    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    async def adapter(self) -> LoadedAdapter | None:
        raise self._problem

    def track_generation(self, task: asyncio.Task[None]) -> None: ...

    def fail(self, problem: Exception) -> None: ...


class Vllm:
    """In place of vLLM's engine, which is not asked to generate."""

    def __init__(self) -> None:
        self.input_processor = SimpleNamespace(process_inputs=lambda *_: None)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        raise AssertionError("there should be nothing to generate")
        yield


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (AdaptationFailedError("an adapter was required"), GenerationError),
        (GrammarError("no answer can follow it"), GenerationError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
async def test_vllm_gets_an_error_that_it_logs_without_a_stack_unless_it_is_a_bug(
    problem: Exception, kind: type[Exception]
) -> None:
    vllm = Vllm()
    adapt_generation(vllm, 1)
    token = REQUEST.set(Request(problem))
    generation = vllm.generate("prompt", SimpleNamespace(clone=lambda: None), "1")
    REQUEST.reset(token)

    with pytest.raises(kind, match=str(problem)):
        await anext(generation)


class Answer(Request):
    """A request that the base model answers."""

    def __init__(self, may_adapt: bool) -> None:
        self.may_adapt = may_adapt

    async def adapter(self) -> LoadedAdapter | None:
        return None


class GeneratingVllm(Vllm):
    """Generates tokens without end."""

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[str]:
        while True:
            await asyncio.sleep(0)
            yield "token"


@pytest.mark.parametrize("may_adapt", [False, True])
async def test_the_engine_is_busy_from_the_first_token_until_the_client_leaves(
    may_adapt: bool, tmp_path: Path
) -> None:
    vllm, file = GeneratingVllm(), tmp_path / "cores.lock"
    adapt_generation(vllm, 1, CoreShare(file, 1, 2))
    token = REQUEST.set(Answer(may_adapt))
    generation = vllm.generate("prompt", SimpleNamespace(clone=lambda: None), "1")
    REQUEST.reset(token)

    assert not await asyncio.to_thread(sees_busy, file)
    assert await anext(generation) == "token"
    assert await asyncio.to_thread(sees_busy, file)
    assert isinstance(generation, AsyncGenerator)
    await generation.aclose()

    assert not await asyncio.to_thread(sees_busy, file)
