"""Planner: how many replicas of each stage a workload needs, how busy they are, and how long
requests take. Pure numbers.

The time of a request in a stage is linear in the number k of requests in its replica: fixed +
per_request * k seconds. A selector serves one request at a time, a trainer as many as fill its
step, an engine as many as it has adapters for. A stage gets as many replicas as keep it below the
allowed utilisation.

Waiting is that of an M/M/c queue in which the requests of a replica slow each other down: random
arrivals, one queue for all slots, in equilibrium (a birth-death chain; with per_request = 0 it is
Erlang's C formula). Real service times vary less than exponential ones, so the estimate errs on the
long side. Stragglers, failures and the network between machines are not modelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from serving.capacity.cost_model import CONCURRENCY, WEIGHT_BYTES, CostModel
from serving.errors import PlanError

# Replicas that share a queue in the model; with more of them waiting times do not change.
_MAX_POOL = 500
# Replicas of a stage beyond which a plan is refused.
_MAX_REPLICAS = 10_000_000
# Time of measuring a loss, as a share of a training step on the same tokens (docs/budgets.md).
_LOSS_STEPS = 1 / 3
# Bytes of a number of an embedding.
_EMBEDDING_BYTES = 4


@dataclass(frozen=True)
class Workload:
    """The requests to plan for.

    Attributes:
        rate: Requests per second.
        steps: Training steps of an adapted request.
        sequence_tokens: Tokens of a training sequence; each step trains on one.
        prompt_tokens, answer_tokens: Tokens of a request's prompt and answer.
        corpus_sequences: Sequences in the corpus.
        adapted: Share of requests that are adapted.
        utilisation: How busy a stage may be; the rest is a reserve for bursts.

    Raises:
        PlanError: a number out of range.
    """

    rate: float
    steps: int = 50
    sequence_tokens: int = 256
    prompt_tokens: int = 256
    answer_tokens: int = 128
    corpus_sequences: int = 10_000
    adapted: float = 1.0
    utilisation: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise PlanError(
                f"the rate is {self.rate} requests per second; it needs to be more than 0, such as "
                "0.5"
            )
        if not 0 <= self.adapted <= 1:
            raise PlanError(f"the adapted share is {self.adapted}; it needs to be between 0 and 1")
        if not 0 < self.utilisation < 1:
            raise PlanError(
                f"the utilisation is {self.utilisation}; it needs to be between 0 and 1, both "
                "excluded (at 1, waiting times are infinite)"
            )
        minima = {
            "steps": 0,
            "sequence_tokens": 2,
            "prompt_tokens": 1,
            "answer_tokens": 1,
            "corpus_sequences": 0,
        }
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise PlanError(
                    f"{name} is {getattr(self, name)}; it needs to be {minimum} or more"
                )

    def without_steps(self, shown: int, probe_tokens: int) -> Workload:
        """The workload where `auto` takes no step, since what is there already helps each prompt.
        At most it measures the loss of a prompt's end three times, once after text, and shows the
        text.

        Args:
            shown: Sequences of the text.
            probe_tokens: Largest length of a prompt's end.
        """
        text = shown * self.sequence_tokens
        measured = 3 * min(self.prompt_tokens, probe_tokens) + text
        steps = math.ceil(_LOSS_STEPS * measured / self.sequence_tokens)
        return replace(self, steps=min(self.steps, steps), prompt_tokens=self.prompt_tokens + text)


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage.

    Attributes:
        stage: "selector", "trainer" or "engine".
        replicas: Number of replicas; 0 if no request uses the stage.
        utilisation: Share of the replicas' capacity in use.
        seconds_alone: Seconds of a request on an idle server.
        seconds: Mean seconds of a request under the whole workload, waiting included.
        memory: Bytes of a replica by content; Python and its libraries come on top.
    """

    stage: str
    replicas: int
    utilisation: float
    seconds_alone: float
    seconds: float
    memory: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """What a workload needs.

    Attributes:
        stages: In the order in which a request uses them.
        bottleneck: Name of the stage with the most work.
        seconds_alone, seconds: As in `StagePlan`, of an adapted request; of any request if none is
            adapted.
        cores: Number of CPU cores.
        accelerators: Number of accelerators, one per replica of engine or trainer.
    """

    stages: tuple[StagePlan, ...]
    bottleneck: str
    seconds_alone: float
    seconds: float
    cores: int
    accelerators: int


@dataclass(frozen=True)
class _StageLoad:
    name: str
    rate: float
    fixed: float
    per_request: float
    slots: int
    memory: dict[str, int]

    def seconds(self, requests: float) -> float:
        """Seconds of a request in a replica with `requests` requests, itself included."""
        return self.fixed + self.per_request * requests

    @property
    def work(self) -> float:
        """Number of replicas that would be busy all the time."""
        return self.rate * self.seconds(self.slots) / self.slots


