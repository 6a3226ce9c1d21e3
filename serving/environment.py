"""Environment variables that Mayfly sets for its own processes.

OpenMP, OpenBLAS and the tokenizers read theirs while they are loaded, so these are set before torch
and NumPy are imported: by `serving.app` for the server's processes, and by `mayfly` itself for
commands that compute in their own process (`corpus add`, `corpus reembed`, `adapt`, `calibrate`,
`plan`, `demo`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.core_share import CoreShare

# The file that processes append their startup progress to.
STARTUP_PROGRESS = "MAYFLY_STARTUP_PROGRESS"
# The format and the file of relayed log lines, as "json:/path" or "text:/path".
LOG_RELAY = "MAYFLY_LOG_RELAY"
# The folder of the models that can be named without a path (`serving.models.catalogue`).
MODEL_CACHE = "MAYFLY_MODEL_CACHE"
ENDS_WITH_PARENT = {"MAYFLY_ENDS_WITH_PARENT": "1"}
STRICT_LORA = {"MAYFLY_STRICT_LORA": "1"}
# The threads of a process while others compute, those while none does, and the common file
# (`adapters.core_share`), as "1:2:/path".
CORE_SHARE = "MAYFLY_CORE_SHARE"
# Variables that are not settings, although they begin with MAYFLY_.
_OTHERS = {STARTUP_PROGRESS, LOG_RELAY, CORE_SHARE, "MAYFLY_LOG_TO_DRIVER"}
INTERNAL = frozenset({*_OTHERS, *ENDS_WITH_PARENT, *STRICT_LORA})

# Each is imported where it is installed, and takes a second and 80 MB: transformers imports
# scikit-learn for a kind of generation that Mayfly does not use, and vLLM `scipy.signal` for audio.
_UNUSED_PACKAGES = ("sklearn", "scipy.signal")


def hide_packages() -> None:
    """Make packages that this process of a server does not need look as if they were missing."""
    hidden: Any = None
    for name in _UNUSED_PACKAGES:
        # Python's way to say that a module cannot be imported.
        sys.modules.setdefault(name, hidden)


@contextmanager
def hidden_packages() -> Iterator[None]:
    """Hide these packages within the `with` block, where transformers is imported: afterwards
    sentence-transformers, which needs them, can be imported, too.
    """
    hidden = [name for name in _UNUSED_PACKAGES if name not in sys.modules]
    hide_packages()
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def environment(threads: int) -> dict[str, str]:
    """Variables of a process that computes with `threads` threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        # Three processes share the cores. Threads that spin for long slow the others down tenfold,
        # and threads that sleep at once make a training step 1.7 times as long
        # (benchmarks/README.md).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        # NumPy's own threads always spin, and its products are small here.
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def core_share(member: int | None = None, load: Path | None = None) -> CoreShare | None:
    """The share of a server's process in the machine's cores; None for a fixed number of threads.

    Args:
        member, load: as for `CoreShare`.

    Raises:
        OSError: as `CoreShare`.
    """
    if (value := os.environ.get(CORE_SHARE)) is None:
        return None
    from adapters.core_share import CoreShare

    shared, alone, file = value.split(":", 2)
    return CoreShare(Path(file), int(shared), int(alone), member, load)


def set_environment(cores: int) -> None:
    """Set these variables with one thread per core; what the user has set stays."""
    for name, value in environment(cores).items():
        os.environ.setdefault(name, value)
