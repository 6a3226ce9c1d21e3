"""Pieces: what the parts of a Mayfly cost, as measured with one model on one machine; kept as JSON,
scaled to others.

A training step and an engine's step are lines: a part that stays, and a part for each token or
sequence in it. Of these, arithmetic grows with parameters and shrinks with the rate of matrix
products; reading the weights grows with their bytes and shrinks with bandwidth; the rest (Python,
HTTP, launching) stays. Nothing gets faster than the machine's own two rates. What an adapter, and a
token of a cache or of a backward pass, holds grows with parameters to the power 2/3, since models
grow in depth and width alike.

Pure numbers; who measures them is `serving.capacity.profiler`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from serving.errors import PlanError

# Answers in an engine's step, and adapters, that `EngineConfig` and `TrainerConfig` have room for.
AT_ONCE = 8
# Operations for each parameter and token: the base is frozen, so its own gradients cost none.
TRAINING, FORWARD = 4, 2
# Bytes; a trainer keeps four for each: the adapter, Adam's moments, the best adapter so far.
ADAPTER_NUMBER = 4
_WIDTH = 2 / 3
PASSES = 3  # over an adapter that is loaded: written, read, put into its slot
_FORMAT, _VERSION = "mayfly_pieces", 1
_MAY_BE_ZERO = {"step_fixed", "decode_fixed", "answer_fixed", "load", "dimension"}
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "tuple[str, ...]": tuple}


@dataclass(frozen=True)
class CostModel:
    """What was measured. Times are seconds.

    Attributes:
        model: its name.
        parameters: of the model, all of them.
        processor: "cpu", "cuda", or "accelerator" where it was scaled to one.
        cores: that each replica computes on, where that is a CPU.
        trainer_flops, engine_flops: operations a second of the machine's matrix products, in the
            precision of each.
        bandwidth: bytes a second, of matrix-vector products.
        rows: sequences in a trainer's full step.
        step_fixed: of a training step, whatever is in it.
        step_token: of such a step for each token in it.
        decode_fixed: of an engine's step, which gives each answer a token, whatever is in it.
        decode_each: of such a step for each answer in it.
        prefill_token: for each token of a prompt.
        answer_fixed: of an answer beside its tokens.
        load: to load an adapter into the engine.
        select: to embed a prompt and to choose for it.
        engine_bytes, trainer_bytes: of a parameter in each.
        adapter_numbers: in an adapter of that rank.
        rank: of the LoRA.
        cache_bytes: of a token in the engine's KV cache.
        kept_bytes: of a token that a training step keeps for its backward.
        dimension: of the embeddings.
        estimated: what was not measured, in words.

    Raises:
        PlanError: a number that is negative, zero where it cannot be, or not finite.
    """

    model: str
    parameters: float
    processor: str
    cores: int
    trainer_flops: float
    engine_flops: float
    bandwidth: float
    rows: int
    step_fixed: float
    step_token: float
    decode_fixed: float
    decode_each: float
    prefill_token: float
    answer_fixed: float
    load: float
    select: float
    engine_bytes: int
    trainer_bytes: int
    adapter_numbers: float
    rank: int
    cache_bytes: float
    kept_bytes: float
    dimension: int
    estimated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in _MAY_BE_ZERO else math.ulp(0.0)
            if isinstance(value, (int, float)) and not least <= value < math.inf:
                raise PlanError(
                    f"{name} is {value}; it needs to be {'0 or more' if least == 0 else 'more than 0'}"
                )

    @property
    def reached(self) -> float:
        """The share of the machine's matrix products that training reaches, with a step's fixed
        part left out.
        """
        return TRAINING * self.parameters / (self.step_token * self.trainer_flops)

    @property
    def on_cpu(self) -> bool:
        """Whether engine and trainer compute on a CPU."""
        return self.processor == "cpu"


def line(alone: float, together: float, count: int) -> tuple[float, float]:
    """What stays and what is for each, from the time of one alone and of `count` together; exact
    for `count`.
    """
    if count == 1:
        return 0.0, alone
    each = min(max((together - alone) / (count - 1), 0.0), together / count)
    return max(together - count * each, 0.0), each


@dataclass(frozen=True)
class Target:
    """What pieces are scaled to; None is as measured.

    Attributes:
        parameters: of another model.
        flops: operations a second of an accelerator's matrix products in bfloat16; on it there is
            bfloat16 only.
        bandwidth: bytes a second of its memory.

    Raises:
        PlanError: a number that is not positive and finite, or one of the accelerator's two alone.
    """

    parameters: float | None = None
    flops: float | None = None
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 < value < math.inf:
                raise PlanError(f"{name} is {value}; it needs to be more than 0, such as 1e9")
        if (self.flops is None) != (self.bandwidth is None):
            raise PlanError(
                "an accelerator has two rates: give both --flops and --bandwidth, or neither"
            )


def scaled(pieces: CostModel, target: Target, rank: int | None = None) -> CostModel:
    """The pieces of a model of another size, on an accelerator, or both.

    Args:
        pieces: as measured.
        target: what is planned for.
        rank: of its adapters; None for the same.
    """
    size, rank = target.parameters or pieces.parameters, rank or pieces.rank
    if (size, rank, target.flops) == (pieces.parameters, pieces.rank, None):
        return pieces
    trainer_flops, engine_flops = (
        target.flops or pieces.trainer_flops,
        target.flops or pieces.engine_flops,
    )
    bandwidth, times = target.bandwidth or pieces.bandwidth, size / pieces.parameters
    width = times**_WIDTH
    # Bfloat16.
    engine_bytes, trainer_bytes = (
        (2, 2) if target.flops else (pieces.engine_bytes, pieces.trainer_bytes)
    )
    step = pieces.step_token * times * pieces.trainer_flops / trainer_flops
    prefill = pieces.prefill_token * times * pieces.engine_flops / engine_flops
    prefill = max(prefill, FORWARD * size / engine_flops)
    weights = pieces.parameters * pieces.engine_bytes / pieces.bandwidth
    numbers = pieces.adapter_numbers * width * rank / pieces.rank
    more = max(numbers - pieces.adapter_numbers, 0.0)
    return replace(
        pieces,
        parameters=size,
        processor="accelerator" if target.flops else pieces.processor,
        trainer_flops=trainer_flops,
        engine_flops=engine_flops,
        bandwidth=bandwidth,
        step_token=max(step, TRAINING * size / trainer_flops),
        decode_fixed=max(pieces.decode_fixed - weights, 0.0) + size * engine_bytes / bandwidth,
        decode_each=max(pieces.decode_each - pieces.prefill_token, 0.0) + prefill,
        prefill_token=prefill,
        # It goes through the host's memory.
        load=pieces.load + PASSES * ADAPTER_NUMBER * more / pieces.bandwidth,
        engine_bytes=engine_bytes,
        trainer_bytes=trainer_bytes,
        adapter_numbers=numbers,
        rank=rank,
        cache_bytes=pieces.cache_bytes * width * engine_bytes / pieces.engine_bytes,
        kept_bytes=pieces.kept_bytes * width * trainer_bytes / pieces.trainer_bytes,
    )


def write_pieces(pieces: CostModel, file: Path) -> None:
    """Keep them as JSON.

    Raises:
        PlanError: the file cannot be written.
    """
    try:
        file.write_text(json.dumps({_FORMAT: _VERSION, **asdict(pieces)}, indent=1) + "\n")
    except OSError as problem:
        raise PlanError(f"cannot write {file}: {problem.strerror}") from problem


def read_pieces(file: Path) -> CostModel:
    """What `write_pieces` has written.

    Raises:
        PlanError: the file cannot be read, or is none of these.
    """
    try:
        told = json.loads(file.read_text())
    except OSError as problem:
        raise PlanError(f"cannot read {file}: {problem.strerror}") from problem
    except ValueError:
        told = None
    if not isinstance(told, dict) or told.pop(_FORMAT, None) != _VERSION:
        raise PlanError(f"{file} holds no measured pieces: make it with `mayfly plan --save FILE`")
    told = {
        name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
    }
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(CostModel)}
    wrong = [
        name
        for name in kinds
        if isinstance(told.get(name), bool) or not isinstance(told.get(name), kinds[name])
    ]
    wrong += sorted(set(told) - set(kinds))
    if wrong:
        raise PlanError(
            f"{file} is damaged at {', '.join(wrong)}: make it anew with `mayfly plan --save FILE`"
        )
    try:
        return CostModel(**told)
    except ValueError as problem:
        raise PlanError(
            f"{file} is damaged: {problem}; make it anew with `mayfly plan --save FILE`"
        ) from problem
