"""CostModel: the costs of Mayfly's stages with one model on one machine, saved as JSON, and scaled
to other models and machines.

The time of a training step or an engine step is linear: a fixed part, and a part per token or
sequence. Arithmetic grows with parameters and shrinks with the rate of matrix products; reading the
weights grows with their bytes and shrinks with memory bandwidth; the rest (Python, HTTP, kernel
launches) is constant. No scaled time is below what the machine's two rates allow. The parameters of
an adapter, and the bytes of a token in the KV cache or in a backward pass, grow with parameters to
the power 2/3, since models grow in depth and width alike.

Pure numbers; `serving.capacity.profiler` measures them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from serving.errors import PlanError

# The default number of adapters in `EngineConfig` and `TrainerConfig`, and so of requests that an
# engine step or a training step serves.
CONCURRENCY = 8
# Operations per parameter and token; the base model is frozen, so it needs no weight gradients.
TRAINING_FLOPS, FORWARD_FLOPS = 4, 2
# Bytes of an adapter's weight. A trainer stores four numbers for each: the weight, two Adam
# moments, and the snapshot of the best weights.
WEIGHT_BYTES = 4
# Exponent of the growth of adapters, caches and activations with a model's parameters.
_WIDTH_EXPONENT = 2 / 3
# Passes over an adapter's bytes when it is loaded: it is written, read, and copied into its slot.
LOAD_PASSES = 3
_FORMAT, _VERSION = "mayfly_cost_model", 1
_MAY_BE_ZERO = {"step_fixed", "decode_fixed", "answer_fixed", "load", "dimension"}
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "tuple[str, ...]": tuple}


@dataclass(frozen=True)
class CostModel:
    """Measured costs. Times are in seconds.

    Attributes:
        model: Name of the model.
        parameters: Number of parameters of the model.
        processor: "cpu" or "cuda"; "accelerator" if the costs were scaled to one.
        cores: CPU cores of each replica that computes on a CPU.
        trainer_flops, engine_flops: Operations per second of matrix products, in the precision of
            the trainer and of the engine.
        bandwidth: Bytes per second of matrix-vector products.
        rows: Sequences in a full training step.
        step_fixed: Time of a training step without its tokens.
        step_per_token: Time of a training step per token.
        decode_fixed: Time of an engine step, which adds a token to each answer, without the
            answers.
        decode_per_answer: Time of an engine step per answer.
        prefill_per_token: Time per token of a prompt.
        answer_fixed: Time of an answer without its tokens.
        load: Time to load an adapter into the engine.
        select: Time to embed a prompt and select data for it.
        engine_bytes, trainer_bytes: Bytes of a parameter in the engine and in the trainer.
        adapter_parameters: Number of parameters of an adapter.
        rank: LoRA rank.
        cache_bytes: Bytes of a token in the engine's KV cache.
        activation_bytes: Bytes of a token that a training step saves for backward.
        dimension: Dimension of the embeddings.
        estimated: Names of the costs that were estimated, not measured.

    Raises:
        PlanError: a number that is negative, not finite, or zero where it must be positive.
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
    step_per_token: float
    decode_fixed: float
    decode_per_answer: float
    prefill_per_token: float
    answer_fixed: float
    load: float
    select: float
    engine_bytes: int
    trainer_bytes: int
    adapter_parameters: float
    rank: int
    cache_bytes: float
    activation_bytes: float
    dimension: int
    estimated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            minimum = 0 if name in _MAY_BE_ZERO else math.ulp(0.0)
            if isinstance(value, (int, float)) and not minimum <= value < math.inf:
                needed = "0 or more" if minimum == 0 else "more than 0"
                raise PlanError(f"{name} is {value}; it needs to be {needed}")

    @property
    def training_efficiency(self) -> float:
        """Training's share of the machine's rate of matrix products, without the fixed part."""
        return TRAINING_FLOPS * self.parameters / (self.step_per_token * self.trainer_flops)

    @property
    def on_cpu(self) -> bool:
        """Whether engine and trainer compute on a CPU."""
        return self.processor == "cpu"


def fit_line(alone: float, together: float, count: int) -> tuple[float, float]:
    """Fit time = fixed + per_item * items, exact for `count` items.

    Args:
        alone: Time of one item.
        together: Time of `count` items together.
        count: Number of items.

    Returns:
        The fixed time and the time per item, neither of them negative.
    """
    if count == 1:
        return 0.0, alone
    per_item = min(max((together - alone) / (count - 1), 0.0), together / count)
    return max(together - count * per_item, 0.0), per_item


