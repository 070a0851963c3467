"""The span of a request, kept with the job that it asked for."""

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from core.infra import tracing
from core.jobs import attempts
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE

ASKING = SpanContext(trace_id=0xA1, span_id=0xB2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def test_an_attempt_lies_below_the_request_that_asked_for_its_job(sessions: Sessions, make_job: MakeJob) -> None:
    with trace.use_span(NonRecordingSpan(ASKING)):
        make_job()
    with sessions.begin() as session:
        attempt = attempts.claim(session, "w1", LEASE)
    assert attempt is not None
    above = trace.get_current_span(tracing.from_there(attempt.traceparent)).get_span_context()
    assert (above.trace_id, above.span_id, above.trace_flags) == (0xA1, 0xB2, TraceFlags.SAMPLED)


def test_where_nothing_is_traced_nothing_is_kept(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    with sessions.begin() as session:
        attempt = attempts.claim(session, "w1", LEASE)
    assert attempt is not None
    assert attempt.traceparent is None
    assert not trace.get_current_span(tracing.from_there(None)).get_span_context().is_valid
