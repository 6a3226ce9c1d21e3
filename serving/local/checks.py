"""Quick checks of this machine that run before anything heavy is imported."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from serving.errors import SettingsError, StartError


def check_port(host: str, port: int) -> None:
    """Check that the server can listen at an address.

    Raises:
        StartError: the address is in use, does not belong to this machine, or is invalid.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as problem:
        code = getattr(problem, "errno", None)
        reason = getattr(problem, "strerror", None) or str(problem)
        option = "--port" if code in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise StartError(
            f"cannot listen on {host}:{port}: {reason}; try another {option}"
        ) from problem


def check_writable(path: Path) -> None:
    """Check, before an expensive computation, that its result can be written to a path.

    The path and its parent folders need not exist.

    Raises:
        SettingsError: it cannot be written; the message names the folder that prevents it.
    """
    path = path.expanduser().absolute()
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not existing.is_dir():
        if existing == path and existing.is_file() and os.access(existing, os.W_OK):
            return
        raise SettingsError(
            f"cannot write to {path}: {existing} is not a folder; choose another path"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SettingsError(
            f"cannot write to {path}: {existing} is not writable; choose another path"
        )
