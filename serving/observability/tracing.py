"""Spans of requests for OpenTelemetry: where the time of one request went, told to a collector.

On when OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set; every other
variable of OpenTelemetry (headers, sampler, service name) is honoured by its SDK. Otherwise spans
cost nothing, and nothing of OpenTelemetry is imported. An exception is told by its type alone: its
message may hold a prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from serving.errors import StartError, is_the_clients

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanKind

Value = str | bool | int | float
Tell = Callable[[dict[str, Value]], None]

_provider: TracerProvider | None = None


def start_tracing() -> None:
    """Send spans from now on, if an endpoint is set. The process that answers calls it, before it
    starts vLLM.

    Raises:
        StartError: an endpoint is set, but what it takes is not installed, or the protocol is not
            known.
    """
    global _provider
    variables = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    endpoint = next((name for name in variables if os.environ.get(name)), None)
    if endpoint is None or _provider is not None:
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter()
    except ImportError as problem:
        raise StartError(
            f"{endpoint} is set, but spans cannot be sent ({problem}): "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp, or unset it"
        ) from problem
    name = os.environ.get("OTEL_SERVICE_NAME") or "mayfly"
    # Not the provider of the whole process: vLLM's own instrumentation would send through it, too.
    _provider = TracerProvider(resource=Resource.create({"service.name": name}))
    _provider.add_span_processor(BatchSpanProcessor(exporter))


def stop_tracing() -> None:
    """Send what has not left yet, and end."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


def request_span(
    traceparent: str | None, attributes: dict[str, Value]
) -> AbstractContextManager[Tell]:
    """The span of a whole request; part of the caller's trace where its `traceparent` header names
    one.
    """
    if _provider is None:
        return nullcontext(_nothing)
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return _span(
        "request", attributes, SpanKind.SERVER, TraceContextTextMapPropagator().extract(carrier)
    )


def span(name: str, **attributes: Value) -> AbstractContextManager[Tell]:
    """A span below the one in whose context this runs; what is learnt meanwhile is told to what
    `with` gives.
    """
    if _provider is None:
        return nullcontext(_nothing)
    from opentelemetry.trace import SpanKind

    return _span(name, attributes, SpanKind.INTERNAL, None)


@contextmanager
def _span(
    name: str, attributes: dict[str, Value], kind: SpanKind, context: Context | None
) -> Iterator[Tell]:
    from opentelemetry.trace import StatusCode

    assert _provider is not None
    tracer = _provider.get_tracer("mayfly")
    with tracer.start_as_current_span(
        name, context, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current.set_attributes
        except BaseException as problem:
            current.set_attribute("error.type", type(problem).__qualname__)
            # Nor is a client that leaves.
            if isinstance(problem, Exception) and not is_the_clients(problem):
                current.set_status(StatusCode.ERROR)
            raise


def _nothing(attributes: dict[str, Value]) -> None:
    pass


def _exporter() -> SpanExporter:
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(
        (os.environ[name] for name in variables if os.environ.get(name)), "http/protobuf"
    )
    # vLLM's own processes send spans of their start when they see an endpoint, and would take
    # another protocol.
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = protocol
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as OverHttp,
        )

        return OverHttp()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as OverGrpc,
        )

        return OverGrpc()
    raise StartError(
        f"spans are sent over http/protobuf or grpc, not over {protocol!r} (OTEL_EXPORTER_OTLP_PROTOCOL)"
    )
