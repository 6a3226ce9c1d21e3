"""What the engine knows about the request that it generates for.

The gateway sets `REQUEST` for the task that handles a request. vLLM's application runs in that
task, so the engine finds the request there when vLLM calls `generate`.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that is loaded in the engine.

    Attributes:
        name: name, which no other adapter has.
        id: vLLM's integer id, which is never used again.
        folder: the folder where the adapter is staged.
    """

    name: str
    id: int
    folder: Path


class AdaptableRequest(Protocol):
    """A request that may be answered with an adapter of its own."""

    @property
    def may_adapt(self) -> bool:
        """Whether the request may get an adapter."""

    async def adapter(self) -> LoadedAdapter | None:
        """The adapter to answer with, or None for the base model.

        The first call trains and loads it; later calls give the same one.
        """

    def track_generation(self, task: asyncio.Task[None]) -> None:
        """Register a generation; the adapter must stay loaded until its task has ended."""

    def fail(self, problem: Exception) -> None:
        """Let the request fail with this error in place of vLLM's."""


REQUEST: ContextVar[AdaptableRequest | None] = ContextVar("request", default=None)
