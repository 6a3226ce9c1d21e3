"""The capacity model: queues of known length, monotonicity, bounds, and cost models that are saved
and scaled.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from serving.capacity.cost_model import (
    CostModel,
    Target,
    fit_line,
    read_cost_model,
    scaled,
    write_cost_model,
)
from serving.capacity.planner import Plan, Workload, mean_requests, plan_for

NANO = CostModel(
    model="nano",
    parameters=5e6,
    processor="cpu",
    cores=1,
    trainer_flops=1e11,
    engine_flops=1e11,
    bandwidth=1e10,
    rows=8,
    step_fixed=0.01,
    step_per_token=4e-4,
    decode_fixed=6e-3,
    decode_per_answer=5e-4,
    prefill_per_token=1.5e-4,
    answer_fixed=0.01,
    load=0.03,
    select=0.03,
    engine_bytes=4,
    trainer_bytes=4,
    adapter_parameters=4e5,
    rank=16,
    cache_bytes=12288.0,
    activation_bytes=3e5,
    dimension=384,
    estimated=("the engine",),
)
H100 = Target(flops=4e14, bandwidth=3e12)

_seconds = st.floats(1e-7, 1.0)
cost_models = st.builds(
    replace,
    st.just(NANO),
    processor=st.sampled_from(["cpu", "cuda"]),
    parameters=st.floats(1e5, 1e10),
    trainer_flops=st.floats(1e9, 1e15),
    engine_flops=st.floats(1e9, 1e15),
    bandwidth=st.floats(1e9, 1e13),
    rows=st.integers(1, 64),
    step_fixed=_seconds,
    step_per_token=_seconds,
    decode_fixed=_seconds,
    decode_per_answer=_seconds,
    prefill_per_token=_seconds,
    load=_seconds,
    select=_seconds,
)
workloads = st.builds(
    Workload,
    rate=st.floats(1e-3, 10.0),
    steps=st.integers(0, 50),
    prompt_tokens=st.integers(1, 2000),
    answer_tokens=st.integers(1, 200),
    adapted=st.just(0.0) | st.floats(1e-3, 1.0),
    utilisation=st.floats(0.1, 0.95),
)


def erlang_c(servers: int, load: float) -> float:
    """The probability of waiting in M/M/c, by the textbook formula."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


def replicas(plan: Plan) -> list[int]:
    return [stage.replicas for stage in plan.stages]


def test_erlang_c_equals_published_tables() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(10, 7.0) == pytest.approx(0.2217, abs=1e-4)


@pytest.mark.parametrize(
    ("servers", "load"), [(1, 0.1), (1, 0.7), (2, 1.5), (10, 7.0), (100, 95.0)]
)
@pytest.mark.parametrize("seconds", [0.02, 30.0])
def test_requests_that_do_not_slow_each_other_form_an_m_m_c_queue(
    servers: int, load: float, seconds: float
) -> None:
    busy = load / servers

    found = mean_requests(load / seconds, seconds, 0.0, servers, 1)

    assert found == pytest.approx(load + erlang_c(servers, load) * busy / (1 - busy))


def test_hundreds_of_servers_do_not_overflow_and_hardly_any_request_waits() -> None:
    assert mean_requests(280.0, 1.0, 0.0, 400, 1) == pytest.approx(280.0, rel=1e-6)


def test_replicas_share_one_queue() -> None:
    assert mean_requests(0.7, 10.0, 0.0, 2, 5) == pytest.approx(
        mean_requests(0.7, 10.0, 0.0, 10, 1)
    )


@pytest.mark.parametrize("slots", [1, 3, 50])
def test_a_shared_processor_is_m_m_1_for_any_number_of_slots(slots: int) -> None:
    assert mean_requests(0.6, 0.0, 1.0, 1, slots) == pytest.approx(0.6 / 0.4)


def planned(workload: Workload, cost_model: CostModel) -> Plan:
    """The plan; a workload too large for any plan is rejected as an example."""
    try:
        return plan_for(workload, cost_model)
    except ValueError as problem:
        if "plan for less" not in str(problem):
            raise
        reject()


@settings(deadline=None)
@given(workloads, cost_models)
def test_stages_stay_below_the_utilisation_with_no_replica_to_spare(
    workload: Workload, cost_model: CostModel
) -> None:
    for stage in planned(workload, cost_model).stages:
        assert stage.utilisation <= workload.utilisation * (1 + 1e-9)
        assert stage.replicas <= 1 or stage.utilisation * stage.replicas > workload.utilisation * (
            stage.replicas - 1.001
        )
        assert stage.seconds >= stage.seconds_alone * (1 - 1e-9)


