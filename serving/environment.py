"""Variables of the environment that Mayfly's own processes set for one another, and those of
processes that compute.

OpenMP, OpenBLAS and the tokenizers read theirs as they are loaded, so they are set before torch and
NumPy are imported: for the server's processes by `serving.app`, for commands that compute by
themselves (`corpus add`, `corpus reembed`, `adapt`, `calibrate`, `plan`, `demo`) as `mayfly`
begins.
"""

from __future__ import annotations

import os

START_NEWS = "MAYFLY_START_NEWS"
LOG_RELAY = "MAYFLY_LOG_RELAY"  # "json:/path" or "text:/path"
ENDS_WITH_PARENT = {"MAYFLY_ENDS_WITH_PARENT": "1"}
STRICT_LORA = {"MAYFLY_WHOLE_ADAPTERS": "1"}
INTERNAL = frozenset(
    {START_NEWS, LOG_RELAY, *ENDS_WITH_PARENT, *STRICT_LORA, "MAYFLY_LOG_TO_DRIVER"}
)


def environment(threads: int) -> dict[str, str]:
    """Variables of a process that computes on so many threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        # Threads of three processes share the cores. Spinning for long they slow each other
        # tenfold; sleeping at once made a training step 1.7 times as long (benchmarks/README.md).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        # NumPy's own threads, which spin whatever is said; its products here are small.
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def set_environment(cores: int) -> None:
    """Have this process compute as the server's do, on all cores; what its user has set stays."""
    for name, value in environment(cores).items():
        os.environ.setdefault(name, value)
