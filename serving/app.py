"""The only ray import: the deployments, how they are wired, and one machine's server.

`build(config)` gives the Ray Serve application, for `serve run` and clusters; `running(config)` is what the
command uses: Ray, Serve and the application on this machine, all of it gone afterwards. The deployments are
thin: what they wrap works without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import httpx
import ray
from ray import serve
from ray._private import ray_constants
from ray.exceptions import RayTaskError, TaskCancelledError
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from adapters.training import Progress, Training
from selection.embedding import Prompt
from selection.library import Library
from selection.selector import Selection, SelectorConfig
from selection.shards import folder_of
from serving import compute, front, orphans
from serving.checks import check_port
from serving.config import Config
from serving.entrance import entrance, free_ports
from serving.errors import SettingsError, StartError
from serving.logs import set_up_logs
from serving.news import READY, following, tell
from serving.node import Node
from serving.options import settings_of, variable
from serving.settings import check
from serving.stages import CorporaStage, ShardStage, TrainStage
from serving.tracing import start_tracing, stop_tracing

if TYPE_CHECKING:
    from serving.engine import Engine
    from serving.gateway import Gateway

P = ParamSpec("P")
Result = TypeVar("Result")
log = logging.getLogger(__name__)

STAGE_QUEUE = 256  # requests that may wait before a stage
REPLICA_PORTS = 64  # where engine replicas may answer: Ray gives one of a replica that was killed to no other
_PATIENCE_SECONDS = 60.0  # and three times what the start took, for an engine that is replaced
_ANSWERING_SECONDS = 30.0  # from when Ray calls the application running
_SHARD_SECONDS = 10.0  # for a shard's answer
STORE_BYTES = {"cpu": 256 << 20, "gpu": 1 << 30}  # for what is on its way between processes; more goes by way of files
_GRACE_SECONDS = 30.0  # that requests under way have to finish when the server ends
_HANGING_SECONDS = 10.0  # that a stage may take to say it is well; after three such times it is replaced
_WARM_SECONDS = 60.0  # that warming up one stage may take at the start; longer is left to the first request
_HEALTH_SECONDS = 1.0  # between Ray Serve's looks at a replica: one that has died is replaced after that
NODE = {  # what every node's environment should have
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": front.IMPORT_PATH,
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine five seconds do not suffice, and it is killed
    # Memory that the store has not got beforehand may not be there later; asked for then, it is the raylet's end.
    "RAY_preallocate_plasma_memory": "1",
}
_ENGINE = orphans.ENVIRONMENT | {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"  # else every token crosses from one thread to another
}
_SELECTOR = {  # it waits for shards in threads
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


class RemoteStage:
    """The selector's and the trainer's deployments, called as if they were here."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def select(self, prompts: Sequence[Prompt], corpus: str, **options: Any) -> Selection:
        """As `CorporaStage.select`."""
        selection: Selection = await _answer(self._handle.select.remote(prompts, corpus, **options))
        return selection

    async def ask(
        self, method: Callable[Concatenate[Library, P], Result], /, *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """As `CorporaStage.ask`."""
        answer: Result = await _answer(self._handle.ask.remote(method, *args, **kwargs))
        return answer

    async def ready(self, *corpus: str | None) -> None:
        """As `CorporaStage.ready` and `TrainStage.ready`."""
        await _answer(self._handle.ready.remote(*corpus))

    async def warm_up(self, *corpus: str | None) -> None:
        """As `CorporaStage.warm_up` and `TrainStage.warm_up`."""
        await _answer(self._handle.warm_up.remote(*corpus))

    async def train(
        self, sequences: Sequence[Sequence[int]], *, on_step: Callable[[Progress], None] | None, **options: Any
    ) -> Training:
        """As `TrainStage.train`."""
        if on_step is None:
            untold: Training = await _answer(self._handle.train.remote(sequences, **options))
            return untold
        told = self._handle.options(stream=True).training.remote(sequences, **options)
        training: Training = await _answer(_last(told, on_step), told.cancel)
        return training


async def _last(told: AsyncIterator[Progress | Training], on_step: Callable[[Progress], None]) -> Training:
    async for said in told:
        if isinstance(said, Training):
            return said
        on_step(said)
    raise AssertionError("a training ended without a word")


async def _answer(response: Any, cancel: Callable[[], object] | None = None) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        (cancel or response.cancel)()
        raise
    except RayTaskError as problem:  # its own text is a stack trace; the cause is what was raised
        raise problem.cause from None


class _FromShard:
    """A shard's answer, as `selection.shards.Answer`."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def result(self) -> Any:
        """Waits for it, in a thread that is not the event loop's, but not for ever."""
        try:
            return self._response.result(timeout_s=_SHARD_SECONDS)
        except RayTaskError as problem:
            raise problem.cause from None
        except TimeoutError:
            self._response.cancel()
            raise


class SelectorReplica(CorporaStage):
    """The selector and the library, over shards that are deployments of their own."""

    def __init__(self, config: SelectorConfig, *shards: DeploymentHandle) -> None:
        tell("selector", "loading the embedder")
        # A handle of the method: one is made here, since threads that made it as they go could make two.
        super().__init__(config, [partial(self._ask, shard.options(method_name="ask")) for shard in shards])
        tell("selector", READY)

    @staticmethod
    def _ask(shard: DeploymentHandle, method: Callable[..., Any], /, *args: Any) -> _FromShard:
        return _FromShard(shard.remote(method, *args))


class EngineReplica:
    """The HTTP ingress: vLLM's application lives in this replica, and so does the journey."""

    def __init__(self, config: Config, selector: DeploymentHandle, trainer: DeploymentHandle) -> None:
        self._config = config
        self._selector, self._trainer = RemoteStage(selector), RemoteStage(trainer)
        self._engine: Engine | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        tell("engine", "importing vLLM")
        # Imported here: only this replica pays for vLLM.
        from serving.engine import Engine
        from serving.gateway import Gateway

        set_up_logs(self._config.log_format)
        start_tracing()
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # our own gauges would be missing from /metrics
        self._engine = await Engine.start(self._config.engine)
        await self._warm_up()
        tell("engine", READY)
        return _hearing_of_leavers(Gateway(self._engine, self._selector, self._trainer, self._config))

    async def _warm_up(self) -> None:
        """Let selector and trainer do once what a first request would else pay for, now that the engine has loaded.

        What stands in the way of it is told by the first request that meets it, or by `/ready`.
        """
        for warming in (self._selector.warm_up(self._config.corpus), self._trainer.warm_up()):
            try:
                await asyncio.wait_for(warming, _WARM_SECONDS)
            except Exception as problem:
                log.warning("could not warm up: %s", problem)

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if self._engine is not None:
            await (
                self._engine.loaded()
            )  # which an engine that hangs never says: Ray Serve gives it a minute, three times

    async def __del__(self) -> None:
        if self._engine is not None:
            self._engine.stop()
        stop_tracing()


def _hearing_of_leavers(app: Gateway) -> Any:
    """The application, told of a client that has left in ASGI's words where Ray uses an error of its own."""

    async def told(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        async def heard() -> Any:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await app(scope, heard, send)

    return told


def build(config: Config) -> serve.Application:
    """The application: an engine as ingress, a selector and a trainer behind it."""
    environment = compute.environment(config.threads) | {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }

    def actor(gpus: float = 0.0, more: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        return {"num_cpus": 0, "num_gpus": gpus, "runtime_env": {"env_vars": {**environment, **more}}}

    def stage(kind: type, name: str, gpus: float = 0.0, more: Mapping[str, str] = MappingProxyType({})) -> Any:
        return serve.deployment(kind, name=name).options(
            ray_actor_options=actor(gpus, more),
            max_ongoing_requests=STAGE_QUEUE,
            health_check_period_s=_HEALTH_SECONDS,
            health_check_timeout_s=_HANGING_SECONDS,
            graceful_shutdown_wait_loop_s=0.1,
        )

    home = config.selector.root.parent
    shards = [
        stage(ShardStage, f"shard-{number}").bind(folder_of(home, number, config.shards))
        for number in range(config.shards)
    ]
    engine = serve.deployment(serve.ingress()(EngineReplica)).options(
        name="engine",
        ray_actor_options=actor(config.engine_gpus, _ENGINE),
        # The replica refuses by itself what is too much, in OpenAI's words; Ray only what would not even fit in there.
        max_ongoing_requests=config.capacity.requests + STAGE_QUEUE,
        max_queued_requests=STAGE_QUEUE,
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=30,  # a busy machine needs that long to end vLLM without leftovers
        graceful_shutdown_wait_loop_s=0.1,
    )
    selector = stage(SelectorReplica, "selector", more=_SELECTOR).bind(config.selector, *shards)
    return engine.bind(config, selector, stage(TrainStage, "trainer", config.trainer_gpus).bind(config.trainer))


def application(told: dict[str, Any]) -> serve.Application:
    """The application of a Serve config: `import_path: serving.app:application`, and settings as its `args`.

    Raises:
        SettingsError, CorpusError: as `settings_of`, `Settings.config` and `check`.
    """
    settings = settings_of(told)
    settings.check()
    config = settings.config()
    if not config.has_keys:
        raise SettingsError(
            "a cluster's server needs keys: set MAYFLY_API_KEYS where Ray is started, or `api-key-file` in the args"
        )
    check(config)
    return build(config)


@contextmanager
def running(
    config: Config, on_stage: Callable[[str], None] = lambda stage: None
) -> Iterator[tuple[str, Callable[[], NoReturn]]]:
    """A Mayfly on this machine for the length of a `with`; gives its base URL, and what waits and watches over it.

    Raises:
        StartError: Ray or a deployment did not come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else the server gives way to everything else on the machine
    os.environ.pop(variable("api_key"), None)  # replicas know its digest
    ports = free_ports(1 + REPLICA_PORTS)  # drawn at once: the proxy must not be taken for a replica
    proxy, replicas = ports[0], ports[1:]
    os.environ |= NODE | {  # read by Ray's processes, which inherit it
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",  # replicas answer HTTP themselves
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas.stop),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # the entrance sees by itself who listens
        "RAY_SERVE_PORT_QUARANTINE_S": "1",
        # Ray's ports execute code for who has its token; what it makes by itself lies in a file that others may read.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # and they are on loopback, as where Ray has no clusters
    }
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray has read the variable as it was imported
    check_port(config.host, config.port)
    with entrance(config.host, config.port, replicas, config.allowed_origins) as drain, ExitStack() as starting:
        starting.enter_context(following(on_stage))
        on_stage("starting Ray and Ray Serve ...")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=STORE_BYTES["gpu" if config.engine_gpus else "cpu"],
                logging_level=logging.ERROR,
                log_to_driver=bool(os.environ.get("MAYFLY_LOG_TO_DRIVER")),
            )
        except Exception as problem:  # a plain one, where a crowded machine was too slow
            raise StartError(f"Ray did not start: {problem}; try again") from problem
        node = Node()
        for number in (signal.SIGINT, signal.SIGTERM):  # Ray has just put its own in their place
            signal.signal(number, _interrupt)
        try:
            serve.start(
                http_options=HTTPOptions(host="127.0.0.1", port=proxy),  # of Ray's own, which idles
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
            begun = time.monotonic()
            on_stage(f"loading {config.engine.served_name} into vLLM, the trainer and the selector ...")
            try:
                serve.run(build(config), name="mayfly", route_prefix="/")
            except RuntimeError as problem:
                raise StartError(f"the server did not start: {problem}") from problem
            url = (
                f"http://[{config.host}]:{config.port}" if ":" in config.host else f"http://{config.host}:{config.port}"
            )
            _wait_for(f"{url}/health")
            starting.close()
            yield url, partial(node.watch, _has_engine, _PATIENCE_SECONDS + 3 * (time.monotonic() - begun))
        finally:
            if not node.lost:
                with suppress(KeyboardInterrupt):  # a second Ctrl-C waits for nobody
                    with suppress(OSError, SystemExit):  # the terminal is gone, or what it was piped to
                        on_stage("finishing what is under way ...")
                    drain(_GRACE_SECONDS)
            for number in (signal.SIGINT, signal.SIGTERM):  # one more now would leave processes and files behind
                signal.signal(number, signal.SIG_IGN)
            if not node.lost:
                node.while_there(partial(serve.delete, "mayfly"))  # until the engine has ended its processes
            if node.lost:
                node.end()
            else:
                ray.shutdown()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait_for(url: str) -> None:
    until = time.monotonic() + _ANSWERING_SECONDS
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise StartError(f"{url} does not answer {_ANSWERING_SECONDS:.0f} s after the engine has loaded")


def _has_engine() -> bool:
    with suppress(Exception):  # the controller may be on its way back, too
        return bool(serve.status().applications["mayfly"].deployments["engine"].status == "HEALTHY")
    return False


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
