"""OpenTelemetry spans of requests.

Spans are sent when OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set; the
SDK reads the other variables of OpenTelemetry (headers, sampler, service name) itself. Otherwise
spans cost nothing, and OpenTelemetry is not imported. Of an exception only the type is recorded,
since its message may contain a prompt.
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
SetAttributes = Callable[[dict[str, Value]], None]

_provider: TracerProvider | None = None


def start_tracing() -> None:
    """Send spans from now on, if an endpoint is set.

    The process that answers requests calls this before it starts vLLM.

    Raises:
        StartError: an endpoint is set, but OpenTelemetry is not installed or the protocol is
            unknown.
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
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp, or unset the variable"
        ) from problem
    name = os.environ.get("OTEL_SERVICE_NAME") or "mayfly"
    # It is not set as the provider of the process, since vLLM would send its own spans through it.
    _provider = TracerProvider(resource=Resource.create({"service.name": name}))
    _provider.add_span_processor(BatchSpanProcessor(exporter))


def stop_tracing() -> None:
    """Send the remaining spans and stop."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


def request_span(
    traceparent: str | None, attributes: dict[str, Value]
) -> AbstractContextManager[SetAttributes]:
    """The span of a whole request.

    Args:
        traceparent: the request's header of that name, whose trace the span becomes a part of.
        attributes: attributes of the span.

    Returns:
        A context manager that gives a function to set further attributes.
    """
    if _provider is None:
        return nullcontext(_nothing)
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return _span(
        "request", attributes, SpanKind.SERVER, TraceContextTextMapPropagator().extract(carrier)
    )


def span(name: str, **attributes: Value) -> AbstractContextManager[SetAttributes]:
    """A span below the current one.

    Returns:
        A context manager that gives a function to set further attributes.
    """
    if _provider is None:
        return nullcontext(_nothing)
    from opentelemetry.trace import SpanKind

    return _span(name, attributes, SpanKind.INTERNAL, None)


@contextmanager
def _span(
    name: str, attributes: dict[str, Value], kind: SpanKind, context: Context | None
) -> Iterator[SetAttributes]:
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
            # A client that disconnects, or makes a mistake, is not an error of the server.
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
    # vLLM's own processes send spans of their start to the same endpoint, by default with another
    # protocol.
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
    raise StartError(f"unknown OTEL_EXPORTER_OTLP_PROTOCOL {protocol!r}: use http/protobuf or grpc")
