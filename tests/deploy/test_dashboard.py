"""The dashboard and the alerts ask for what a server tells: names, labels and their values, by the
real registries.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from serving.errors import BusyError
from serving.observability.metrics import Metrics
from serving.report import StopReason
from tests.serving.reports import REPORT

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_DASHBOARD: dict[str, Any] = json.loads((_DEPLOY / "grafana" / "mayfly.json").read_text())
_ALERTS: dict[str, Any] = yaml.safe_load((_DEPLOY / "prometheus" / "alerts.yml").read_text())
_RULES: list[dict[str, Any]] = [rule for group in _ALERTS["groups"] for rule in group["rules"]]
_PANELS: list[dict[str, Any]] = _DASHBOARD["panels"]
_QUERIES = [target["expr"] for panel in _PANELS for target in panel.get("targets", ())]
_VARIABLES: list[dict[str, Any]] = _DASHBOARD["templating"]["list"]
_EXPRESSIONS = [*_QUERIES, *(rule["expr"] for rule in _RULES)]
_SCRAPED = {"job", "instance"}  # labels that Prometheus gives to everything it scrapes
_PROMETHEUS_OWN = {"up": _SCRAPED}
_WORDS = {
    "and",
    "or",
    "unless",
    "sum",
    "max",
    "min",
    "avg",
    "count",
    "bool",
    "offset",
    "inf",
    "nan",
}
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')

# vLLM's registry as `Engine.start` fills it, ours beside it; in a process of its own, as vLLM
# changes much in one.
_PROCESS = """
import json, sys
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.testclient import TestClient
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.serve.instrumentator.metrics import attach_router
from vllm.v1.metrics.loggers import PrometheusStatLogger
from serving.observability.metrics import Metrics
arguments = AsyncEngineArgs(model=sys.argv[1], enable_lora=True, enforce_eager=True)
PrometheusStatLogger(arguments.create_engine_config())
labels = {
    name: sorted(getattr(metric, "_labelnames", ()))
    for name, metric in REGISTRY._names_to_collectors.items()
}
attach_router(app := FastAPI())
Metrics(live_adapters=lambda: 3, staging_bytes=lambda: 0, in_stage=dict, under_way=dict)
print("found:" + json.dumps({"labels": labels, "answer": TestClient(app).get("/metrics").text}))
"""


def names_and_labels(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of a PromQL expression with the labels that it selects by."""
    grouped = {
        label.strip() for _, labels in _GROUPING.findall(expression) for label in labels.split(",")
    }
    bare = _GROUPING.sub(" ", re.sub(r"\[[^\]]*\]", " ", expression))
    for name, call, braces in re.findall(
        r'([a-zA-Z_:][\w:]*)\s*(\()?(?:\{((?:[^}"]|"[^"]*")*)\})?', bare
    ):
        if not call and name not in _WORDS:
            yield name, {label for label, _, _ in _MATCHER.findall(braces)} | (grouped - {"le", ""})


