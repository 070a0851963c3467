"""The span of a request is stored with the job that the request created."""

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from core.infra import tracing
from tests import claims
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE

REQUEST_SPAN = SpanContext(trace_id=0xA1, span_id=0xB2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def test_the_request_that_created_a_job_is_the_parent_of_its_attempts(sessions: Sessions, make_job: MakeJob) -> None:
    with trace.use_span(NonRecordingSpan(REQUEST_SPAN)):
        make_job()
    with sessions.begin() as session:
        attempt = claims.claim(session, "w1", LEASE)
    assert attempt is not None
    parent = trace.get_current_span(tracing.parent_context(attempt.traceparent)).get_span_context()
    assert (parent.trace_id, parent.span_id, parent.trace_flags) == (0xA1, 0xB2, TraceFlags.SAMPLED)


def test_without_tracing_nothing_is_stored(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    with sessions.begin() as session:
        attempt = claims.claim(session, "w1", LEASE)
    assert attempt is not None
    assert attempt.traceparent is None
    assert not trace.get_current_span(tracing.parent_context(None)).get_span_context().is_valid
