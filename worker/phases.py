"""Trace the phases of a training process.

Each phase that the process reports becomes a span of the attempt. The worker does this, because the process has no
network. See `core.infra.tracing`.
"""

from opentelemetry.trace import Span, StatusCode

from core.infra.tracing import TRACER
from core.states import Phase
from worker.protocol import Failed, Message, Progressed


class Phases:
    """Traces the messages of one training process. A span starts with a phase's first report."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._span: Span | None = None

    def record(self, message: Message) -> None:
        """Record a message that the process has just sent."""
        match message:
            case Progressed(phase=phase) if phase != self._phase:
                self.end()
                self._phase, self._span = phase, TRACER.start_span(phase)
            case Failed(code=code):
                self.end(code)

    def end(self, code: str = "") -> None:
        """End the span of the last phase. `code` is the error with which the phase ended."""
        if self._span and code:
            self._span.set_status(StatusCode.ERROR, code)
        if self._span:
            self._span.end()
        self._span = None