@dataclass(frozen=True)
class Target:
    """The model and machine that costs are scaled to; None means as measured.

    Attributes:
        parameters: Number of parameters of the model.
        flops: Operations per second of an accelerator's matrix products in bfloat16, the only
            precision that is used on it.
        bandwidth: Bytes per second of the accelerator's memory.

    Raises:
        PlanError: a number that is not positive and finite, or only one of the accelerator's two.
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


def scaled(cost_model: CostModel, target: Target, rank: int | None = None) -> CostModel:
    """The costs of a model of another size, on an accelerator, or both.

    Args:
        cost_model: The measured costs.
        target: The model and machine to scale to.
        rank: LoRA rank there; None for the measured one.
    """
    size, rank = target.parameters or cost_model.parameters, rank or cost_model.rank
    if (size, rank, target.flops) == (cost_model.parameters, cost_model.rank, None):
        return cost_model
    trainer_flops, engine_flops = (
        target.flops or cost_model.trainer_flops,
        target.flops or cost_model.engine_flops,
    )
    bandwidth, times = target.bandwidth or cost_model.bandwidth, size / cost_model.parameters
    width = times**_WIDTH_EXPONENT
    # An accelerator computes in bfloat16.
    engine_bytes, trainer_bytes = (
        (2, 2) if target.flops else (cost_model.engine_bytes, cost_model.trainer_bytes)
    )
    step = cost_model.step_per_token * times * cost_model.trainer_flops / trainer_flops
    prefill = cost_model.prefill_per_token * times * cost_model.engine_flops / engine_flops
    prefill = max(prefill, FORWARD_FLOPS * size / engine_flops)
    read_weights = cost_model.parameters * cost_model.engine_bytes / cost_model.bandwidth
    adapter_parameters = cost_model.adapter_parameters * width * rank / cost_model.rank
    added = max(adapter_parameters - cost_model.adapter_parameters, 0.0)
    return replace(
        cost_model,
        parameters=size,
        processor="accelerator" if target.flops else cost_model.processor,
        trainer_flops=trainer_flops,
        engine_flops=engine_flops,
        bandwidth=bandwidth,
        step_per_token=max(step, TRAINING_FLOPS * size / trainer_flops),
        decode_fixed=max(cost_model.decode_fixed - read_weights, 0.0)
        + size * engine_bytes / bandwidth,
        decode_per_answer=max(cost_model.decode_per_answer - cost_model.prefill_per_token, 0.0)
        + prefill,
        prefill_per_token=prefill,
        # Adapters are loaded through the host's memory.
        load=cost_model.load + LOAD_PASSES * WEIGHT_BYTES * added / cost_model.bandwidth,
        engine_bytes=engine_bytes,
        trainer_bytes=trainer_bytes,
        adapter_parameters=adapter_parameters,
        rank=rank,
        cache_bytes=cost_model.cache_bytes * width * engine_bytes / cost_model.engine_bytes,
        activation_bytes=cost_model.activation_bytes
        * width
        * trainer_bytes
        / cost_model.trainer_bytes,
    )


def write_cost_model(cost_model: CostModel, file: Path) -> None:
    """Save a cost model as JSON.

    Raises:
        PlanError: the file cannot be written.
    """
    try:
        file.write_text(json.dumps({_FORMAT: _VERSION, **asdict(cost_model)}, indent=1) + "\n")
    except OSError as problem:
        raise PlanError(f"cannot write {file}: {problem.strerror}") from problem


def read_cost_model(file: Path) -> CostModel:
    """Read a cost model that `write_cost_model` wrote.

    Raises:
        PlanError: the file cannot be read, or is not a valid cost model.
    """
    try:
        content = json.loads(file.read_text())
    except OSError as problem:
        raise PlanError(f"cannot read {file}: {problem.strerror}") from problem
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.pop(_FORMAT, None) != _VERSION:
        raise PlanError(
            f"{file} contains no measurements of this version: create it with "
            "`mayfly plan --save FILE`"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(CostModel)}
    invalid = [
        name
        for name in kinds
        if isinstance(values.get(name), bool) or not isinstance(values.get(name), kinds[name])
    ]
    invalid += sorted(set(values) - set(kinds))
    if invalid:
        raise PlanError(
            f"{file} is damaged: invalid {', '.join(invalid)}; create it anew with "
            "`mayfly plan --save FILE`"
        )
    try:
        return CostModel(**values)
    except ValueError as problem:
        raise PlanError(
            f"{file} is damaged: {problem}; create it anew with `mayfly plan --save FILE`"
        ) from problem
