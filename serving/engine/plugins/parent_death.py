"""The vLLM plugin that ends vLLM's processes with their parent.

When an engine replica is killed, vLLM's engine and workers would otherwise continue and keep their
memory. vLLM loads the plugin in each of its processes (entry point `vllm.general_plugins`). It acts
only where `serving.app` has set `ENDS_WITH_PARENT`, so that other programs that use the same
installation of vLLM are not affected. The plugin also relays the errors that vLLM's processes log
(`serving.observability.log_relay`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal

from serving.environment import ENDS_WITH_PARENT
from serving.observability.log_relay import relay_errors
from serving.processes import end_with_parent


def register() -> None:
    """End this process with its parent; vLLM may call this repeatedly.

    The replica itself loads the plugin, too, but has no parent of `multiprocessing`: Ray ends it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        relay_errors(logging.getLogger("vllm"))
    if ENDS_WITH_PARENT.items() <= os.environ.items() and parent is not None:
        end_with_parent()
        # The parent may have ended before the kernel was informed.
        if os.getppid() != parent.pid:
            os.kill(os.getpid(), signal.SIGKILL)