@pytest.fixture(scope="module")
def process(nano: str) -> dict[str, Any]:
    """What a process tells in which vLLM's metrics and ours are made: labels by name, and its
    answer to a scrape.
    """
    environment = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": "/usr/bin:/bin",
    }
    ran = subprocess.run(
        [sys.executable, "-c", _PROCESS, nano], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    line = next(line for line in ran.stdout.splitlines() if line.startswith("found:"))
    exposed: dict[str, Any] = json.loads(line.removeprefix("found:"))
    return exposed


@pytest.fixture(scope="module")
def exposed(process: dict[str, Any]) -> dict[str, set[str]]:
    """Every metric of /metrics, ours and vLLM's, with its labels."""
    names = {name: set(labels) for name, labels in process["labels"].items()}
    for metric in _ours().collect():
        for sample in metric.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    return names


def _ours() -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    metrics = Metrics(
        live_adapters=lambda: 0,
        staging_bytes=lambda: 0,
        in_stage=dict,
        under_way=lambda: {"requests": 2, "adaptations": 1},
        registry=registry,
    )
    metrics.observe_adaptation(REPORT)
    metrics.observe_adaptation(replace(REPORT, shed="fewer"))
    metrics.observe_adaptation(replace(REPORT, adapted=False, stop=StopReason.NONE))
    metrics.observe_required_failure()
    metrics.observe_rejection(BusyError("", 1.0))
    for status in (200, 500, 503):
        metrics.observe_response(status)
    return registry


@pytest.mark.parametrize("expression", _EXPRESSIONS)
def test_every_expression_is_promql(expression: str) -> None:
    for variable, value in {
        "$__rate_interval": "1m",
        "$__range": "1h",
        "$__interval": "1m",
    }.items():
        expression = expression.replace(variable, value)

    promql_parser.parse(expression)


@pytest.mark.parametrize("expression", dict.fromkeys(_EXPRESSIONS))
def test_every_metric_in_an_expression_exists(
    expression: str, exposed: dict[str, set[str]]
) -> None:
    asked = list(names_and_labels(expression))

    assert asked
    for name, labels in asked:
        known = exposed | _PROMETHEUS_OWN
        assert name in known, f"{name} does not exist"
        assert labels - _SCRAPED <= known[name] | {"le"}, f"{name} has no such labels"


def test_vllms_metrics_route_includes_ours(process: dict[str, Any]) -> None:
    lines = process["answer"].splitlines()

    assert "mayfly_live_adapters 3.0" in lines
    assert "# TYPE mayfly_stage_seconds histogram" in lines
    assert any(line.startswith("vllm:num_requests_running{") for line in lines)


def test_label_values_in_expressions_exist() -> None:
    taken: dict[tuple[str, str], set[str]] = {}
    for metric in _ours().collect():
        for sample in metric.samples:
            for label, value in sample.labels.items():
                taken.setdefault((sample.name, label), set()).add(value)

    asked = [
        (name, label, operator, value)
        for expression in _EXPRESSIONS
        for name, braces in re.findall(r"(mayfly_\w+)\{([^}]*)\}", expression)
        for label, operator, value in _MATCHER.findall(braces)
        if label not in _SCRAPED
    ]

    assert asked
    for name, label, operator, value in asked:
        wanted = re.compile(value if "~" in operator else re.escape(value))
        assert any(wanted.fullmatch(one) for one in taken[name, label]), (
            f'{name}{{{label}{operator}"{value}"}}'
        )


def test_every_metric_of_ours_is_shown() -> None:
    shown = {name for expression in _QUERIES for name, _ in names_and_labels(expression)}

    for metric in _ours().collect():
        assert any(name.startswith(metric.name) for name in shown), f"{metric.name} is on no panel"


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in _PANELS}) == len(_PANELS)
    boxes = [panel["gridPos"] for panel in _PANELS]
    assert all(box["x"] >= 0 and box["x"] + box["w"] <= 24 and box["h"] > 0 for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above


def test_the_data_source_is_chosen_at_import() -> None:
    assert _VARIABLES[0]["type"] == "datasource"
    assert _VARIABLES[0]["query"] == "prometheus"
    name = _VARIABLES[0]["name"]
    asking = [panel for panel in _PANELS if panel["type"] != "row"]
    holders = [
        *asking,
        *(target for panel in asking for target in panel["targets"]),
        *_VARIABLES[1:],
    ]
    assert {holder["datasource"]["uid"] for holder in holders} == {f"${{{name}}}"}
    assert {holder["datasource"]["type"] for holder in holders} == {"prometheus"}


def test_grafana_11_can_import_the_dashboard() -> None:
    assert _DASHBOARD["schemaVersion"] >= 39  # Grafana 11.0
    assert _DASHBOARD["id"] is None
    assert (_DASHBOARD["title"], _DASHBOARD["uid"]) == ("Mayfly", "mayfly")
    # None of Angular's.
    assert {panel["type"] for panel in _PANELS} <= {"row", "stat", "timeseries", "heatmap"}
    for panel in _PANELS:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"], f"{panel['title']} says nothing of what it shows"
            assert (
                len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
            )
    used = set(re.findall(r"\$\{?(\w+)", " ".join(_QUERIES)))
    assert used <= {variable["name"] for variable in _VARIABLES} | {"__rate_interval"}


def test_every_alert_has_summary_description_and_severity() -> None:
    assert len({rule["alert"] for rule in _RULES}) == len(_RULES)
    for rule in _RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_prometheus_loads_the_alerts_and_scrapes_their_job() -> None:
    config = yaml.safe_load((_DEPLOY / "prometheus" / "prometheus.yml").read_text())

    assert [scrape["job_name"] for scrape in config["scrape_configs"]] == ["mayfly"]
    assert all((_DEPLOY / "prometheus" / file).is_file() for file in config["rule_files"])
    assert config["scrape_configs"][0]["metrics_path"] == "/metrics"
