"""One machine's server: Ray, Serve and the application for the length of a `with`, and none of it
afterwards.

It ends in an orderly way where that takes no longer than it may, and by force where it would; what
`running` has left is then gone, or named. Knows Ray's interface; its processes are
`serving.local.supervisor`'s.
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

from serving.app import NODE, build
from serving.config import Config
from serving.environment import LOG_RELAY
from serving.errors import LeftError, LostError, StartError
from serving.local.checks import check_port
from serving.local.haproxy import entrance, free_ports
from serving.local.run_folder import RunFolder
from serving.local.supervisor import RaySupervisor
from serving.observability.log_relay import Relay
from serving.observability.logs import set_up_logs
from serving.observability.start_news import News, following
from serving.settings.sources import variable

# Where engine replicas may answer: Ray gives one of a replica that was killed to no other.
REPLICA_PORTS = 64
# For what is on its way between processes; more goes by way of files.
STORE_BYTES = {"cpu": 256 << 20, "gpu": 1 << 30}
# What Ray does again and again, less often than it would by itself: it keeps an idle server awake.
QUIET = {
    # Of Serve's controller, which sees then which replicas are well.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Of Serve's own metrics; nobody reads them here.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    "RAY_enable_metrics_collection": "0",  # nor Ray's
}
_PATIENCE_SECONDS = 60.0  # and three times what the start took, for an engine that is replaced
_ANSWERING_SECONDS = 30.0  # from when Ray calls the application running
_GRACE_SECONDS = 30.0  # that requests under way have to finish when the server ends
_ORDERLY_SECONDS = 30.0  # that everything has to end by itself after that, before it is killed
_NAME = "mayfly"  # of the application
_FAILED_LOGS = "logs/failed"  # below the home: what Ray's processes said in a server that failed

log = logging.getLogger(__name__)


@contextmanager
def running(
    config: Config, on_stage: Callable[[str], None] = lambda stage: None
) -> Iterator[tuple[str, Callable[[], NoReturn]]]:
    """A Mayfly on this machine for the length of a `with`; gives its base URL, and what waits and
    watches over it.

    A first signal ends it once the answers under way are finished, a second one at once.

    Raises:
        StartError: Ray or a deployment did not come up.
        LeftError: something of it is there all the same, after it has been killed.
    """
    try:
        folder, node = RunFolder(), RaySupervisor()
    except OSError as problem:
        raise StartError(f"there is no place for temporary files: {problem}") from problem
    signals = _Signals()
    relay = Relay(config.log_format, folder.path)
    set_up_logs(config.log_format)
    code, orderly, lost = 1, True, False
    try:
        # Drawn at once: the proxy must not be taken for a replica.
        ports = free_ports(1 + REPLICA_PORTS)
        proxy, replicas = ports[0], ports[1:]
        _set_environment(replicas, relay.variable)
        check_port(config.host, config.port)
        with entrance(config.host, config.port, replicas, config.allowed_origins) as drain:
            try:
                orderly = False
                with following(on_stage) as news:
                    _start_ray(config, folder, on_stage)
                    node.began()
                    signals.interrupt()  # Ray has just put its own handlers in their place
                    begun = time.monotonic()
                    url = _start_serve(config, proxy, on_stage, news)
                yield (
                    url,
                    partial(
                        node.watch, _has_engine, _PATIENCE_SECONDS + 3 * (time.monotonic() - begun)
                    ),
                )
            except (StartError, LostError) as problem:
                lost = isinstance(problem, LostError)
                if kept := folder.keep_logs(config.selector.root.parent / _FAILED_LOGS):
                    problem.add_note(f"what its processes said is in {kept}")
                raise
            finally:
                signals.hurry()
                orderly = _end_in_order(node, drain, on_stage, signals.hurried)
        code = 0
    except KeyboardInterrupt:
        code = 0
        raise
    finally:
        left = node.end()
        relay.end()
        folder.end()
        if not orderly:
            atexit.register(_leave, code)
        signals.default()
        if left:
            words = f"the server has ended, and this is left of it: {', '.join(left)}; end or delete it by hand"
            if not lost:
                raise LeftError(words)
            log.error(words)
        if lost and signals.hurried.is_set():
            raise KeyboardInterrupt  # it is not to start again


def _set_environment(replicas: range, relayed: str) -> None:
    """What Ray's processes, which inherit it, read from this one's environment."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else the server gives way to everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.pop(variable("api_key"), None)  # replicas know its digest
    os.environ |= NODE | {
        LOG_RELAY: relayed,
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",  # replicas answer HTTP themselves
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas.stop),
        # The entrance sees by itself who listens.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PORT_QUARANTINE_S": "1",
        # Ray's ports execute code for who has its token; what it makes by itself lies in a file
        # that others may read.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # And they are on loopback, as where Ray has no clusters.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray has read the variable as it was imported


