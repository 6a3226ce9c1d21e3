"""The report: the body and the headers of an adapted answer."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import http_sf
import pytest

from serving.budget import Budget
from serving.report import AdaptationReport, Stage, StopReason

_REPORT = AdaptationReport(
    adapted=True,
    reason=None,
    budget=Budget(20, 1.5, 0.1),
    clamped=("steps",),
    calibrated=True,
    strategy="nn",
    shed="20 of 50 steps: 9 adaptations are under way, 4 get all",
    targets={"used": 64, "of": 2048, "unit": "prompts"},
    corpus="notes",
    auto=None,
    shown={"sequences": 1, "of": 8, "tokens": 9, "documents": ["a.txt"], "reason": "no room"},
    seed=3,
    start={"from": "fresh", "reason": "the corpus has no adapter"},
    reused={"adapter": "mayfly-0", "turns": 1, "steps": 20},
    stop=StopReason.ALPHA,
    uncertainty=(1.0, 0.5, 0.31234567),
    irreducible=0.01234567,
    losses=(2.5, 2.25),
    prompt_losses=((0, 3.25), (2, 3.0123456789)),
    learnt=2,
    sources=({"document": 4, "name": "a.txt", "start": 0, "times": 2},),
    seconds={
        Stage.EMBED: 0.01234,
        Stage.SEARCH: 0.002,
        Stage.SELECT: 0.003,
        Stage.QUEUE: 0.25,
        Stage.TRAIN: 0.5,
        Stage.LOAD: 0.05,
    },
    spent_seconds=0.84321987,
    adapter="mayfly-1",
)


def headers(report: AdaptationReport) -> dict[str, str]:
    return {name.decode(): value.decode("ascii") for name, value in report.headers()}


def test_the_body_has_all_fields() -> None:
    body = json.loads(json.dumps(_REPORT.as_dict()))

    assert body == {
        "adapted": True,
        "reason": None,
        "prompt_loss": {"before": 3.25, "after": 3.012346, "at": 2},
        "budget": {"steps": 20, "seconds": 1.5, "alpha": 0.1, "gain": None, "cut": ["steps"]},
        "calibrated": True,
        "strategy": "nn",
        "degraded": "20 of 50 steps: 9 adaptations are under way, 4 get all",
        "targets": {"used": 64, "of": 2048, "unit": "prompts"},
        "spent": {"steps": 2, "seconds": 0.8432},
        "stop": "alpha",
        "uncertainty": [1.0, 0.5, 0.312346],
        "irreducible": 0.012346,
        "losses": [2.5, 2.25],
        "prompt_losses": [[0, 3.25], [2, 3.012346]],
        "sources": [{"document": 4, "name": "a.txt", "start": 0, "times": 2}],
        "auto": None,
        "shown": {
            "sequences": 1,
            "of": 8,
            "tokens": 9,
            "documents": ["a.txt"],
            "reason": "no room",
        },
        "seconds": {
            Stage.EMBED: 0.0123,
            Stage.SEARCH: 0.002,
            Stage.SELECT: 0.003,
            Stage.QUEUE: 0.25,
            Stage.TRAIN: 0.5,
            Stage.LOAD: 0.05,
        },
        "corpus": "notes",
        "seed": 3,
        "start": {"from": "fresh", "reason": "the corpus has no adapter"},
        "reused": {"adapter": "mayfly-0", "turns": 1, "steps": 20},
        "adapter": "mayfly-1",
    }


def test_the_headers_have_a_summary() -> None:
    assert headers(_REPORT) == {
        "compute-spent": "steps=2, seconds=0.843, sigma=0.312, stop=alpha",
        "server-timing": "embed;dur=12.3, search;dur=2.0, select;dur=3.0, "
        "queue;dur=250.0, train;dur=500.0, load;dur=50.0",
    }


def test_an_answer_of_the_base_model_has_a_short_summary() -> None:
    report = replace(
        _REPORT,
        adapted=False,
        reason="why",
        stop=StopReason.NONE,
        uncertainty=(),
        losses=(),
        sources=(),
        seconds={},
        adapter=None,
    )

    assert headers(report) == {"compute-spent": "steps=0, seconds=0.843, stop=none"}
    assert report.as_dict()["spent"] == {"steps": 0, "seconds": 0.8432}
    assert (report.as_dict()["adapted"], report.as_dict()["reason"]) == (False, "why")


@pytest.mark.parametrize("stop", StopReason)
def test_compute_spent_is_a_dictionary_whatever_the_stop(stop: StopReason) -> None:
    value = headers(replace(_REPORT, stop=stop))["compute-spent"]

    members = http_sf.parse(value.encode(), tltype="dictionary")

    assert list(members) == ["steps", "seconds", "sigma", "stop"]
    assert str(members["stop"][0]) == stop


def test_server_timing_has_one_metric_per_stage() -> None:
    metrics = headers(_REPORT)["server-timing"].split(", ")

    assert all(re.fullmatch(r"[a-z]+;dur=\d+\.\d", metric) for metric in metrics)
    assert [metric.split(";")[0] for metric in metrics] == list(_REPORT.seconds)
