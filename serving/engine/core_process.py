"""The main module of vLLM's processes, which `multiprocessing` imports there before vLLM.

Without it, these processes would import the replica's main module, which is Ray's worker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec

from serving.environment import hide_packages


@contextmanager
def main_of_spawned_processes() -> Iterator[None]:
    """Make this module the main module of processes that are spawned within the `with` block."""
    main = sys.modules["__main__"]
    before, main.__spec__ = main.__spec__, ModuleSpec(__name__, None)
    try:
        yield
    finally:
        main.__spec__ = before


# The name under which `multiprocessing` imports the main module.
if __name__ == "__mp_main__":
    hide_packages()
