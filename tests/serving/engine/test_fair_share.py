"""Fair sharing: a request with thousands of prompts leaves capacity for others, in vLLM and in the
event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine.config import EngineConfig
from serving.engine.current_request import REQUEST, LoadedAdapter
from serving.engine.engine import Engine
from serving.engine.fair_share import FairShares, RoundRobinExecutor
from serving.engine.staging import Staging

_PROMPTS = 100


class Request:
    """A request as the engine sees it, whose adaptation takes no time and gives no adapter."""

    def __init__(self, may_adapt: bool) -> None:
        self.may_adapt = may_adapt
        self.problem: Exception | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def adapter(self) -> LoadedAdapter | None:
        return None

    def track_generation(self, task: asyncio.Task[None]) -> None:
        self._tasks.append(task)

    def fail(self, problem: Exception) -> None:
        self.problem = problem


class Vllm:
    """In place of vLLM's engine: a generation lasts until the test ends it.

    Attributes:
        began: priority of each generation that has begun, by its id.
        checked: ids of the validated generations.
    """

    errored = False

    def __init__(self) -> None:
        self.began: dict[str, int] = {}
        self.checked: list[str] = []
        self.running = self.most = 0
        self.go_on = asyncio.Event()
        self.input_processor = SimpleNamespace(
            process_inputs=lambda name, *_: self.checked.append(name)
        )

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def generate(
        self, prompt: Any, params: Any, name: str, *, priority: int = 0
    ) -> AsyncIterator[str]:
        self.began[name] = priority
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
            yield name
        finally:
            self.running -= 1

    def shutdown(self) -> None: ...


@pytest.fixture
async def vllm() -> Vllm:
    return Vllm()


@pytest.fixture
def engine(vllm: Vllm, nano: str) -> Iterator[Engine]:
    config = EngineConfig(nano, "nano", 8, ("q_proj",), max_num_seqs=8)
    engine = Engine(vllm, None, config, Staging())
    yield engine
    engine.stop()


async def ask(engine: Engine, name: str, prompts: int, adapts: bool) -> list[str]:
    """Generate for all prompts of a request at the same time, as vLLM's application does."""
    params = SimpleNamespace(clone=lambda: None)

    async def generation(number: int) -> str:
        (answer,) = [
            text
            async for text in engine._llm.generate("text", params, f"{name}-{number}", priority=7)
        ]
        return str(answer)

    token = REQUEST.set(Request(adapts))
    try:
        return await asyncio.gather(*(generation(number) for number in range(prompts)))
    finally:
        REQUEST.reset(token)


async def until(condition: Callable[[], bool]) -> None:
    """Run the event loop, round by round, until a condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


@pytest.mark.parametrize("adapts", [True, False])
async def test_a_request_with_many_prompts_leaves_capacity_in_the_engine(
    engine: Engine, vllm: Vllm, adapts: bool
) -> None:
    large = asyncio.create_task(ask(engine, "large", _PROMPTS, adapts))
    await until(lambda: len(vllm.began) == 6)
    small = asyncio.create_task(ask(engine, "small", 1, adapts))
    await until(lambda: "small-0" in vllm.began)

    # Three quarters of eight sequences, and the small request.
    assert vllm.most == 7
    # The priority that the client sent is ignored.
    assert vllm.began["small-0"] == 0
    vllm.go_on.set()
    assert await small == ["small-0"]
    assert await large == [f"large-{number}" for number in range(_PROMPTS)]
    assert sorted(vllm.began.values()) == [0, *range(_PROMPTS)]


async def test_a_small_request_is_validated_before_the_many_prompts_of_a_large_one(
    engine: Engine, vllm: Vllm
) -> None:
    vllm.go_on.set()
    large = asyncio.create_task(ask(engine, "large", _PROMPTS, True))
    await until(lambda: bool(vllm.checked))

    await ask(engine, "small", 1, True)

    assert vllm.checked.index("small-0") < _PROMPTS // 2
    assert len(await large) == _PROMPTS


async def test_a_cancelled_request_releases_its_slots(engine: Engine, vllm: Vllm) -> None:
    large = asyncio.create_task(ask(engine, "large", _PROMPTS, False))
    await until(lambda: len(vllm.began) == 6)

    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large

    assert vllm.running == 0


def test_a_share_lasts_as_long_as_its_request() -> None:
    fair_share, request = FairShares(8), Request(True)

    assert fair_share.of(request) is fair_share.of(request)
    assert [fair_share.of(request).next_priority(), fair_share.of(request).next_priority()] == [
        0,
        1,
    ]
    assert fair_share.of(Request(True)).next_priority() == 0


def test_the_executor_runs_one_task_of_each_owner_in_turn() -> None:
    done: list[str] = []
    owner, free = ["large"], threading.Event()
    executor = RoundRobinExecutor(lambda: owner[0])
    executor.submit(free.wait, 30)
    for number in range(5):
        executor.submit(done.append, f"large {number}")
    owner[0] = "small"
    last = executor.submit(done.append, "small")

    free.set()
    last.result(30)
    executor.shutdown()

    assert done.index("small") <= 1
    assert [each for each in done if each != "small"] == [f"large {number}" for number in range(5)]


def test_failed_and_cancelled_tasks_do_not_affect_others() -> None:
    free, executor = threading.Event(), RoundRobinExecutor(lambda: None)
    executor.submit(free.wait, 30)
    fails, cancelled, sound = (
        executor.submit(int, "x"),
        executor.submit(int, "1"),
        executor.submit(int, "2"),
    )

    assert cancelled.cancel()
    free.set()

    assert sound.result(30) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        fails.result(30)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        executor.submit(int, "3")


def test_waiting_tasks_are_done_or_cancelled_at_shutdown() -> None:
    for cancel in (False, True):
        free, executor = threading.Event(), RoundRobinExecutor(lambda: None)
        executor.submit(free.wait, 30)
        waiting = executor.submit(int, "1")

        executor.shutdown(wait=False, cancel_futures=cancel)
        free.set()
        executor.shutdown()

        assert waiting.cancelled() if cancel else waiting.result(30) == 1
