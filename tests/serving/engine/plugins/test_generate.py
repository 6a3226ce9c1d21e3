"""Generations of requests: what vLLM gets where one cannot be adapted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import GenerationError

from serving.engine.current_request import REQUEST, LoadedAdapter
from serving.engine.plugins.generate import adapt_generation
from serving.errors import AdaptationFailedError, GrammarError


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