@settings(deadline=None)
@given(workloads, cost_models)
def test_twice_the_rate_never_needs_less(workload: Workload, cost_model: CostModel) -> None:
    once = planned(workload, cost_model)
    twice = planned(replace(workload, rate=2 * workload.rate), cost_model)

    assert all(more >= less for less, more in zip(replicas(once), replicas(twice), strict=True))
    assert twice.cores + twice.accelerators >= once.cores + once.accelerators
    assert twice.seconds_alone == pytest.approx(once.seconds_alone)


@settings(deadline=None)
@given(workloads, cost_models, st.sampled_from([Target(), H100]))
def test_twice_the_parameters_never_cost_less(
    workload: Workload, cost_model: CostModel, target: Target
) -> None:
    once = planned(workload, scaled(cost_model, replace(target, parameters=cost_model.parameters)))
    twice = planned(
        workload, scaled(cost_model, replace(target, parameters=2 * cost_model.parameters))
    )

    assert all(more >= less for less, more in zip(replicas(once), replicas(twice), strict=True))
    assert twice.seconds_alone >= once.seconds_alone * (1 - 1e-9)
    for less, more in zip(once.stages, twice.stages, strict=True):
        assert all(more.memory[name] >= size for name, size in less.memory.items())


def test_without_adaptation_only_the_engine_is_needed() -> None:
    for workload in (Workload(1.0, adapted=0.0), Workload(1.0, steps=0)):
        plan = plan_for(workload, NANO)

        assert replicas(plan)[:2] == [0, 0]
        assert plan.bottleneck == "engine"
        assert plan.seconds_alone == plan.stages[2].seconds_alone


def test_a_plan_equals_one_computed_by_hand() -> None:
    workload = Workload(2.0, steps=10, prompt_tokens=100, answer_tokens=10, adapted=0.5)

    selector, trainer, engine = plan_for(workload, NANO).stages

    assert selector.replicas == 1
    assert selector.utilisation == pytest.approx(0.03)
    # Seconds of eight requests that train together.
    full = 10 * (0.01 + 8 * 256 * 4e-4)
    assert trainer.utilisation * trainer.replicas == pytest.approx(1.0 * full / 8)
    assert trainer.replicas == math.ceil(full / 8 / 0.7) == 2
    assert trainer.seconds_alone == pytest.approx(10 * (0.01 + 256 * 4e-4))
    each = 100 * 1.5e-4 + 10 * 5e-4 + 0.5 * 0.03
    assert engine.seconds_alone == pytest.approx(0.01 + 10 * 6e-3 + each)
    assert engine.utilisation == pytest.approx(2.0 * (0.01 + 10 * 6e-3 + 8 * each) / 8)
    assert trainer.memory["adapters and moments"] == 9 * 4e5 * 16
    assert engine.memory["KV cache"] == 8 * 110 * 12288
    assert selector.memory["corpus"] == 10_000 * 384 * 4


def test_cores_are_counted_on_a_cpu_and_accelerators_elsewhere() -> None:
    here, there = (
        plan_for(Workload(50.0), cost_model) for cost_model in (NANO, scaled(NANO, H100))
    )

    assert (here.cores, here.accelerators) == (sum(replicas(here)), 0)
    assert (there.cores, there.accelerators) == (replicas(there)[0], sum(replicas(there)[1:]))


def test_arithmetic_and_reading_scale_and_fixed_times_do_not() -> None:
    larger = scaled(NANO, Target(1e9), rank=64)

    assert larger.step_fixed == NANO.step_fixed
    assert larger.step_per_token == pytest.approx(200 * NANO.step_per_token)
    assert larger.prefill_per_token == pytest.approx(200 * NANO.prefill_per_token)
    assert larger.decode_fixed == pytest.approx(6e-3 - 5e6 * 4 / 1e10 + 1e9 * 4 / 1e10)
    assert larger.decode_per_answer == pytest.approx(5e-4 - 1.5e-4 + 200 * 1.5e-4)
    assert larger.adapter_parameters == pytest.approx(4 * 200 ** (2 / 3) * NANO.adapter_parameters)
    assert scaled(NANO, Target()) == scaled(NANO, Target(5e6)) == NANO


