"""The environment of processes that compute on a CPU: read by OpenMP, OpenBLAS and the tokenizers as they are loaded.

So it is set before torch and NumPy are imported: for the server's processes by `serving.app`, for commands that compute
by themselves (`corpus add`, `corpus reembed`, `adapt`, `calibrate`, `plan`, `demo`) as `mayfly` begins.
"""

from __future__ import annotations

import os


def environment(threads: int) -> dict[str, str]:
    """Variables of a process that computes on so many threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        # Threads of three processes share the cores. Spinning for long they slow each other tenfold; sleeping at once
        # made a training step 1.7 times as long (benchmarks/README.md).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's own threads, which spin whatever is said; its products here are small
        "TOKENIZERS_PARALLELISM": "false",
    }


def set_environment(cores: int) -> None:
    """Have this process compute as the server's do, on all cores; what its user has set stays."""
    for name, value in environment(cores).items():
        os.environ.setdefault(name, value)
