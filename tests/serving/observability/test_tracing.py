"""Spans as a collector receives them over HTTP: their hierarchy, their attributes, and when there
are none.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving.errors import RequestError, StartError
from serving.observability.tracing import request_span, span, start_tracing, stop_tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector on a free port that stores the spans that it receives."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.resources: list[dict[str, str]] = []
        self.spans: dict[str, Any] = {}
        super().__init__(("127.0.0.1", 0), _Export)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def store(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(
                {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            )
            for scope in resource.scope_spans:
                self.spans |= {one.name: one for one in scope.spans}

    def attributes(self, name: str) -> dict[str, Any]:
        pairs = self.spans[name].attributes
        return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}

    def parent(self, name: str) -> str | None:
        above = self.spans[name].parent_span_id
        return next((one.name for one in self.spans.values() if one.span_id == above), None)


class _Export(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.store(self.path, self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A running collector whose address is in the environment."""
    for name in (*_ENDPOINTS, *_PROTOCOLS):
        monkeypatch.setenv(name, "")
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server
        stop_tracing()
        server.shutdown()
        thread.join()


async def test_the_stages_of_a_request_are_spans_below_its_own(collector: Collector) -> None:
    async def adapt() -> None:
        with span("select", strategy="sift") as set_attributes:
            await asyncio.sleep(0.02)
            set_attributes({"steps": 12, "stop": "alpha"})
        with span("train"):
            await asyncio.sleep(0)
        with span("load"):
            await asyncio.sleep(0)

    start_tracing()
    with request_span(None, {"http.request.method": "POST"}) as set_attributes:
        await asyncio.create_task(adapt())
        with span("generate"):
            await asyncio.sleep(0)
        set_attributes({"http.response.status_code": 200})
    stop_tracing()

    assert collector.paths == ["/v1/traces"]
    assert collector.resources[0]["service.name"] == "mayfly"
    assert {name: collector.parent(name) for name in collector.spans} == {
        "request": None,
        "select": "request",
        "train": "request",
        "load": "request",
        "generate": "request",
    }
    assert len({one.trace_id for one in collector.spans.values()}) == 1
    assert collector.attributes("select") == {"strategy": "sift", "steps": 12, "stop": "alpha"}
    assert collector.attributes("request") == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    select = collector.spans["select"]
    assert select.end_time_unix_nano - select.start_time_unix_nano >= 15e6


async def test_concurrent_requests_have_separate_traces(collector: Collector) -> None:
    async def request(number: int) -> None:
        with request_span(None, {}):
            await asyncio.sleep(0.01)
            with span(f"train {number}"):
                await asyncio.sleep(0.01)

    start_tracing()
    await asyncio.gather(*(request(number) for number in range(4)))
    stop_tracing()

    assert len({collector.spans[f"train {number}"].trace_id for number in range(4)}) == 4


def test_a_valid_traceparent_continues_the_callers_trace(collector: Collector) -> None:
    start_tracing()
    with request_span("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", {}):
        pass
    stop_tracing()

    assert collector.spans["request"].trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert collector.spans["request"].parent_span_id.hex() == "b7ad6b7169203331"


@pytest.mark.parametrize("traceparent", ["", "garbage", "00-0-0-0", "\x00", "00-" + "f" * 100_000])
def test_an_invalid_traceparent_starts_a_new_trace(collector: Collector, traceparent: str) -> None:
    start_tracing()
    with request_span(traceparent, {}):
        pass
    stop_tracing()

    assert collector.spans["request"].parent_span_id == b""


def test_an_error_is_recorded_by_its_type_without_its_message(collector: Collector) -> None:
    start_tracing()
    with pytest.raises(ValueError, match="my prompt"), request_span(None, {}), span("train"):
        raise ValueError("my prompt")
    stop_tracing()

    assert collector.attributes("train") == {"error.type": "ValueError"}
    # Status 2 is ERROR.
    assert collector.spans["train"].status.code == 2
    assert "my prompt" not in str(collector.spans)


def test_an_error_of_the_client_is_not_an_error_of_the_span(collector: Collector) -> None:
    start_tracing()
    with pytest.raises(RequestError), request_span(None, {}):
        raise RequestError("not JSON")
    stop_tracing()

    assert collector.attributes("request") == {"error.type": "RequestError"}
    assert collector.spans["request"].status.code == 0


async def test_a_disconnect_is_not_an_error_of_the_span(collector: Collector) -> None:
    async def request() -> None:
        with request_span(None, {}):
            await asyncio.sleep(60)

    start_tracing()
    task = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stop_tracing()

    assert collector.attributes("request") == {"error.type": "CancelledError"}
    assert collector.spans["request"].status.code == 0


def test_an_endpoint_for_traces_is_used_without_a_suffix(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/of-my-own")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mayfly-in-the-cellar")

    start_tracing()
    with request_span(None, {}):
        pass
    stop_tracing()

    assert collector.paths == ["/of-my-own"]
    assert collector.resources[0]["service.name"] == "mayfly-in-the-cellar"


def test_a_collector_that_hangs_delays_no_request(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    receiving, released = threading.Event(), threading.Event()

    def hang(path: str, body: bytes) -> None:
        receiving.set()
        released.wait(30)
        events.append("collected")

    monkeypatch.setattr(collector, "store", hang)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    start_tracing()
    with request_span(None, {}):
        pass
    assert receiving.wait(30)

    with request_span(None, {}) as set_attributes:
        set_attributes({"http.response.status_code": 200})
    events.append("answered")
    released.set()
    stop_tracing()

    assert events[0] == "answered"
    assert "collected" in events


def test_a_collector_that_is_gone_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Collector() as gone:
        url = gone.url
    for name in (*_ENDPOINTS, *_PROTOCOLS):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")

    start_tracing()
    with request_span(None, {}):
        pass
    stop_tracing()

    # The exporter itself logs that it could not send.
    assert any("opentelemetry" in record.name for record in caplog.records)


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"]
)
def test_an_endpoint_without_opentelemetry_is_a_start_error(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(
        StartError, match="pip install opentelemetry-sdk opentelemetry-exporter-otlp"
    ):
        start_tracing()


def test_an_unknown_protocol_is_a_start_error(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier pigeon")

    with pytest.raises(StartError, match="carrier pigeon"):
        start_tracing()


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    program = """
import sys
from serving.observability.tracing import request_span, span, start_tracing, stop_tracing
start_tracing()
caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
with request_span(caller, {"a": 1}), span("train") as set_attributes:
    set_attributes({"steps": 3})
stop_tracing()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    ran = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