def test_no_scaled_time_is_below_what_the_accelerator_allows() -> None:
    too_good = replace(NANO, step_per_token=1e-9, prefill_per_token=1e-9, decode_fixed=0.0)

    there = scaled(too_good, H100)

    assert (there.engine_bytes, there.trainer_bytes, there.processor) == (2, 2, "accelerator")
    assert there.step_per_token == 4 * 5e6 / 4e14
    assert there.prefill_per_token == 2 * 5e6 / 4e14
    assert there.decode_fixed == 5e6 * 2 / 3e12


@pytest.mark.parametrize(
    ("alone", "together", "count", "found"),
    [
        (0.1, 0.1, 1, (0.0, 0.1)),
        (0.1, 0.45, 8, (0.05, 0.05)),
        (0.1, 0.8, 8, (0.0, 0.1)),
        (0.1, 0.1, 8, (0.1, 0.0)),
        # Noise made eight faster than one.
        (0.1, 0.09, 8, (0.09, 0.0)),
        (0.1, 1.6, 8, (0.0, 0.2)),
    ],
)
def test_a_fitted_line_is_exact_for_items_together(
    alone: float, together: float, count: int, found: tuple[float, float]
) -> None:
    assert fit_line(alone, together, count) == pytest.approx(found)


@settings(deadline=None)
@given(cost_models)
def test_a_cost_model_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, cost_model: CostModel
) -> None:
    file = tmp_path_factory.getbasetemp() / "costs.json"

    write_cost_model(cost_model, file)

    assert read_cost_model(file) == cost_model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mayfly_cost_model": 2}, "contains no measurements of this version"),
        ({"engine_flops": 0.0}, "engine_flops is 0.0; it needs to be more than 0"),
        ({"load": -1.0}, "load is -1.0; it needs to be 0 or more"),
        ({"bandwidth": math.inf}, "bandwidth is inf"),
        ({"step_per_token": "fast"}, "invalid step_per_token"),
        ({"cores": True}, "invalid cores"),
        ({"rows": 1.5}, "invalid rows"),
        ({"estimated": "all"}, "invalid estimated"),
        ({"more": 1}, "invalid more"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"mayfly_cost_model": 1, **asdict(NANO), **change}))

    with pytest.raises(ValueError, match=message) as refused:
        read_cost_model(file)

    assert "mayfly plan --save" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"flops": 1}'])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)

    with pytest.raises(ValueError, match="contains no measurements"):
        read_cost_model(tmp_path / "other")
    with pytest.raises(ValueError, match="cannot read"):
        read_cost_model(tmp_path / "missing")
    with pytest.raises(ValueError, match="cannot write"):
        write_cost_model(NANO, tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.0}, "the rate is .* needs to be more than 0"),
        ({"rate": -1.0}, "the rate is .* needs to be more than 0"),
        ({"rate": math.inf}, "the rate"),
        ({"rate": math.nan}, "the rate"),
        ({"adapted": 1.1}, "between 0 and 1"),
        ({"utilisation": 1.0}, "between 0 and 1"),
        ({"utilisation": 0.0}, "between 0 and 1"),
        ({"steps": -1}, "steps is -1"),
        ({"sequence_tokens": 1}, "sequence_tokens is 1"),
        ({"answer_tokens": 0}, "answer_tokens is 0"),
    ],
)
def test_a_workload_out_of_range_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Workload(1.0), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 0.0}, "parameters is 0.0"),
        ({"flops": -1e12, "bandwidth": 1e12}, "flops is -1"),
        ({"flops": 1e12}, "give both --flops and --bandwidth"),
        ({"bandwidth": 1e12}, "give both --flops and --bandwidth"),
        ({"parameters": math.nan}, "parameters is nan"),
    ],
)
def test_a_target_out_of_range_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(**change)


def test_a_workload_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 10,000,000 replicas of the selector"):
        plan_for(Workload(1e9), NANO)


@pytest.mark.parametrize(
    ("workload", "steps", "prompt"),
    [
        # 3 * 256 tokens of a prompt, and 4 * 256 of a text, at a third of a step of 256 each.
        (Workload(1.0), 3, 1280),
        (Workload(1.0, prompt_tokens=4000), 3, 5024),
        (Workload(1.0, prompt_tokens=30, sequence_tokens=30), 3, 150),
        (Workload(1.0, steps=2), 2, 1280),
        (Workload(1.0, steps=0), 0, 1280),
    ],
)
def test_without_steps_a_request_costs_the_losses_that_auto_measures(
    workload: Workload, steps: int, prompt: int
) -> None:
    without = workload.without_steps(4, 256)

    assert (without.steps, without.prompt_tokens) == (steps, prompt)
    assert without == replace(workload, steps=steps, prompt_tokens=prompt)
