"""Trace the phases of a training process.

Each phase becomes a span in the trace of the job. See `core.infra.tracing`.
"""

import os
from collections.abc import Callable

from opentelemetry.trace import Span, StatusCode

from core.infra import tracing
from core.states import Phase
from worker.protocol import Failed, Finished, Message, NoDiskSpace, Progressed, Stopped


class Phases:
    """Passes messages on to the worker and traces them.

    A span starts with a phase's first report and ends with the next phase.
    """

    def __init__(self, say: Callable[[Message], None]) -> None:
        self._say = say
        self._parent = tracing.parent_context(os.environ.get(tracing.VARIABLE))
        self._phase: Phase | None = None
        self._span: Span | None = None

    def __call__(self, message: Message) -> None:
        """Pass a message on.

        Before a final message, send all spans, because the worker may kill the process after it.
        """
        match message:
            case Progressed(phase=phase) if phase != self._phase:
                self._end()
                self._phase, self._span = phase, tracing.TRACER.start_span(phase, self._parent)
            case Failed(code=code):
                self._end(code)
                tracing.flush()
            case Finished() | Stopped() | NoDiskSpace():
                self._end()
                tracing.flush()
        self._say(message)

    def _end(self, code: str = "") -> None:
        if self._span and code:
            self._span.set_status(StatusCode.ERROR, code)
        if self._span:
            self._span.end()
        self._span = None
