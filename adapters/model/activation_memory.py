"""ActivationMemory: the activation memory of a training step, predicted before the step starts.

The bytes that autograd saves for backward are measured once, at two sequence lengths, on the model
with its adapters bound. They give a linear and a quadratic term (attention saves tokens x tokens).
A row that exceeds the limit is computed with gradient checkpointing: layers save their inputs only
and are recomputed in backward, at the cost of one more forward pass. Weights, moments and temporary
buffers of operations are not counted: leave room for them. `IdleTrim` returns freed memory to the
system.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from adapters.model.base_model import BaseModel
from adapters.model.row import Row

# The default limit, as a share of the memory that is free when the trainer starts.
_SHARE = 0.5
# Idle seconds after which freed memory is returned to the system: a busy trainer would soon
# allocate it again.
IDLE_SECONDS = 5.0


def free_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory in bytes, of this machine or of the container's control group if less."""
    free = int(psutil.virtual_memory().available)
    # The group's files are missing outside of a container, and its limit may be "max".
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The kernel drops inactive file pages when memory is short.
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        free = min(free, limit - used)
    return max(free, 0)


class ActivationMemory:
    """Activation bytes by the number and length of a batch's rows, and the limit on them.

    Construct it while a `LoraBank` is bound: it measures the adapters' activations, too.

    Args:
        base: the base model.
        limit: bytes that a step may save for backward; None takes half of the free memory.
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
        saved_short, saved_long = saved_bytes(base, short), saved_bytes(base, long)
        self._per_square = max((saved_long / long - saved_short / short) / (long - short), 0.0)
        self._per_token = max(saved_short / short - self._per_square * short, 0.0)

    def row_bytes(self, tokens: int) -> int:
        """Bytes that a row of `tokens` tokens saves for backward."""
        return int(tokens * (self._per_token + self._per_square * tokens))

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether `rows` rows of `tokens` tokens stay within the limit without checkpointing."""
        return rows * self.row_bytes(tokens) <= self.limit

    def checkpointed_bytes(self, tokens: int) -> int:
        """As `row_bytes`, with checkpointing: all layers' inputs, and one recomputed layer."""
        if not self._layers:
            return self.row_bytes(tokens)
        return self._inputs_per_token * tokens + self.row_bytes(tokens) // len(self._layers)

    def fits_checkpointed(self, rows: int, tokens: int) -> bool:
        """Whether `rows` rows of `tokens` tokens stay within the limit with checkpointing."""
        return rows * self.checkpointed_bytes(tokens) <= self.limit

    @contextmanager
    def checkpointing(self, enabled: bool) -> Iterator[None]:
        """Within the `with` block, layers save their inputs only if `enabled`."""
        for layer in self._layers:
            # Transformers checkpoints a layer whose own flag is set; its submodules stay in
            # evaluation mode.
            layer.training = enabled
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False


def saved_bytes(base: BaseModel, tokens: int) -> int:
    """Bytes that autograd saves for one row of `tokens` tokens, measured.

    Each storage is counted once; the model's own weights are not counted.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses_M = base.losses([Row.of([i % base.vocabulary for i in range(tokens)])])
    del losses_M
    return sum(storages.values())


class IdleTrim:
    """Returns memory to the system once the trainer has been idle for a while.

    Args:
        release: frees what an idle trainer does not need; called in a thread of its own.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._timer: threading.Timer | None = None

    def schedule(self) -> None:
        """Trim in some seconds, unless cancelled or scheduled again before."""
        self.cancel()
        self._timer = threading.Timer(IDLE_SECONDS, self._trim)
        self._timer.daemon = True
        # A process at its limit of threads goes without the trim.
        with suppress(RuntimeError):
            self._timer.start()

    def cancel(self) -> None:
        """Drop the scheduled trim, if any."""
        if self._timer is not None:
            self._timer.cancel()

    def _trim(self) -> None:
        self._release()
        release_freed_memory()


def release_freed_memory() -> None:
    """Return memory that the C library keeps after `free` to the system (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
