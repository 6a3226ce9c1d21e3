"""ModelLock: the lock of the one thread at a time that computes with the model."""

from __future__ import annotations

from contextlib import ExitStack

from adapters.core_share import CoreShare
from adapters.loop.fair_lock import FairLock


class ModelLock(FairLock):
    """A `FairLock` whose owner computes with its share of the machine's cores.

    Args:
        cores: the share; None for a fixed number of threads.
    """

    def __init__(self, cores: CoreShare | None = None) -> None:
        super().__init__()
        self._cores = cores
        self._computing: list[ExitStack] = []

    def __enter__(self) -> None:
        super().__enter__()
        with ExitStack() as stack:
            stack.callback(super().__exit__)
            if self._cores is not None and not self._computing:
                stack.enter_context(self._cores.busy())
                stack.enter_context(self._cores.computing())
            self._computing.append(stack.pop_all())

    def __exit__(self, *_: object) -> None:
        self._computing.pop().close()