def plan_for(workload: Workload, cost_model: CostModel) -> Plan:
    """Plan for a workload on the model and machine of a cost model.

    Raises:
        PlanError: a stage would need more than 10 million replicas.
    """
    loads = _stage_loads(workload, cost_model)
    stages = tuple(_plan_stage(load, workload.utilisation) for load in loads)
    selector, *computing = (stage.replicas for stage in stages)
    return Plan(
        stages=stages,
        bottleneck=max(loads, key=lambda load: load.work).name,
        seconds_alone=sum(stage.seconds_alone for stage in stages),
        seconds=sum(stage.seconds for stage in stages),
        cores=cost_model.cores * (selector + (sum(computing) if cost_model.on_cpu else 0)),
        accelerators=0 if cost_model.on_cpu else sum(computing),
    )


def _stage_loads(workload: Workload, cost_model: CostModel) -> tuple[_StageLoad, ...]:
    adapted_rate = workload.rate * workload.adapted if workload.steps else 0.0
    sequence_tokens = workload.sequence_tokens
    context = workload.prompt_tokens + workload.answer_tokens
    # The prefill of one prompt delays the other answers of the replica, too.
    prefill = workload.prompt_tokens * cost_model.prefill_per_token
    parameters = cost_model.adapter_parameters
    return (
        _StageLoad(
            "selector",
            adapted_rate,
            fixed=0.0,
            per_request=cost_model.select,
            slots=1,
            memory={"corpus": _EMBEDDING_BYTES * cost_model.dimension * workload.corpus_sequences},
        ),
        _StageLoad(
            "trainer",
            adapted_rate,
            fixed=workload.steps * cost_model.step_fixed,
            per_request=workload.steps * cost_model.step_per_token * sequence_tokens,
            slots=cost_model.rows,
            memory={
                "weights": round(cost_model.parameters * cost_model.trainer_bytes),
                "adapters and moments": round((CONCURRENCY + 1) * parameters * 4 * WEIGHT_BYTES),
                "backward": round(
                    cost_model.rows
                    * (sequence_tokens * cost_model.activation_bytes + parameters * WEIGHT_BYTES)
                ),
            },
        ),
        _StageLoad(
            "engine",
            workload.rate,
            fixed=cost_model.answer_fixed + workload.answer_tokens * cost_model.decode_fixed,
            per_request=prefill
            + workload.answer_tokens * cost_model.decode_per_answer
            + cost_model.load * adapted_rate / workload.rate,
            slots=CONCURRENCY,
            memory={
                "weights": round(cost_model.parameters * cost_model.engine_bytes),
                "KV cache": round(CONCURRENCY * context * cost_model.cache_bytes),
                "adapters": round((CONCURRENCY + 1) * parameters * cost_model.engine_bytes),
            },
        ),
    )


def _plan_stage(load: _StageLoad, utilisation: float) -> StagePlan:
    if not load.work:
        return StagePlan(load.name, 0, 0.0, 0.0, 0.0, load.memory)
    if load.work > utilisation * _MAX_REPLICAS:
        raise PlanError(
            f"this needs more than {_MAX_REPLICAS:,} replicas of the {load.name}: plan for less"
        )
    replicas = math.ceil(load.work / utilisation)
    pool = min(replicas, _MAX_POOL)
    rate = load.rate * pool / replicas
    # Little's law: mean requests = rate * mean seconds.
    seconds = mean_requests(rate, load.fixed, load.per_request, pool, load.slots) / rate
    return StagePlan(
        load.name, replicas, load.work / replicas, load.seconds(1), seconds, load.memory
    )


def mean_requests(
    rate: float, fixed: float, per_request: float, replicas: int, slots: int
) -> float:
    """Mean number of requests in a stage, waiting ones included.

    Args:
        rate: Requests per second, below the capacity of the stage.
        fixed, per_request: A request with k requests in its replica takes fixed + per_request * k
            seconds.
        replicas: Number of replicas, which share a queue.
        slots: Slots of each replica.
    """
    count = replicas * slots
    # Unnormalised log-probabilities that k requests are present.
    logs = [0.0]
    for k in range(1, count + 1):
        logs.append(
            logs[-1] + math.log(rate) + math.log((fixed + per_request * max(1.0, k / replicas)) / k)
        )
    top = max(logs)
    chances = [math.exp(log - top) for log in logs]
    # Ratio of the probabilities of k + 1 and k requests once all slots are in use.
    ratio = rate * (fixed + per_request * slots) / count
    waiting = chances[-1] * ratio / (1 - ratio)
    mean = sum(k * chance for k, chance in enumerate(chances))
    mean += waiting * (count + 1 / (1 - ratio))
    return mean / (sum(chances) + waiting)
