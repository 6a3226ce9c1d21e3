"""Metrics: what an operator can see of adaptations, told in the answer of /metrics beside vLLM's
own names.

Every metric is of the server, never of one request, key or corpus: labels take few values. What
others know anyway (adapters loaded, bytes staged, requests under way and in a stage) is asked of
them when a scrape comes. This module knows neither vLLM nor HTTP; its metrics and vLLM's stand in
prometheus_client's registry, which `Exposition` tells.
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

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_STEPS = (1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 75, 100, 200)
_SIGMA = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GAIN = (-2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
_STAGES = tuple(stage for stage in Stage if stage is not Stage.ANSWER)
_PLACES = (Stage.SELECT, Stage.TRAIN, Stage.LOAD, Stage.ANSWER)
_NOBODY_MEANT_TO_ADAPT = (StopReason.NONE, StopReason.CORPUS)

_registered: WeakKeyDictionary[CollectorRegistry, Metrics] = WeakKeyDictionary()


class Metrics:
    """The metrics of one engine replica.

    A second one in the same process takes the first one's place in the registry, as vLLM's own do.

    Args:
        live_adapters: how many adapters the engine holds.
        staging_bytes: how many bytes are staged for it.
        in_stage: how many requests wait or are worked on in the stages "select", "train", "load"
            and "answer".
        under_way: how many "requests" were admitted and are not answered yet, and how many
            "adaptations" among them.
        registry: what /metrics tells.

    The four are called in the thread of the scrape: they must be quick, and must not wait for an
    event loop.
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
            "Ended adaptations. Outcome: adapted; degraded: adapted by fewer steps than asked, for want of capacity; "
            "unadapted: nobody meant to adapt; failed: the base model, or an error, answered in an adapter's place.",
            ["outcome", "stop"],
            registry=own,
        )
        self._stage_seconds = Histogram(
            "mayfly_stage_seconds",
            "Seconds of a request in a stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=own,
        )
        self._steps = Histogram(
            "mayfly_steps", "Gradient steps of an adaptation.", buckets=_STEPS, registry=own
        )
        self._sigma = Histogram(
            "mayfly_sigma_at_stop",
            "Uncertainty left when it stopped; 1 before.",
            buckets=_SIGMA,
            registry=own,
        )
        self._gain = Histogram(
            "mayfly_prompt_loss_gain",
            "Loss of the prompt itself before adapting minus that with the adapter that answers, nats a token.",
            buckets=_GAIN,
            registry=own,
        )
        # Known from the start: a rate over a series that begins with its first event does not see
        # that event.
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

    def adapted(self, report: AdaptationReport) -> None:
        """Observe one ended adaptation."""
        if report.adapted:
            outcome = "adapted" if report.degraded is None else "degraded"
        else:
            outcome = "unadapted" if report.stop in _NOBODY_MEANT_TO_ADAPT else "failed"
        self._adaptations.labels(outcome, report.stop).inc()
        for stage, seconds in report.seconds.items():
            self._stage_seconds.labels(stage).observe(seconds)
        if report.losses:
            self._steps.observe(len(report.losses))
            self._sigma.observe(report.uncertainty[-1])
        if report.prompt_loss:
            self._gain.observe(report.prompt_loss["before"] - report.prompt_loss["after"])

    def failed(self) -> None:
        """Observe an adaptation that ended as an error, because the request required it."""
        self._adaptations.labels("failed", StopReason.FAILED).inc()

    def rejected(self, problem: Exception) -> None:
        """Observe a request that was refused before any compute; the reason is its code in
        `serving.errors`.
        """
        self._rejected.labels(_reason(problem)).inc()

    def answered(self, status: int) -> None:
        """Observe an answer, whoever gave it."""
        self._answers.labels(str(status)).inc()

    def collect(self) -> Iterator[Metric]:
        """What a scrape is told."""
        yield from self._own.collect()
        yield GaugeMetricFamily(
            "mayfly_live_adapters", "Adapters in the engine.", float(self._live_adapters())
        )
        yield GaugeMetricFamily(
            "mayfly_staging_bytes", "Bytes of staged adapters.", float(self._staging_bytes())
        )
        in_stage = GaugeMetricFamily(
            "mayfly_requests_in_stage",
            "Requests that wait in a stage, or are worked on there.",
            labels=["stage"],
        )
        for stage, requests in {**dict.fromkeys(map(str, _PLACES), 0), **self._in_stage()}.items():
            in_stage.add_metric([stage], requests)
        yield in_stage
        under_way = GaugeMetricFamily(
            "mayfly_under_way",
            "Requests admitted and not yet answered, and the adaptations among them.",
            labels=["what"],
        )
        for what, count in self._under_way().items():
            under_way.add_metric([what], count)
        yield under_way


class Exposition:
    """What /metrics tells: all that a registry holds, of this replica.

    Behind one address several replicas answer in turn. With a label of their own their counters are
    counters each, not one that goes up and down.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry, self._replica = registry, secrets.token_hex(4)

    def collect(self) -> Iterator[Metric]:
        """As a registry's."""
        for metric in self._registry.collect():
            told = copy(metric)
            told.samples = [
                each._replace(labels={**each.labels, "replica": self._replica})
                for each in metric.samples
            ]
            yield told

    def told(self, accept: str) -> tuple[bytes, str]:
        """The text and its type, in the format that an Accept header asks for."""
        encode, media_type = choose_encoder(accept)
        return encode(self), media_type


def _reason(problem: Exception) -> str:
    error = to_http(problem)[1]["error"]
    return str(error["code"] or error["type"])
