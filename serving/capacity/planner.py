"""Plan: how many replicas of each stage a workload needs, how busy they are, how long requests
take. Pure numbers.

Each stage is a line: with k requests in a replica, each of them takes fixed + each * k seconds
there. The selector serves one at a time; a trainer as many as fill its step; an engine as many as
it has adapters for. A stage gets as many replicas as keep it no busier than a bound.

Waiting is that of M/M/c, where a replica's requests slow each other: random arrivals, one queue
before all places, in equilibrium (a birth-death chain; where `each` is 0 it is Erlang's C). Real
services vary less than exponential ones, so it errs on the long side. It knows no stragglers, no
failures, and no network between machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serving.capacity.cost_model import ADAPTER_NUMBER, AT_ONCE, CostModel
from serving.errors import PlanError

_POOL = 500  # replicas with a queue in common; of more the wait is the same
_MOST = 10_000_000  # replicas of a stage, beyond which no plan helps
_VECTOR = 4  # bytes of a number of an embedding


@dataclass(frozen=True)
class Workload:
    """What is asked of a Mayfly.

    Attributes:
        rate: requests a second.
        steps: of training, for each request that is adapted.
        sequence_tokens: of a sequence that is trained, which is a step.
        prompt_tokens, answer_tokens: of a request.
        corpus_sequences: that are chosen from.
        adapted: the share of requests that are adapted.
        utilisation: how busy a stage may be; what is left is for moments when more come.

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
                f"{self.rate} requests a second: the rate needs to be more than 0, such as 0.5"
            )
        if not 0 <= self.adapted <= 1:
            raise PlanError(f"the adapted share is {self.adapted}; it needs to be between 0 and 1")
        if not 0 < self.utilisation < 1:
            raise PlanError(
                f"the utilisation is {self.utilisation}; it needs to be between 0 and 1, where waits are endless"
            )
        least = {
            "steps": 0,
            "sequence_tokens": 2,
            "prompt_tokens": 1,
            "answer_tokens": 1,
            "corpus_sequences": 0,
        }
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise PlanError(
                    f"{name} is {getattr(self, name)}; it needs to be {minimum} or more"
                )


@dataclass(frozen=True)
class Need:
    """What a stage needs.

    Attributes:
        stage: "selector", "trainer" or "engine".
        replicas: none where no request comes to it.
        utilisation: the share of what they can do that is asked of them.
        seconds_alone: of a request with nobody else there.
        seconds: of a request on average, under the whole workload, waiting included.
        memory: bytes of a replica by what holds them; Python and its libraries come on top.
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
        needs: by stage, in a request's order.
        bottleneck: the stage with the most work.
        seconds_alone, seconds: as in `Need`, of an adapted request; of any, where none is adapted.
        cores: of CPUs.
        accelerators: each of one replica of engine or trainer.
    """

    needs: tuple[Need, ...]
    bottleneck: str
    seconds_alone: float
    seconds: float
    cores: int
    accelerators: int


@dataclass(frozen=True)
class _Stage:
    name: str
    rate: float
    fixed: float
    each: float
    places: int
    memory: dict[str, int]

    def seconds(self, company: float) -> float:
        """Of a request in a replica with so many, itself included."""
        return self.fixed + self.each * company

    @property
    def work(self) -> float:
        """Replicas that would be busy all the time."""
        return self.rate * self.seconds(self.places) / self.places


def plan_for(workload: Workload, pieces: CostModel) -> Plan:
    """What a workload needs of such pieces.

    Raises:
        PlanError: more than any plan is for.
    """
    stages = _stages(workload, pieces)
    needs = tuple(_need(stage, workload.utilisation) for stage in stages)
    selector, *computing = (need.replicas for need in needs)
    return Plan(
        needs=needs,
        bottleneck=max(stages, key=lambda stage: stage.work).name,
        seconds_alone=sum(need.seconds_alone for need in needs),
        seconds=sum(need.seconds for need in needs),
        cores=pieces.cores * (selector + (sum(computing) if pieces.on_cpu else 0)),
        accelerators=0 if pieces.on_cpu else sum(computing),
    )


def _stages(workload: Workload, pieces: CostModel) -> tuple[_Stage, ...]:
    adapting = workload.rate * workload.adapted if workload.steps else 0.0
    row = workload.sequence_tokens
    context = workload.prompt_tokens + workload.answer_tokens
    # Others' prompts hold an answer up, as its own does.
    each_prompt = workload.prompt_tokens * pieces.prefill_token
    numbers = pieces.adapter_numbers
    return (
        _Stage(
            "selector",
            adapting,
            fixed=0.0,
            each=pieces.select,
            places=1,
            memory={"corpus": _VECTOR * pieces.dimension * workload.corpus_sequences},
        ),
        _Stage(
            "trainer",
            adapting,
            fixed=workload.steps * pieces.step_fixed,
            each=workload.steps * pieces.step_token * row,
            places=pieces.rows,
            memory={
                "weights": round(pieces.parameters * pieces.trainer_bytes),
                "adapters and moments": round((AT_ONCE + 1) * numbers * 4 * ADAPTER_NUMBER),
                "backward": round(
                    pieces.rows * (row * pieces.kept_bytes + numbers * ADAPTER_NUMBER)
                ),
            },
        ),
        _Stage(
            "engine",
            workload.rate,
            fixed=pieces.answer_fixed + workload.answer_tokens * pieces.decode_fixed,
            each=each_prompt
            + workload.answer_tokens * pieces.decode_each
            + pieces.load * adapting / workload.rate,
            places=AT_ONCE,
            memory={
                "weights": round(pieces.parameters * pieces.engine_bytes),
                "KV cache": round(AT_ONCE * context * pieces.cache_bytes),
                "adapters": round((AT_ONCE + 1) * numbers * pieces.engine_bytes),
            },
        ),
    )


def _need(stage: _Stage, bound: float) -> Need:
    if not stage.work:
        return Need(stage.name, 0, 0.0, 0.0, 0.0, stage.memory)
    if stage.work > bound * _MOST:
        raise PlanError(
            f"this needs more than {_MOST:,} replicas of the {stage.name}: plan for less"
        )
    replicas = math.ceil(stage.work / bound)
    pool = min(replicas, _POOL)
    rate = stage.rate * pool / replicas
    seconds = present(rate, stage.fixed, stage.each, pool, stage.places) / rate
    return Need(
        stage.name, replicas, stage.work / replicas, stage.seconds(1), seconds, stage.memory
    )


def present(rate: float, fixed: float, each: float, replicas: int, places: int) -> float:
    """How many requests are at a stage on average, waiting ones included.

    Args:
        rate: requests a second, less than what the stage can do.
        fixed, each: seconds of a request where k are in its replica: fixed + each * k.
        replicas: that share a queue.
        places: in each.
    """
    count = replicas * places
    logs = [0.0]  # of the probability that k are there, but for a factor
    for k in range(1, count + 1):
        logs.append(
            logs[-1] + math.log(rate) + math.log((fixed + each * max(1.0, k / replicas)) / k)
        )
    top = max(logs)
    chances = [math.exp(log - top) for log in logs]
    # Of one more than k, as soon as all places are taken.
    more = rate * (fixed + each * places) / count
    waiting = chances[-1] * more / (1 - more)
    mean = sum(k * chance for k, chance in enumerate(chances)) + waiting * (count + 1 / (1 - more))
    return mean / (sum(chances) + waiting)
