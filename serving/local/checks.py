"""Cheap checks of this machine, before anything heavy is imported."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from serving.errors import SettingsError, StartError


def check_port(host: str, port: int) -> None:
    """Whether this address can be listened on.

    Raises:
        StartError: it is in use, not this machine's, or not an address; the message says what to
            do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as problem:
        code, reason = (
            getattr(problem, "errno", None),
            getattr(problem, "strerror", None) or str(problem),
        )
        option = "--port" if code in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise StartError(
            f"cannot listen on {host}:{port}: {reason}; try another {option}"
        ) from problem


def check_writable(place: Path) -> None:
    """Whether something can be written at a path that may not be there yet: what it costs to make
    it comes first.

    Raises:
        SettingsError: it cannot; the message names the folder that is in the way.
    """
    place = place.expanduser().absolute()
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    if not there.is_dir():
        if there == place and there.is_file() and os.access(there, os.W_OK):
            return
        raise SettingsError(f"cannot write to {place}: {there} is not a folder; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(
            f"cannot write to {place}: {there} may not be written to; name another place"
        )
