"""The servers of a latency run: Mayfly, plain vLLM, and vLLM with resident adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from benchmarks.harness.server import free_port, mayfly_server, running_server
from benchmarks.latency.client import Load, excerpts, send_load
from benchmarks.latency.growth import ANSWER, PROMPT, RESIDENT, STEADY
from benchmarks.latency.hot_load import resident_adapter_flags
from benchmarks.latency.per_request_peft import select_sequences
from benchmarks.latency.vllm_cli import THREADS, vllm_environment, vllm_serve
from serving.config import bundled_model

CORPUS = "code"
CONTEXT = 1024  # tokens
# Above the number of clients: a client of a closed loop may send its next request before the slot
# of its last one is free, and an open loop has no bound.
UNADAPTED_FLAGS = ("--max-requests", "256", "--max-model-len", str(CONTEXT))
# Each adaptation at once takes a slot for an adapter.
ROOMY_FLAGS = (*UNADAPTED_FLAGS, "--max-adaptations", "256", "--undegraded", "256")


class Servers:
    """The servers of a run. Each starts on first use and ends with the stack.

    Args:
        home: home of the corpus.
        stack: ends the servers.
        base: folder of the base model, which is served under the folder's name; None for the
            bundled one.
        flags: further flags of `mayfly serve`.
    """

    def __init__(
        self,
        home: Path,
        stack: ExitStack,
        base: str | None = None,
        flags: Sequence[str] = ROOMY_FLAGS,
    ) -> None:
        self._home, self._stack = home, stack
        self._base, self._flags = base or bundled_model(), flags
        # The first requests of each server, which are not measured.
        self._first = Load(None, 2, PROMPT, ANSWER, model=Path(self._base).name, base=base)

    def url(self, name: str) -> str:
        """Base URL of "mayfly", "vllm" or "resident"."""
        address: str = getattr(self, name)
        return address

    @cached_property
    def mayfly(self) -> str:
        """`mayfly serve`, with as many threads as vLLM."""
        model = ("--model", self._base, "--served-model-name", self._first.model)
        flags = (*model, "--threads", str(THREADS), "--corpus", CORPUS, *self._flags)
        server = self._stack.enter_context(mayfly_server(self._home, *flags))
        return self._warm_up(server.url, STEADY)

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
            self._home, CORPUS, excerpts(replace(self._first, requests=1), 0), 5, self._base
        )[0]
        settings = vllm_environment(plugin=True) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        flags = resident_adapter_flags(RESIDENT, self._home / "resident", example, self._base)
        return self._start("lora", settings, *flags)

    def _start(self, name: str, settings: Mapping[str, str], *more: str) -> str:
        port = free_port()
        command = vllm_serve(port, CONTEXT, *more, base=self._base)
        self._stack.enter_context(
            running_server(command, port, self._home / f"{name}.log", settings)
        )
        return self._warm_up(f"http://127.0.0.1:{port}", None)

    def _warm_up(self, url: str, budget: str | None) -> str:
        load = replace(self._first, budget=budget)
        answers, _ = send_load(url, load, -1)
        if any(answer.is_short(load) for answer in answers):
            raise RuntimeError(f"{url} failed its first requests: {answers}")
        return url
