"""A part of the GPU check that measures once and then raises, or goes on for ever."""

from __future__ import annotations

import threading

from benchmarks.gpu.main import Measured


def measure(budget: str) -> Measured:
    """The budget says how it ends."""
    yield "first", {"budget": budget}
    if budget == "raises":
        raise RuntimeError("no such device")
    threading.Event().wait()
