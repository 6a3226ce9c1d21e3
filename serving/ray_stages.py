"""The selector, the trainer and the shards as Ray Serve deployments, and their remote faces.

A replica is a worker of `serving.workers` in a process of its own. A remote face has the
same methods, and is called from another process through a deployment handle.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import context as ray_context
from ray.serve._private import replica as ray_replica
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from adapters.config import TrainerConfig
from adapters.model.row import Row
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from selection.access import Principal
from selection.corpus.trained.manifest import CorpusStart, CorpusWeights, LearntCorpus, StartFound
from selection.library.library import Library
from selection.request import SelectionRequest
from selection.selector import Selection, SelectorConfig
from serving.environment import core_share, hide_packages
from serving.errors import StageFailedError
from serving.observability.log_relay import relay_errors
from serving.observability.logs import LogFormat, set_up_logs
from serving.observability.startup_progress import report_startup, reported_startup
from serving.workers.corpora import CorporaWorker, ShardWorker
from serving.workers.stages import TrainerWorker

P = ParamSpec("P")
Result = TypeVar("Result")

# What Ray raises where the process of a deployment has ended.
_GONE = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, AioRpcError)
# Bytes of a request up to which it is sent by gRPC, which refuses messages of more than 4 MiB.
_MAX_MESSAGE = 1 << 20
# Seconds that a selector waits for a shard.
_SHARD_SECONDS = 10.0


def cancel_copied_calls() -> None:
    """Let Ray cancel a copy of the calls of a request whose client has left.

    A call that ends meanwhile is removed in another thread, and Ray's loop over the original would
    fail.
    """

    def copied(request_id: str) -> dict[str, Any]:
        return dict(ray_context._get_in_flight_requests(request_id))

    ray_replica._get_in_flight_requests = copied


class SelectorReplica(CorporaWorker):
    """The selector and the library, over shards that are deployments of their own."""

    def __init__(
        self, config: SelectorConfig, log_format: LogFormat, *shards: DeploymentHandle
    ) -> None:
        set_up_replica_logs(log_format)
        report_startup("selector", "loading the embedder")
        with reported_startup("selector"):
            # A handle of the method is made here: threads that made it on demand could make two.
            calls = [partial(_call_shard, shard.options(method_name="call")) for shard in shards]
            super().__init__(config, calls)


class ShardReplica(ShardWorker):
    """A shard."""

    def __init__(self, root: Path, log_format: LogFormat) -> None:
        set_up_replica_logs(log_format)
        super().__init__(root)


class TrainerReplica(TrainerWorker):
    """The trainer."""

    def __init__(self, config: TrainerConfig, log_format: LogFormat) -> None:
        hide_packages()
        set_up_replica_logs(log_format)
        # A step of training takes long, so one beside another program costs much.
        super().__init__(config, cores=core_share(load=Path("/proc/loadavg")))


class _Remote:
    """The remote face of a deployment.

    Args:
        handle: handle of the deployment.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def _result(self, response: Any, cancel: Callable[[], object] | None = None) -> Any:
        """The result of a call; its error is the one that was raised there.

        Raises:
            StageFailedError: the process of the deployment has ended.
        """
        try:
            return await response
        except asyncio.CancelledError:
            (cancel or response.cancel)()
            raise
        # The text of Ray's own error is a stack trace.
        except RayTaskError as problem:
            raise problem.cause from None
        except _GONE:
            raise _gone(self._handle) from None


