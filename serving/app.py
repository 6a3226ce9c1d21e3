"""The Ray Serve application: the engine as ingress, the selector and the trainer behind it.

`build(config)` makes it for `serving.local.server`, `application` for `serve run` and clusters. The
deployments are thin: what they wrap works without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve.handle import DeploymentHandle

from selection.corpus.shards import shard_folder
from selection.location import home_of
from serving import environment as variables
from serving.config import Config
from serving.errors import SettingsError
from serving.http import hardening
from serving.observability.startup_progress import report_startup, reported_startup
from serving.observability.tracing import start_tracing, stop_tracing
from serving.processes import Call
from serving.ray_stages import (
    RemoteSelector,
    RemoteTrainer,
    SelectorReplica,
    ShardReplica,
    TrainerReplica,
    cancel_copied_calls,
    set_up_replica_logs,
)
from serving.settings.checks import check_settings, check_tokenizers, check_vllm_arguments
from serving.settings.sources import settings_from
from serving.workers.stages import MAX_CALLS

if TYPE_CHECKING:
    from serving.engine.engine import Engine
    from serving.http.gateway import Gateway

log = logging.getLogger(__name__)

# Seconds that a stage may take for a health check; after three late ones it is replaced.
_HEALTH_TIMEOUT = 10.0
# Seconds that warming up one stage may take; the first request pays for the rest.
_WARM_UP_SECONDS = 60.0
# Seconds between Ray Serve's health checks, after which a replica that has died is replaced.
_HEALTH_PERIOD = 1.0
# Variables of every node's environment.
NODE = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": hardening.IMPORT_PATH,
    # On a busy machine the proxy needs more than the default of five seconds, and would be killed.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Memory that the object store has not allocated beforehand may be missing later, which would
    # kill the raylet.
    "RAY_preallocate_plasma_memory": "1",
}
_ENGINE = variables.ENDS_WITH_PARENT | {
    # Otherwise every token crosses from one thread to another.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"
}
# The selector waits for shards in threads.
_SELECTOR = {
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


class EngineReplica:
    """The HTTP ingress: vLLM's application and the adaptation pipeline run in this replica."""

    def __init__(
        self, config: Config, selector: DeploymentHandle, trainer: DeploymentHandle
    ) -> None:
        self._config = config
        self._selector, self._trainer = RemoteSelector(selector), RemoteTrainer(trainer)
        self._engine: Engine | None = None
        self._gateway: Gateway | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        report_startup("engine", "importing vLLM")
        with reported_startup("engine"):
            variables.hide_packages()
            # Imported here: only this replica pays for vLLM.
            from serving.engine.engine import Engine
            from serving.http.gateway import Gateway

            set_up_replica_logs(self._config.log_format)
            start_tracing()
            cancel_copied_calls()
            # With it Mayfly's own gauges would be missing from /metrics.
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
            self._engine = await Engine.start(self._config.engine)
            await self._warm_up()
        gateway = Gateway(self._engine, self._selector, self._trainer, self._config)
        self._gateway = gateway
        return _with_disconnects(gateway)

    async def _warm_up(self) -> None:
        """Warm up the selector and the trainer, now that the engine has loaded.

        A failure here is only logged: the first request that meets it reports it, or `/ready` does.
        """
        report_startup("engine", "warming up the selector and the trainer")
        for warming in (self._selector.warm_up(self._config.corpus), self._trainer.warm_up()):
            try:
                await asyncio.wait_for(warming, _WARM_UP_SECONDS)
            except Exception as problem:
                log.warning("could not warm up: %s", problem)

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this raises."""
        if self._engine is not None:
            # A hanging engine never answers; Ray Serve gives it a minute, three times.
            await self._engine.check_health()

    async def __del__(self) -> None:
        if self._gateway is not None:
            await self._gateway.end()
        if self._engine is not None:
            self._engine.stop()
        stop_tracing()


def _with_disconnects(app: Gateway) -> Any:
    """The application with ASGI's disconnect message where Ray raises an error of its own."""

    async def wrapped(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        async def received() -> Any:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await app(scope, received, send)

    return wrapped


def build(config: Config) -> serve.Application:
    """The application of a configuration."""
    environment = variables.environment(config.threads) | {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
    }
    home = home_of(config.selector.root)
    if config.cores > config.threads:
        share = f"{config.threads}:{config.cores}:{home / 'cores.lock'}"
        environment[variables.CORE_SHARE] = share

    def actor_options(
        gpus: float = 0.0, more: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, Any]:
        return {
            "num_cpus": 0,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": {**environment, **more}},
        }

    def stage(
        kind: type, name: str, gpus: float = 0.0, more: Mapping[str, str] = MappingProxyType({})
    ) -> Any:
        return serve.deployment(kind, name=name).options(
            ray_actor_options=actor_options(gpus, more),
            max_ongoing_requests=MAX_CALLS,
            health_check_period_s=_HEALTH_PERIOD,
            health_check_timeout_s=_HEALTH_TIMEOUT,
            graceful_shutdown_wait_loop_s=0.1,
        )

    shards = [
        stage(ShardReplica, f"shard-{number}").bind(
            shard_folder(home, number, config.shards), config.log_format
        )
        for number in range(config.shards)
    ]
    engine = serve.deployment(serve.ingress()(EngineReplica)).options(
        name="engine",
        ray_actor_options=actor_options(config.engine_gpus, _ENGINE),
        # The replica refuses excess requests itself, with OpenAI's error; Ray refuses only those
        # that would not fit into its queue either.
        max_ongoing_requests=config.capacity.requests + MAX_CALLS,
        max_queued_requests=MAX_CALLS,
        health_check_period_s=_HEALTH_PERIOD,
        health_check_timeout_s=60,
        # A busy machine needs this time to end vLLM without leaving processes behind.
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


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config with `import_path: serving.app:application`, and settings
    as its `args`.

    Raises:
        SettingsError, CorpusError, StartError: as `settings_from`, `Settings.config` and the
            checks; or there is no API key.
    """
    settings = settings_from(args)
    check_settings(settings)
    config = settings.config()
    if not config.has_keys:
        raise SettingsError(
            "a cluster's server needs keys: set MAYFLY_API_KEYS where Ray is started, or "
            "`api-key-file` in the args, or make one in the database of the corpora with "
            "`mayfly key new NAME`"
        )
    check_tokenizers(config)
    with Call(check_vllm_arguments, config.engine) as call:
        call.result()
    return build(config)
