"""Memory: what a step will hold at its peak, known before it is begun.

Measured once on the model as it is bound to its adapters: the bytes that autograd keeps for
backward, at two lengths, give a line and a parabola (attention keeps tokens by tokens). Where a row
is too long for what may be held, layers keep their inputs only and are computed again in backward;
that costs a forward pass, and is used for such rows alone. Weights, moments and what an operation
needs while it runs are not counted: leave room for them. And what was freed is given back to the
system.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from adapters.model.base_model import BaseModel

_SHARE = 0.5  # of what is free when the trainer starts


def free_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """What is free on this machine, or in the control group of a container, if that is less."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # there is no such group, or no limit, which is "max"
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # That can be dropped.
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        free = min(free, limit - used)
    return max(free, 0)


class ActivationMemory:
    """How many bytes rows of some length keep, and how many may be kept. Rows must be bound when it
    is made.
    """

    def __init__(self, base: BaseModel, limit: int | None = None) -> None:
        free = free_bytes() if base.device == "cpu" else torch.cuda.mem_get_info()[0]
        self.limit = int(_SHARE * free) if limit is None else limit
        whole = (base.model, base.model.base_model)
        modules = base.model.modules() if base.model.supports_gradient_checkpointing else []
        self._layers = [
            m for m in modules if hasattr(m, "gradient_checkpointing") and m not in whole
        ]
        width = int(base.model.config.hidden_size) * torch.finfo(base.model.dtype).bits // 8
        self._inputs_per_token = width * len(self._layers)
        if self._layers:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
        short, long = (
            max(base.context // 8, 2) if base.context < 128 else 32,
            min(base.context, 128),
        )
        kept_short, kept_long = _kept(base, short), _kept(base, long)
        self._per_square = max((kept_long / long - kept_short / short) / (long - short), 0.0)
        self._per_token = max(kept_short / short - self._per_square * short, 0.0)

    def row(self, tokens: int) -> int:
        """Bytes that a row of so many tokens keeps for backward."""
        return int(tokens * (self._per_token + self._per_square * tokens))

    def holds(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of so many tokens may be kept whole."""
        return rows * self.row(tokens) <= self.limit

    def least(self, tokens: int) -> int:
        """As `row`, where layers keep their inputs only and one of them is computed again at a
        time.
        """
        if not self._layers:
            return self.row(tokens)
        return self._inputs_per_token * tokens + self.row(tokens) // len(self._layers)

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of so many tokens can be computed, if need be layer by layer."""
        return rows * self.least(tokens) <= self.limit

    @contextmanager
    def saving(self, needed: bool) -> Iterator[None]:
        """Within it layers keep their inputs only, if that is needed."""
        for layer in self._layers:
            # The layer's own flag, which turns it on; its parts stay in evaluation.
            layer.training = needed
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False


def _kept(base: BaseModel, tokens: int) -> int:
    """Bytes that backward of one row needs, each storage counted once, the model's own weights not."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses_M = base.losses([[i % base.vocabulary for i in range(tokens)]])
    del losses_M
    return sum(storages.values())


class IdleTrim:
    """Gives memory back when nothing has been done for a while."""

    _timer: threading.Timer | None = None

    def begin(self, seconds: float) -> None:
        """In so many seconds, unless it ends before."""
        self._timer = threading.Timer(seconds, give_back)
        self._timer.daemon = True
        with suppress(RuntimeError):  # there may be no room for a thread
            self._timer.start()

    def end(self) -> None:
        """There is something to do."""
        if self._timer is not None:
            self._timer.cancel()


def give_back() -> None:
    """Return to the system what the C library has kept of freed memory for another time; where that
    is glibc.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
