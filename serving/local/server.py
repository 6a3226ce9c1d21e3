"""A server on one machine: Ray, Ray Serve and the application within a `with` block.

It is shut down in an orderly way within a time limit, and killed after that. What remains even then
is named in an error. This module knows Ray's interface; `serving.local.supervisor` knows its
processes.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NoReturn

import httpx
import ray
from ray import serve
from ray._private import ray_constants
from ray._private.node import Node as RayNode
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from selection.location import home_of
from serving.app import NODE, build
from serving.config import Config
from serving.environment import LOG_RELAY
from serving.errors import LeftError, LostError, StartError
from serving.local.checks import check_port
from serving.local.haproxy import free_ports, running_haproxy
from serving.local.run_folder import RunFolder
from serving.local.supervisor import RaySupervisor
from serving.observability.log_relay import Relay
from serving.observability.logs import set_up_logs
from serving.observability.startup_progress import StartupProgress, follow_startup
from serving.settings.sources import variable

# Number of ports for engine replicas: Ray gives the port of a killed replica to no other.
REPLICA_PORTS = 64
# Size of Ray's object store, which holds what is being passed between processes, in bytes; more
# goes through files.
STORE_BYTES = {"cpu": 256 << 20, "gpu": 1 << 30}
# Ray repeats these tasks so often by default that an idle server keeps the CPU awake.
QUIET = {
    # The loop in which Serve's controller checks the replicas.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # The export of Serve's own metrics, which nobody reads here.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    # Ray's own metrics, which nobody reads either.
    "RAY_enable_metrics_collection": "0",
}
# Seconds to wait for an engine that is being replaced, beside three times the duration of the
# start.
_PATIENCE_SECONDS = 60.0
# Seconds between questions whether the application runs.
_START_POLL_SECONDS = 0.5
# Seconds until the server answers after Ray reports that the application runs.
_ANSWERING_SECONDS = 30.0
# Seconds that running requests have to finish when the server ends.
_GRACE_SECONDS = 30.0
# Seconds that Ray has to shut down after that, before it is killed.
_ORDERLY_SECONDS = 30.0
_APPLICATION = "mayfly"
# Where the logs of Ray's processes are kept when a server fails, below its home folder.
_FAILED_LOGS = "logs/failed"

log = logging.getLogger(__name__)


@contextmanager
def running_server(
    config: Config, on_progress: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, Callable[[], NoReturn]]]:
    """Run a server on this machine within the `with` block.

    The first signal ends it once running requests have finished, the second one at once.

    Args:
        config: the server's configuration.
        on_progress: called with a line of text for each step of the start and the end.

    Yields:
        The base URL, and a function that watches the server and raises LostError when it has
        failed.

    Raises:
        StartError: Ray or a deployment did not start.
        LeftError: processes or files of the server remain, although it was killed.
    """
    try:
        folder, supervisor = RunFolder(), RaySupervisor()
    except OSError as problem:
        raise StartError(f"cannot create a folder for temporary files: {problem}") from problem
    signals = _Signals()
    relay = Relay(config.log_format, folder.path)
    set_up_logs(config.log_format)
    exit_code, ended_orderly, lost = 1, True, False
    try:
        # All ports are chosen together, so that Ray's proxy does not take a replica's.
        ports = free_ports(1 + REPLICA_PORTS)
        proxy, replicas = ports[0], ports[1:]
        _set_environment(replicas, relay.variable)
        check_port(config.host, config.port)
        with running_haproxy(config.host, config.port, replicas, config.allowed_origins) as drain:
            try:
                ended_orderly = False
                with follow_startup(on_progress) as progress:
                    _start_ray(config, folder, on_progress)
                    supervisor.ray_started()
                    # Ray has just installed its own handlers.
                    signals.interrupt()
                    began = time.monotonic()
                    url = _start_serve(config, proxy, on_progress, progress)
                patience = _PATIENCE_SECONDS + 3 * (time.monotonic() - began)
                yield url, partial(supervisor.watch, _has_engine, patience)
            except (StartError, LostError) as problem:
                lost = isinstance(problem, LostError)
                if logs := folder.keep_logs(home_of(config.selector.root) / _FAILED_LOGS):
                    problem.add_note(f"the logs of its processes are in {logs}")
                raise
            finally:
                signals.hurry()
                ended_orderly = _end_in_order(supervisor, drain, on_progress, signals.hurried)
        exit_code = 0
    except KeyboardInterrupt:
        exit_code = 0
        raise
    finally:
        left = supervisor.end()
        relay.end()
        folder.end()
        if not ended_orderly:
            atexit.register(_exit_at_once, exit_code)
        signals.default()
        if left:
            message = (
                f"the server has ended, but could not remove {', '.join(left)}; "
                "kill these processes and delete these files"
            )
            if not lost:
                raise LeftError(message)
            log.error(message)
        if lost and signals.hurried.is_set():
            # The user has interrupted the server, so it must not be restarted.
            raise KeyboardInterrupt


def ray_environment(replicas: range) -> dict[str, str]:
    """The variables of Ray's processes; the user cannot override them.

    Args:
        replicas: ports where engine replicas may answer.
    """
    return NODE | {
        # Replicas answer HTTP themselves.
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas.stop),
        # HAProxy notices by itself which replicas listen.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PORT_QUARANTINE_S": "1",
        # Anyone with its token can execute code through Ray's ports, and a token that Ray creates
        # itself is in a file that others may be able to read.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray's ports listen on loopback only, as on systems where it supports no clusters.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


# The variables of Ray's processes that the user can override.
RAY_DEFAULTS = QUIET | {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise the server has a lower priority than everything else on the machine.
    "RAY_worker_niceness": "0",
}


def _set_environment(replicas: range, relayed: str) -> None:
    """Set the variables of Ray's processes, which inherit them from this one."""
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Replicas know the digests of keys only.
    os.environ.pop(variable("api_key"), None)
    os.environ |= {LOG_RELAY: relayed, **ray_environment(replicas)}
    # Ray has read the variable while it was imported.
    ray_constants.ENABLE_RAY_CLUSTER = False


