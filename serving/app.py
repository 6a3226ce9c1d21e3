"""The deployments on Ray Serve, and how they are wired.

`build(config)` gives the application, for `serving.local.server`, `serve run` and clusters. The
deployments are thin: what they wrap works without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ray import serve
from ray.exceptions import RayTaskError, TaskCancelledError
from ray.serve.handle import DeploymentHandle

from adapters.trainer import TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.corpus.shards import shard_folder
from selection.library.library import Library
from selection.request import SelectionRequest
from selection.selector import Selection, SelectorConfig
from serving import environment as variables
from serving.adaptation.workers import CorporaWorker, ShardWorker, TrainerWorker
from serving.config import Config
from serving.errors import SettingsError
from serving.http import hardening
from serving.observability.log_relay import relay_errors
from serving.observability.logs import LogFormat, set_up_logs
from serving.observability.startup_progress import report_startup, reported_startup
from serving.observability.tracing import start_tracing, stop_tracing
from serving.settings.checks import check_settings, check_tokenizers
from serving.settings.sources import settings_from

if TYPE_CHECKING:
    from serving.engine.engine import Engine
    from serving.http.gateway import Gateway

P = ParamSpec("P")
Result = TypeVar("Result")
log = logging.getLogger(__name__)

STAGE_QUEUE = 256  # requests that may wait before a stage
_SHARD_SECONDS = 10.0  # for a shard's answer
# That a stage may take to say it is well; after three such times it is replaced.
_HANGING_SECONDS = 10.0
# That warming up one stage may take at the start; longer is left to the first request.
_WARM_SECONDS = 60.0
# Between Ray Serve's looks at a replica: one that has died is replaced after that.
_HEALTH_SECONDS = 1.0
NODE = {  # what every node's environment should have
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": hardening.IMPORT_PATH,
    # On a busy machine five seconds do not suffice, and it is killed.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Memory that the store has not got beforehand may not be there later; asked for then, it is the
    # raylet's end.
    "RAY_preallocate_plasma_memory": "1",
}
_ENGINE = variables.ENDS_WITH_PARENT | {
    # Else every token crosses from one thread to another.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"
}
_SELECTOR = {  # it waits for shards in threads
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


class RemoteStage:
    """The selector's and the trainer's deployments, called as if they were here."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def select(self, request: SelectionRequest, seconds: float | None = None) -> Selection:
        """As `CorporaWorker.select`."""
        selection: Selection = await _answer(self._handle.select.remote(request, seconds))
        return selection

    async def ask(
        self,
        method: Callable[Concatenate[Library, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """As `CorporaWorker.ask`."""
        answer: Result = await _answer(self._handle.ask.remote(method, *args, **kwargs))
        return answer

    async def ready(self, *corpus: str | None) -> None:
        """As `CorporaWorker.ready` and `TrainerWorker.ready`."""
        await _answer(self._handle.ready.remote(*corpus))

    async def warm_up(self, *corpus: str | None) -> None:
        """As `CorporaWorker.warm_up` and `TrainerWorker.warm_up`."""
        await _answer(self._handle.warm_up.remote(*corpus))

    async def train(
        self,
        request: TrainingRequest,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> TrainingResult:
        """As `TrainerWorker.train`."""
        if on_step is None:
            untold: TrainingResult = await _answer(self._handle.train.remote(request))
            return untold
        told = self._handle.options(stream=True).training.remote(request)
        training: TrainingResult = await _answer(_last(told, on_step), told.cancel)
        return training


async def _last(
    told: AsyncIterator[TrainingProgress | TrainingResult],
    on_step: Callable[[TrainingProgress], None],
) -> TrainingResult:
    async for said in told:
        if isinstance(said, TrainingResult):
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
    """A shard's answer, as `selection.corpus.shards.ShardAnswer`."""

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


class SelectorReplica(CorporaWorker):
    """The selector and the library, over shards that are deployments of their own."""

    def __init__(
        self, config: SelectorConfig, log_format: LogFormat, *shards: DeploymentHandle
    ) -> None:
        _log_as(log_format)
        report_startup("selector", "loading the embedder")
        with reported_startup("selector"):
            # A handle of the method: one is made here, since threads that made it as they go could
            # make two.
            super().__init__(
                config, [partial(self._ask, shard.options(method_name="ask")) for shard in shards]
            )

    @staticmethod
    def _ask(shard: DeploymentHandle, method: Callable[..., Any], /, *args: Any) -> _FromShard:
        return _FromShard(shard.remote(method, *args))


class ShardReplica(ShardWorker):
    """A shard, in a process of its own."""

    def __init__(self, root: Path, log_format: LogFormat) -> None:
        _log_as(log_format)
        super().__init__(root)


class TrainerReplica(TrainerWorker):
    """The trainer, in a process of its own."""

    def __init__(self, config: TrainerConfig, log_format: LogFormat) -> None:
        _log_as(log_format)
        super().__init__(config)


class EngineReplica:
    """The HTTP ingress: vLLM's application lives in this replica, and so does the journey."""

    def __init__(
        self, config: Config, selector: DeploymentHandle, trainer: DeploymentHandle
    ) -> None:
        self._config = config
        self._selector, self._trainer = RemoteStage(selector), RemoteStage(trainer)
        self._engine: Engine | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        report_startup("engine", "importing vLLM")
        with reported_startup("engine"):
            # Imported here: only this replica pays for vLLM.
            from serving.engine.engine import Engine
            from serving.http.gateway import Gateway

            _log_as(self._config.log_format)
            start_tracing()
            # Our own gauges would be missing from /metrics.
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
            self._engine = await Engine.start(self._config.engine)
            await self._warm_up()
        return _hearing_of_leavers(
            Gateway(self._engine, self._selector, self._trainer, self._config)
        )

    async def _warm_up(self) -> None:
        """Let selector and trainer do once what a first request would else pay for, now that the
        engine has loaded.

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
            # An engine that hangs never answers: Ray Serve gives it a minute, three times.
            await self._engine.check_health()

    async def __del__(self) -> None:
        if self._engine is not None:
            self._engine.stop()
        stop_tracing()


def _log_as(form: LogFormat) -> None:
    """Set up this replica's logs, those that the command shows among them."""
    set_up_logs(form)
    relay_errors(logging.getLogger())


def _hearing_of_leavers(app: Gateway) -> Any:
    """The application, told of a client that has left in ASGI's words where Ray uses an error of
    its own.
    """

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
    environment = variables.environment(config.threads) | {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }

    def actor(gpus: float = 0.0, more: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        return {
            "num_cpus": 0,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {**environment, **more}},
        }

    def stage(
        kind: type, name: str, gpus: float = 0.0, more: Mapping[str, str] = MappingProxyType({})
    ) -> Any:
        return serve.deployment(kind, name=name).options(
            ray_actor_options=actor(gpus, more),
            max_ongoing_requests=STAGE_QUEUE,
            health_check_period_s=_HEALTH_SECONDS,
            health_check_timeout_s=_HANGING_SECONDS,
            graceful_shutdown_wait_loop_s=0.1,
        )

    home = config.selector.root.parent
    shards = [
        stage(ShardReplica, f"shard-{number}").bind(
            shard_folder(home, number, config.shards), config.log_format
        )
        for number in range(config.shards)
    ]
    engine = serve.deployment(serve.ingress()(EngineReplica)).options(
        name="engine",
        ray_actor_options=actor(config.engine_gpus, _ENGINE),
        # The replica refuses by itself what is too much, in OpenAI's words; Ray only what would not
        # even fit in there.
        max_ongoing_requests=config.capacity.requests + STAGE_QUEUE,
        max_queued_requests=STAGE_QUEUE,
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=60,
        # A busy machine needs that long to end vLLM without leftovers.
        graceful_shutdown_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.1,
    )
    selector = stage(SelectorReplica, "selector", more=_SELECTOR).bind(
        config.selector, config.log_format, *shards
    )
    trainer = stage(TrainerReplica, "trainer", config.trainer_gpus).bind(
        config.trainer, config.log_format
    )
    return engine.bind(config, selector, trainer)


def application(told: dict[str, Any]) -> serve.Application:
    """The application of a Serve config: `import_path: serving.app:application`, and settings as
    its `args`.

    Raises:
        SettingsError, CorpusError: as `settings_from`, `Settings.config` and the checks.
    """
    settings = settings_from(told)
    check_settings(settings)
    config = settings.config()
    if not config.has_keys:
        raise SettingsError(
            "a cluster's server needs keys: set MAYFLY_API_KEYS where Ray is started, or `api-key-file` in the args"
        )
    check_tokenizers(config)
    return build(config)
