"""Traces, where OpenTelemetry is on: one from the request that asks for a job to its checkpoint, through all processes.

It is on where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, or the same for traces alone; the other standard variables are the
SDK's. Requests become spans in FastAPI; what is done to a job becomes spans where `TRACER` is used. The context is kept
in the job's row, and given to the training process in the variable `TRACEPARENT`. Off, all of this costs nothing.
"""

import os

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACER = trace.get_tracer("seft")
VARIABLE = "TRACEPARENT"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSH_SECONDS = 2.0
_W3C = TraceContextTextMapPropagator()


def configure(process: str) -> None:
    """Send this process's spans to where the variables say; call it once, at the start. Its name is `seft-<process>`.

    ImportError where the variables ask for it and the packages are not there.
    """
    asked = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if asked is None or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        told = f"{asked} is set, and OpenTelemetry's SDK is not installed. Install the extra `telemetry`."
        raise ImportError(told) from error
    name = os.environ.get("OTEL_SERVICE_NAME", f"seft-{process}")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Send what is not sent yet, before a process that may be killed says that it is done."""
    if flushing := getattr(trace.get_tracer_provider(), "force_flush", None):
        flushing(int(1000 * FLUSH_SECONDS))


def here() -> str | None:
    """The current span, as a row or a variable keeps it; None where nothing is traced."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


def from_there(traceparent: str | None) -> Context:
    """The context that `here` has written down, for spans that belong below it."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())