def _start_ray(config: Config, folder: RunFolder, on_progress: Callable[[str], None]) -> None:
    on_progress("starting Ray and Ray Serve ...")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    log_to_driver = bool(os.environ.get("MAYFLY_LOG_TO_DRIVER"))
    if not log_to_driver:
        # This process of Ray reads all logs for a driver that shows them, which this one does not.
        RayNode.start_log_monitor = _start_nothing
    # These would scale a cluster and serve the dashboard.
    RayNode.start_monitor = RayNode.start_api_server = _start_nothing
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=STORE_BYTES["gpu" if config.engine_gpus else "cpu"],
            logging_level=logging.ERROR,
            log_to_driver=log_to_driver,
            _temp_dir=str(folder.path),
        )
    # Ray raises a plain Exception where a busy machine was too slow.
    except Exception as problem:
        raise StartError(f"Ray did not start: {problem}; try again") from problem


def _start_nothing(*_: object, **__: object) -> None:
    """In place of a method that starts a process of Ray that this server does not need."""


def _start_serve(
    config: Config, proxy: int, on_progress: Callable[[str], None], progress: StartupProgress
) -> str:
    """Start the application; returns the base URL once the server answers there."""
    serve.start(
        # The port of Ray's own proxy, which is idle.
        http_options=HTTPOptions(host="127.0.0.1", port=proxy),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    on_progress(f"loading {config.engine.served_name} into vLLM, the trainer and the selector ...")
    target = serve.RunTarget(build(config), name=_APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    _wait_until_running(progress)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{config.port}"
    _wait_for(f"{url}/health")
    return url


def _wait_until_running(progress: StartupProgress) -> None:
    """Wait until the application runs, and not for further attempts at what cannot succeed.

    Raises:
        StartError: it does not start; Ray only says which deployment, and its process has reported
            the reason.
    """
    while (application := serve.status().applications[_APPLICATION]).status != "RUNNING":
        if application.status == "DEPLOY_FAILED" or progress.is_final:
            progress.poll()
            reasons = "; ".join(f"{part}: {reason}" for part, reason in progress.failures.items())
            raise StartError(f"the server did not start: {reasons or application.message}")
        time.sleep(_START_POLL_SECONDS)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _ANSWERING_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise StartError(
        f"{url} does not answer {_ANSWERING_SECONDS:.0f} s after the engine has loaded"
    )


def _has_engine() -> bool:
    # Suppressed where the controller itself is being restarted.
    with suppress(Exception):
        engine = serve.status().applications[_APPLICATION].deployments["engine"]
        return bool(engine.status == "HEALTHY")
    return False


def _end_in_order(
    supervisor: RaySupervisor,
    drain: Callable[[float], None],
    on_progress: Callable[[str], None],
    hurried: threading.Event,
) -> bool:
    """Let running requests finish, then shut Ray down; returns whether that succeeded in time."""
    if supervisor.lost:
        return False
    # Suppressed where the terminal, or the program that the output is piped to, is gone.
    with suppress(OSError, SystemExit):
        on_progress("finishing running requests ...")
    supervisor.run_while_ray_lives(partial(drain, _GRACE_SECONDS), _GRACE_SECONDS + 1, hurried)
    return supervisor.run_while_ray_lives(_end_ray, _ORDERLY_SECONDS, hurried)


def _end_ray() -> None:
    if ray.is_initialized():
        # Suppressed where the start failed and there is no application.
        with suppress(Exception):
            # This returns after the engine has ended its processes.
            serve.delete(_APPLICATION)
        ray.shutdown()


def _exit_at_once(code: int) -> None:
    """Exit without Ray's own handlers, which would wait for killed processes and may crash."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class _Signals:
    """Handles the signals that end a server.

    Attributes:
        hurried: set by a signal after `hurry` was called.
    """

    def __init__(self) -> None:
        self.hurried = threading.Event()
        self._numbers = [signal.SIGINT, signal.SIGTERM]
        # A server whose SIGHUP is ignored (nohup) is meant to outlive its terminal.
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            self._numbers.append(signal.SIGHUP)
        self.interrupt()

    def interrupt(self) -> None:
        """From now on, a signal raises KeyboardInterrupt."""
        self._handle(_interrupt)

    def hurry(self) -> None:
        """From now on, a signal sets `hurried`."""
        self._handle(lambda *_: self.hurried.set())

    def default(self) -> None:
        """From now on, signals do what they do in any Python program."""
        self._handle(signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, handler: Any) -> None:
        for number in self._numbers:
            signal.signal(number, handler)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
