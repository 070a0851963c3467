"""Traces with OpenTelemetry. One trace covers a job from its HTTP request to its checkpoint, in all processes.

Tracing is on if `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, and
`OTEL_TRACES_EXPORTER` is `otlp` or not set. The SDK reads the other standard variables. FastAPI creates the spans of
requests, and modules that use `TRACER` create the spans of jobs. The trace context is stored in the job's row. The
worker traces the phases that the training process reports.
"""

import os

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACER = trace.get_tracer("seft")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_W3C = TraceContextTextMapPropagator()


def configure(process: str) -> None:
    """Start to export the spans of this process under the service name `seft-<process>`. Call it once, at the start.

    Does nothing if tracing is off. Raises ImportError if tracing is on and its packages are not installed.
    """
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = (
            f"{variable} is set, but OpenTelemetry's SDK is not installed. Run pip install --editable"
            " '.[telemetry]' in the checkout, or unset the variable."
        )
        raise ImportError(message) from error
    name = os.environ.get("OTEL_SERVICE_NAME", f"seft-{process}")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def current_traceparent() -> str | None:
    """Return the current span in the W3C format `traceparent`. Returns None if there is no current span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


def parent_context(traceparent: str | None) -> Context:
    """Return the trace context of a `traceparent` value. Spans that are started in it belong to that trace."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())
