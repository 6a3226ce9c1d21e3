"""Names of a server's processes, by their command lines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import psutil

# Pattern of a command line, and the process's name; None for the pattern's group.
_NAMES = (
    (r"VLLM::Worker", "worker"),
    (r"VLLM::EngineCore", "engine core"),
    (r"ServeReplica:\w+:(\w+)", None),
    (r"ServeController", "Serve's controller"),
    (r"ProxyActor", "Serve's proxy"),
    (r"/raylet/raylet ", "raylet"),
    (r"gcs_server", "control store"),
    (r"runtime_env/agent|RuntimeEnvAgent", "Ray's environment agent"),
    (r"dashboard/agent|DashboardAgent", "Ray's agent"),
    (r"dashboard", "Ray's dashboard"),
    (r"log_monitor", "Ray's log monitor"),
    (r"autoscaler|monitor\.py", "Ray's monitor"),
    (r"ray::IDLE", "idle workers"),
    (r"haproxy", "HAProxy"),
    (r"mayfly serve|mayfly\W+serve", "the command"),
)


def process_name(command_line: str) -> str:
    """Name of a process of the server, by its command line."""
    for pattern, name in _NAMES:
        if match := re.search(pattern, command_line):
            return name or str(match[1])
    return "others"


def processes_named(name: str, processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The processes of this name that have not ended."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process_name(" ".join(process.cmdline())) == name:
                found.append(process)
    return found
