"""Metrics: what each event counts as, and that no sample identifies a request, key or corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest

from serving.errors import (
    AdaptationFailedError,
    BudgetError,
    BusyError,
    RateLimitError,
    UnauthorizedError,
)
from serving.observability.metrics import Exposition, Metrics
from serving.report import AdaptationReport, StopReason
from tests.serving.reports import REPORT


class Replica:
    """The metrics of a replica and the state that they read."""

    def __init__(self, staging: Path | None = None) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.adapters: list[str] = []
        self.in_stage = {"train": 0}
        self.under_way = {"requests": 0, "adaptations": 0}
        self.metrics = Metrics(
            live_adapters=lambda: len(self.adapters),
            staging_bytes=lambda: (
                sum(file.stat().st_size for file in staging.iterdir()) if staging else 0
            ),
            in_stage=lambda: self.in_stage,
            under_way=lambda: self.under_way,
            registry=self.registry,
        )

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_an_adaptation_is_observed_by_stage_steps_uncertainty_gain_and_stop() -> None:
    replica = Replica()

    replica.metrics.observe_adaptation(REPORT)

    assert replica.sample("mayfly_adaptations_total", outcome="adapted", stop="alpha") == 1
    for stage, seconds in REPORT.seconds.items():
        assert replica.sample("mayfly_stage_seconds_count", stage=stage) == 1
        assert replica.sample("mayfly_stage_seconds_sum", stage=stage) == seconds
    assert replica.sample("mayfly_steps_sum") == 2
    assert replica.sample("mayfly_sigma_at_stop_sum") == 0.3125
    assert replica.sample("mayfly_prompt_loss_gain_bucket", le="0.2") == 0
    # 3.25 - 3.0
    assert replica.sample("mayfly_prompt_loss_gain_bucket", le="0.5") == 1


def test_training_that_raises_the_loss_has_a_negative_gain() -> None:
    replica = Replica()

    replica.metrics.observe_adaptation(replace(REPORT, prompt_losses=((0, 2.0), (2, 2.7))))

    assert replica.sample("mayfly_prompt_loss_gain_bucket", le="-1.0") == 0
    assert replica.sample("mayfly_prompt_loss_gain_bucket", le="-0.5") == 1


@pytest.mark.parametrize(
    ("report", "outcome"),
    [
        (REPORT, "adapted"),
        (replace(REPORT, shed="5 of 20 steps"), "degraded"),
        (
            replace(
                REPORT, adapted=False, stop=StopReason.NONE, losses=(), uncertainty=(), seconds={}
            ),
            "unadapted",
        ),
        (
            replace(
                REPORT,
                adapted=False,
                stop=StopReason.CORPUS,
                losses=(),
                uncertainty=(1.0,),
                seconds={},
            ),
            "unadapted",
        ),
        # With text in its prompt, the base model needed no adapter.
        (
            replace(REPORT, adapted=False, stop=StopReason.AUTO, losses=(), uncertainty=(1.0,)),
            "unadapted",
        ),
        (
            replace(REPORT, adapted=False, stop=StopReason.SECONDS, losses=(), uncertainty=(1.0,)),
            "failed",
        ),
        (
            replace(REPORT, adapted=False, stop=StopReason.DIVERGED, losses=(), uncertainty=(1.0,)),
            "failed",
        ),
        (
            replace(
                REPORT, adapted=False, stop=StopReason.FAILED, losses=(), uncertainty=(), seconds={}
            ),
            "failed",
        ),
    ],
)
def test_each_end_of_an_adaptation_has_its_outcome(report: AdaptationReport, outcome: str) -> None:
    replica = Replica()

    replica.metrics.observe_adaptation(report)

    assert replica.sample("mayfly_adaptations_total", outcome=outcome, stop=report.stop) == 1
    assert replica.sample("mayfly_steps_count") == (1 if report.losses else 0)


def test_an_adaptation_that_was_required_and_failed_counts_as_failed() -> None:
    replica = Replica()

    replica.metrics.observe_required_failure()

    assert replica.sample("mayfly_adaptations_total", outcome="failed", stop="failed") == 1


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (BusyError("16 adaptations are under way", 3.0), "server_busy"),
        (RateLimitError("key alice: 60 requests a minute", 3.0), "rate_limit_exceeded"),
        (UnauthorizedError("no such key: mf-secret"), "invalid_api_key"),
        (BudgetError("steps=-1"), "invalid_compute_budget"),
        (AdaptationFailedError("it diverged"), "adaptation_failed"),
        (ValueError("a prompt"), "server_error"),
    ],
)
def test_a_rejection_is_counted_by_its_code_and_not_by_its_message(
    problem: Exception, reason: str
) -> None:
    replica = Replica()

    replica.metrics.observe_rejection(problem)

    assert replica.sample("mayfly_rejected_total", reason=reason) == 1
    assert str(problem) not in generate_latest(replica.registry).decode()


def test_responses_are_counted_by_status() -> None:
    replica = Replica()

    for status in (200, 200, 429, 500):
        replica.metrics.observe_response(status)

    assert [
        replica.sample("mayfly_answers_total", status=status) for status in ("200", "429", "500")
    ] == [2, 1, 1]


def test_gauges_are_read_when_metrics_are_requested(tmp_path: Path) -> None:
    replica = Replica(tmp_path)
    assert (replica.sample("mayfly_live_adapters"), replica.sample("mayfly_staging_bytes")) == (
        0,
        0,
    )

    replica.adapters.append("mayfly-1")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(1000))
    replica.in_stage = {"train": 3, "answer": 1}
    replica.under_way = {"requests": 9, "adaptations": 4}

    assert (replica.sample("mayfly_live_adapters"), replica.sample("mayfly_staging_bytes")) == (
        1,
        1000,
    )
    stages = {
        stage: replica.sample("mayfly_requests_in_stage", stage=stage)
        for stage in ("select", "train", "answer")
    }
    assert stages == {"select": 0, "train": 3, "answer": 1}
    assert [
        replica.sample("mayfly_under_way", what=what) for what in ("requests", "adaptations")
    ] == [
        9,
        4,
    ]


def test_the_series_of_alerts_exist_before_the_first_event() -> None:
    replica = Replica()

    assert replica.sample("mayfly_adaptations_total", outcome="failed", stop="failed") == 0
    assert replica.sample("mayfly_adaptations_total", outcome="adapted", stop="steps") == 0
    assert replica.sample("mayfly_rejected_total", reason="server_busy") == 0
    assert replica.sample("mayfly_answers_total", status="500") == 0
    assert replica.sample("mayfly_stage_seconds_count", stage="queue") == 0


def test_no_sample_names_a_corpus_a_document_or_an_adapter() -> None:
    replica = Replica()

    replica.metrics.observe_adaptation(REPORT)
    text = generate_latest(replica.registry).decode()

    assert not any(private in text for private in ("notes-of-a-patient", "diagnosis", "mayfly-1"))


def test_further_metrics_replace_the_earlier_ones_and_no_others() -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counter("vllm:others", "Another library's.", registry=registry).inc(7)

    def make(adapters: int) -> Metrics:
        return Metrics(
            live_adapters=lambda: adapters,
            staging_bytes=lambda: 0,
            in_stage=dict,
            under_way=dict,
            registry=registry,
        )

    make(1).observe_response(200)
    make(2)

    assert registry.get_sample_value("mayfly_live_adapters") == 2
    assert registry.get_sample_value("mayfly_answers_total", {"status": "200"}) == 0
    assert registry.get_sample_value("vllm:others_total") == 7
    assert generate_latest(registry).decode().count("# TYPE mayfly_steps histogram") == 1


def test_every_sample_has_a_label_that_is_unique_to_its_replica() -> None:
    replica = Replica()
    Counter("vllm:others", "Another library's.", ["engine"], registry=replica.registry).labels(
        "0"
    ).inc(7)
    one, other = (Exposition(replica.registry) for _ in range(2))

    def replicas(exposition: Exposition) -> set[str]:
        return {
            sample.labels["replica"] for metric in exposition.collect() for sample in metric.samples
        }

    assert len(replicas(one)) == 1
    assert replicas(one).isdisjoint(replicas(other))
    text, media_type = one.render("text/plain")
    assert media_type.startswith("text/plain")
    (label,) = replicas(one)
    assert f'vllm:others_total{{engine="0",replica="{label}"}} 7.0' in text.decode().splitlines()
    assert one.render("application/openmetrics-text; version=1.0.0")[0].endswith(b"# EOF\n")
    assert replica.sample("mayfly_live_adapters") == 0, "the registry itself has no such label"


def test_the_default_registry_is_that_of_vllm() -> None:
    Metrics(live_adapters=lambda: 5, staging_bytes=lambda: 0, in_stage=dict, under_way=dict)

    assert REGISTRY.get_sample_value("mayfly_live_adapters") == 5


@given(
    st.lists(
        st.builds(
            lambda losses, adapted, degraded: replace(
                REPORT,
                adapted=adapted and bool(losses),
                shed="fewer" if degraded else None,
                losses=tuple(losses),
                uncertainty=(1.0,) + (0.5,) * len(losses),
            ),
            st.lists(st.floats(0.0, 20.0), max_size=4),
            st.booleans(),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_every_adaptation_has_one_outcome_and_every_trained_one_a_number_of_steps(
    reports: list[AdaptationReport],
) -> None:
    replica = Replica()

    for report in reports:
        replica.metrics.observe_adaptation(report)

    samples = [sample for metric in replica.registry.collect() for sample in metric.samples]
    assert sum(
        sample.value for sample in samples if sample.name == "mayfly_adaptations_total"
    ) == len(reports)
    trained = sum(bool(report.losses) for report in reports)
    for histogram in ("mayfly_steps", "mayfly_sigma_at_stop"):
        assert replica.sample(f"{histogram}_count") == trained
    assert replica.sample("mayfly_prompt_loss_gain_count") == sum(
        report.prompt_loss is not None for report in reports
    )
