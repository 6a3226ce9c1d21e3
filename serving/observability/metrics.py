"""Metrics of adaptations, which /metrics exposes together with vLLM's own.

Every metric describes the server, never one request, key or corpus, so that labels have few values.
Numbers that other modules know already (loaded adapters, staged bytes, running requests) are read
when /metrics is requested. This module is independent of vLLM and HTTP: its metrics and vLLM's are
in prometheus_client's registry, which `Exposition` renders.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from serving.errors import BusyError, RateLimitError, to_http
from serving.report import AdaptationReport, Stage, StopReason

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEPS = (1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 75, 100, 200)
_SIGMA = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GAIN = (-2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
_STAGES = tuple(stage for stage in Stage if stage is not Stage.ANSWER)
_PLACES = (Stage.SELECT, Stage.COMPARE, Stage.TRAIN, Stage.LOAD, Stage.ANSWER)
# Stop reasons of requests that were not meant to be adapted, or need no adapter.
_UNADAPTED_STOPS = (StopReason.NONE, StopReason.CORPUS, StopReason.AUTO)

_registered: WeakKeyDictionary[CollectorRegistry, Metrics] = WeakKeyDictionary()


class Metrics:
    """The metrics of one engine replica.

    Further metrics in the same process replace the earlier ones in the registry, as vLLM's do.

    The four functions are called in the thread that serves /metrics: they must be quick, and must
    not wait for an event loop.

    Args:
        live_adapters: gives the number of adapters in the engine.
        staging_bytes: gives the size of staged adapters, in bytes.
        in_stage: gives the number of requests in each of the stages "select", "train", "load" and
            "answer", waiting ones included.
        under_way: gives the number of "requests" that were admitted and are not answered yet, and
            of "adaptations" among them.
        registry: registry that /metrics exposes.
    """

    def __init__(
        self,
        *,
        live_adapters: Callable[[], int],
        staging_bytes: Callable[[], int],
        in_stage: Callable[[], Mapping[str, int]],
        under_way: Callable[[], Mapping[str, int]],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._live_adapters, self._staging_bytes = live_adapters, staging_bytes
        self._in_stage, self._under_way = in_stage, under_way
        own = self._own = CollectorRegistry()
        self._answers = Counter(
            "mayfly_answers", "Answers by HTTP status.", ["status"], registry=own
        )
        self._rejected = Counter(
            "mayfly_rejected",
            "Requests refused before any compute, by the error's code.",
            ["reason"],
            registry=own,
        )
        self._adaptations = Counter(
            "mayfly_adaptations",
            "Ended adaptations. Outcome: adapted; degraded: adapted with fewer steps than "
            "requested because of high load; unadapted: no adaptation was requested, or no "
            "document was found; failed: an error, or the base model in place of an adapter.",
            ["outcome", "stop"],
            registry=own,
        )
        self._stage_seconds = Histogram(
            "mayfly_stage_seconds",
            "Seconds that a request spent in a stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=own,
        )
        self._steps = Histogram(
            "mayfly_steps", "Gradient steps of an adaptation.", buckets=_STEPS, registry=own
        )
        self._sigma = Histogram(
            "mayfly_sigma_at_stop",
            "Uncertainty when the selection stopped; it starts at 1.",
            buckets=_SIGMA,
            registry=own,
        )
        self._gain = Histogram(
            "mayfly_prompt_loss_gain",
            "Loss on the prompt before training minus that after it, in nats per token.",
            buckets=_GAIN,
            registry=own,
        )
        # All series exist from the start: Prometheus' rate() misses the event that creates a
        # series.
        for stage in _STAGES:
            self._stage_seconds.labels(stage)
        for outcome, stop in (
            ("adapted", StopReason.STEPS),
            ("degraded", StopReason.STEPS),
            ("unadapted", StopReason.NONE),
            ("failed", StopReason.FAILED),
        ):
            self._adaptations.labels(outcome, stop)
        for problem in BusyError("", 0.0), RateLimitError("", 0.0):
            self._rejected.labels(_reason(problem))
        for status in "200", "500":
            self._answers.labels(status)

        earlier = _registered.pop(registry, None)
        if earlier is not None:
            registry.unregister(earlier)
        registry.register(self)
        _registered[registry] = self

    def observe_adaptation(self, report: AdaptationReport) -> None:
        """Count an adaptation that has ended."""
        if report.adapted:
            outcome = "adapted" if report.shed is None else "degraded"
        else:
            outcome = "unadapted" if report.stop in _UNADAPTED_STOPS else "failed"
        self._adaptations.labels(outcome, report.stop).inc()
        for stage, seconds in report.seconds.items():
            self._stage_seconds.labels(stage).observe(seconds)
        if report.losses:
            self._steps.observe(len(report.losses))
            self._sigma.observe(report.uncertainty[-1])
        if report.prompt_loss:
            self._gain.observe(report.prompt_loss["before"] - report.prompt_loss["after"])

    def observe_required_failure(self) -> None:
        """Count an adaptation that failed and, since the request required it, became an error."""
        self._adaptations.labels("failed", StopReason.FAILED).inc()

    def observe_rejection(self, problem: Exception) -> None:
        """Count a request that was rejected before any compute, by the code of its error."""
        self._rejected.labels(_reason(problem)).inc()

    def observe_response(self, status: int) -> None:
        """Count a response by its HTTP status."""
        self._answers.labels(str(status)).inc()

    def collect(self) -> Iterator[Metric]:
        """As a collector of prometheus_client."""
        yield from self._own.collect()
        yield GaugeMetricFamily(
            "mayfly_live_adapters", "Adapters in the engine.", float(self._live_adapters())
        )
        yield GaugeMetricFamily(
            "mayfly_staging_bytes", "Bytes of staged adapters.", float(self._staging_bytes())
        )
        in_stage = GaugeMetricFamily(
            "mayfly_requests_in_stage",
            "Requests in a stage, waiting ones included.",
            labels=["stage"],
        )
        for stage, requests in {**dict.fromkeys(map(str, _PLACES), 0), **self._in_stage()}.items():
            in_stage.add_metric([stage], requests)
        yield in_stage
        under_way = GaugeMetricFamily(
            "mayfly_under_way",
            "Requests that were admitted and are not answered yet, and the adaptations among them.",
            labels=["what"],
        )
        for what, count in self._under_way().items():
            under_way.add_metric([what], count)
        yield under_way


class Exposition:
    """Renders a registry for /metrics, with a label for this replica on every sample.

    Several replicas answer in turn at the same address. Without the label their counters would look
    like one counter that goes up and down.

    Args:
        registry: registry to render.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry, self._replica = registry, secrets.token_hex(4)

    def collect(self) -> Iterator[Metric]:
        """As `CollectorRegistry.collect`."""
        for metric in self._registry.collect():
            labelled = copy(metric)
            labelled.samples = [
                each._replace(labels={**each.labels, "replica": self._replica})
                for each in metric.samples
            ]
            yield labelled

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text and its media type, in the format that an Accept header prefers."""
        encode, media_type = choose_encoder(accept)
        return encode(self), media_type


def _reason(problem: Exception) -> str:
    error = to_http(problem)[1]["error"]
    return str(error["code"] or error["type"])