class RemoteSelector(_Remote):
    """The remote face of `SelectorReplica`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        super().__init__(handle)
        # An `instant` answer waits for little else, and this takes half as long as an actor's call.
        self._by_grpc = handle.options(_by_reference=False)

    async def select(self, request: SelectionRequest, seconds: float | None = None) -> Selection:
        """As `CorporaWorker.select`."""
        selection: Selection = await self._result(self._handle.select.remote(request, seconds))
        return selection

    async def start(self, request: SelectionRequest, seconds: float | None = None) -> StartFound:
        """As `CorporaWorker.start`."""
        # A start is looked up without them.
        request = replace(request, candidates=())
        is_short = len(pickle.dumps(request)) <= _MAX_MESSAGE
        handle = self._by_grpc if is_short else self._handle
        found: StartFound = await self._result(handle.start.remote(request, seconds))
        return found

    async def start_weights(self, corpus: str, start: CorpusStart) -> CorpusWeights:
        """As `CorporaWorker.start_weights`."""
        weights: CorpusWeights
        weights = await self._result(self._handle.start_weights.remote(corpus, start))
        return weights

    async def learnt_corpora(self, principal: Principal) -> tuple[LearntCorpus, ...]:
        """As `CorporaWorker.learnt_corpora`."""
        learnt: tuple[LearntCorpus, ...]
        learnt = await self._result(self._handle.learnt_corpora.remote(principal))
        return learnt

    async def sees(self, corpus: str, principal: Principal) -> bool:
        """As `CorporaWorker.sees`."""
        sees: bool = await self._result(self._handle.sees.remote(corpus, principal))
        return sees

    async def call(
        self,
        method: Callable[Concatenate[Library, P], Result],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """As `CorporaWorker.call`."""
        result: Result = await self._result(self._handle.call.remote(method, *args, **kwargs))
        return result

    async def ready(self, corpus: str | None) -> None:
        """As `CorporaWorker.ready`."""
        await self._result(self._handle.ready.remote(corpus))

    async def warm_up(self, corpus: str | None) -> None:
        """As `CorporaWorker.warm_up`."""
        await self._result(self._handle.warm_up.remote(corpus))


class RemoteTrainer(_Remote):
    """The remote face of `TrainerReplica`."""

    async def train(
        self,
        request: TrainingRequest,
        on_step: Callable[[TrainingProgress], None] | None = None,
    ) -> TrainingResult:
        """As `TrainerWorker.train`."""
        result: TrainingResult
        if on_step is None:
            result = await self._result(self._handle.train.remote(request))
        else:
            stream = self._handle.options(stream=True).stream.remote(request)
            result = await self._result(_last(stream, on_step), stream.cancel)
        return result

    async def loss(self, rows: Sequence[Row], weights: bytes | None = None) -> float:
        """As `TrainerWorker.loss`."""
        loss: float = await self._result(self._handle.loss.remote(rows, weights))
        return loss

    async def compare(
        self, rows: Sequence[Row], adapters: Sequence[bytes | None]
    ) -> tuple[tuple[float, ...], ...]:
        """As `TrainerWorker.compare`."""
        losses: tuple[tuple[float, ...], ...]
        losses = await self._result(self._handle.compare.remote(rows, adapters))
        return losses

    async def give_way(self, seconds: float) -> None:
        """As `TrainerWorker.give_way`, of all trainers: any of them may be training a corpus."""
        answers = self._handle.broadcast("give_way", seconds).results_async(return_exceptions=True)
        await self._result(answers, answers.close)

    async def count(self) -> int:
        """The number of trainers that answer."""
        answers = self._handle.broadcast("count").results_async(return_exceptions=True)
        counts = await self._result(answers, answers.close)
        return sum(count for count in counts if isinstance(count, int))

    async def learning_rate(self) -> float:
        """As `TrainerWorker.learning_rate`."""
        rate: float = await self._result(self._handle.learning_rate.remote())
        return rate

    async def corpus_rates(self) -> tuple[float, float]:
        """As `TrainerWorker.corpus_rates`."""
        rates: tuple[float, float] = await self._result(self._handle.corpus_rates.remote())
        return rates

    async def ready(self) -> None:
        """As `TrainerWorker.ready`."""
        await self._result(self._handle.ready.remote())

    async def warm_up(self) -> None:
        """As `TrainerWorker.warm_up`."""
        await self._result(self._handle.warm_up.remote())


def set_up_replica_logs(form: LogFormat) -> None:
    """Set up the logs of a replica's process, and relay its errors to the command's terminal."""
    set_up_logs(form)
    relay_errors(logging.getLogger())


def _gone(handle: DeploymentHandle) -> StageFailedError:
    return StageFailedError(f"the {handle.deployment_name} has ended; a new one is started")


async def _last(
    stream: AsyncIterator[TrainingProgress | TrainingResult],
    on_step: Callable[[TrainingProgress], None],
) -> TrainingResult:
    async for each in stream:
        if isinstance(each, TrainingResult):
            return each
        on_step(each)
    raise AssertionError("the stream of a training ended without a result")


def _call_shard(shard: DeploymentHandle, method: Callable[..., Any], /, *args: Any) -> _ShardResult:
    return _ShardResult(shard, shard.remote(method, *args))


class _ShardResult:
    """The result of a shard, as `selection.corpus.shards.ShardAnswer`."""

    def __init__(self, shard: DeploymentHandle, response: Any) -> None:
        self._shard, self._response = shard, response

    def result(self) -> Any:
        """Wait for it in a thread, for a limited time.

        Raises:
            StageFailedError: the process of the shard has ended.
            TimeoutError: the shard has not answered.
        """
        try:
            return self._response.result(timeout_s=_SHARD_SECONDS)
        except RayTaskError as problem:
            raise problem.cause from None
        except _GONE:
            raise _gone(self._shard) from None
        except TimeoutError:
            self._response.cancel()
            raise
