"""The servers of a latency run: Mayfly, plain vLLM, and vLLM with resident adapters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from benchmarks.harness.server import free_port, mayfly_server, running_server
from benchmarks.latency.client import Load, excerpts, send_load
from benchmarks.latency.growth import ANSWER, PROMPT, RESIDENT, STEADY
from benchmarks.latency.hot_load import resident_adapter_flags
from benchmarks.latency.per_request_peft import select_sequences
from benchmarks.latency.vllm_cli import vllm_environment, vllm_serve

CORPUS = "code"
CONTEXT = 1024  # tokens
# Above the number of clients: a client of a closed loop may send its next request before the slot
# of its last one is free, and an open loop has no bound.
_ROOMY_FLAGS = (
    *("--max-requests", "256"),
    *("--max-adaptations", "256"),
    *("--undegraded", "256"),
    *("--max-model-len", str(CONTEXT)),
)


class Servers:
    """The servers of a run. Each starts on first use and ends with the stack."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self._home, self._stack = home, stack

    def url(self, name: str) -> str:
        """Base URL of "mayfly", "vllm" or "resident"."""
        address: str = getattr(self, name)
        return address

    @cached_property
    def mayfly(self) -> str:
        """`mayfly serve`."""
        return _warm_up(
            self._stack.enter_context(
                mayfly_server(self._home, "--corpus", CORPUS, *_ROOMY_FLAGS)
            ).url,
            STEADY,
        )

    @cached_property
    def vllm(self) -> str:
        """Plain `vllm serve`: no LoRA, no plugin."""
        return self._start("vllm", vllm_environment())

    @cached_property
    def resident(self) -> str:
        """`vllm serve` with all of RESIDENT, as many slots as Mayfly's engine, and routes that
        load further adapters.
        """
        example = select_sequences(
            self._home, CORPUS, excerpts(Load(None, 1, PROMPT, ANSWER), 0), 5
        )[0]
        settings = vllm_environment(plugin=True) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        return self._start(
            "lora", settings, *resident_adapter_flags(RESIDENT, self._home / "resident", example)
        )

    def _start(self, name: str, settings: Mapping[str, str], *more: str) -> str:
        port = free_port()
        command = vllm_serve(port, CONTEXT, *more)
        self._stack.enter_context(
            running_server(command, port, self._home / f"{name}.log", settings)
        )
        return _warm_up(f"http://127.0.0.1:{port}", None)


def _warm_up(url: str, budget: str | None) -> str:
    load = Load(budget, 2, PROMPT, ANSWER)
    answers, _ = send_load(url, load, -1)
    if any(answer.is_short(load) for answer in answers):
        raise RuntimeError(f"{url} failed its first requests: {answers}")
    return url