def _start_ray(config: Config, folder: RunFolder, on_stage: Callable[[str], None]) -> None:
    on_stage("starting Ray and Ray Serve ...")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    to_driver = bool(os.environ.get("MAYFLY_LOG_TO_DRIVER"))
    if not to_driver:  # this process of Ray's reads all logs for a driver that wants to show them
        RayNode.start_log_monitor = lambda _: None
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=STORE_BYTES["gpu" if config.engine_gpus else "cpu"],
            logging_level=logging.ERROR,
            log_to_driver=to_driver,
            _temp_dir=str(folder.path),
        )
    except Exception as problem:  # a plain one, where a crowded machine was too slow
        raise StartError(f"Ray did not start: {problem}; try again") from problem


def _start_serve(config: Config, proxy: int, on_stage: Callable[[str], None], news: News) -> str:
    """The server's base URL, once it answers there."""
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=proxy),  # of Ray's own, which idles
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    on_stage(f"loading {config.engine.served_name} into vLLM, the trainer and the selector ...")
    try:
        serve.run(build(config), name=_NAME, route_prefix="/")
    except RuntimeError as problem:  # which only says that a deployment did not come up
        news.look()
        reasons = "; ".join(f"{part}: {why}" for part, why in news.failures.items())
        raise StartError(f"the server did not start: {reasons or problem}") from problem
    url = (
        f"http://[{config.host}]:{config.port}"
        if ":" in config.host
        else f"http://{config.host}:{config.port}"
    )
    _wait_for(f"{url}/health")
    return url


def _wait_for(url: str) -> None:
    until = time.monotonic() + _ANSWERING_SECONDS
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise StartError(
        f"{url} does not answer {_ANSWERING_SECONDS:.0f} s after the engine has loaded"
    )


def _has_engine() -> bool:
    with suppress(Exception):  # the controller may be on its way back, too
        return bool(serve.status().applications[_NAME].deployments["engine"].status == "HEALTHY")
    return False


def _end_in_order(
    node: RaySupervisor,
    drain: Callable[[float], None],
    on_stage: Callable[[str], None],
    hurried: threading.Event,
) -> bool:
    """Let answers be finished, then everything end by itself; whether it has, in the time that it
    may take.
    """
    if node.lost:
        return False
    with suppress(OSError, SystemExit):  # the terminal is gone, or what it was piped to
        on_stage("finishing what is under way ...")
    node.while_there(partial(drain, _GRACE_SECONDS), _GRACE_SECONDS + 1, hurried)
    return node.while_there(_end_ray, _ORDERLY_SECONDS, hurried)


def _end_ray() -> None:
    if ray.is_initialized():
        with suppress(Exception):  # where the start failed, there is no application
            serve.delete(_NAME)  # until the engine has ended its processes
        ray.shutdown()


def _leave(code: int) -> None:
    """Exit at once: Ray's own end would wait for processes that have been killed, and may crash."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class _Signals:
    """What the signals do that end a server: interrupt it first, then hurry its end."""

    def __init__(self) -> None:
        self.hurried = threading.Event()
        self._numbers = [signal.SIGINT, signal.SIGTERM]
        # Else it is to outlive its terminal (nohup).
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            self._numbers.append(signal.SIGHUP)
        self.interrupt()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt."""
        self._handle(_interrupt)

    def hurry(self) -> None:
        """Set `hurried`."""
        self._handle(lambda *_: self.hurried.set())

    def default(self) -> None:
        """What they do in any Python program."""
        self._handle(signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, how: Any) -> None:
        for number in self._numbers:
            signal.signal(number, how)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
