"""A tracer that fails costs its span: neither the run that is enqueued, nor the attempt that is executed."""

from uuid import uuid4

import pytest
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from durablestack.events.tracing import Execution, executing, sending
from durablestack.options import TraceRelation

EXECUTION = Execution(run_id=uuid4(), job_name="job", attempt=1, worker_name="worker", trace_context=None)


class Broken(SpanProcessor):
    def __init__(self, *, at_start: bool) -> None:
        self._at_start = at_start

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._at_start:
            raise RuntimeError("broken at the start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("broken at the end")


@pytest.fixture(params=[True, False], ids=["at_start", "at_end"])
def broken_tracer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken(at_start=request.param))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)


@pytest.mark.usefixtures("broken_tracer")
def test_what_is_sent_is_stored_once_and_no_error_says_otherwise() -> None:
    stored = 0
    with sending("job", 1):
        stored += 1
    assert stored == 1


@pytest.mark.usefixtures("broken_tracer")
def test_an_attempt_keeps_its_outcome() -> None:
    with executing(EXECUTION, TraceRelation.LINK) as span:
        span.failed("ValueError", "boom")


def test_a_span_that_cannot_be_told_of_an_error_does_not_raise_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no attributes here")

    monkeypatch.setattr(trace, "get_tracer", TracerProvider().get_tracer)
    with executing(EXECUTION, TraceRelation.LINK) as span:
        monkeypatch.setattr(span._span, "set_attribute", refuse)
        span.failed("ValueError", "boom")


def test_what_stores_may_raise_and_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer", TracerProvider().get_tracer)
    with pytest.raises(ValueError, match="the store"), sending("job", 1):
        raise ValueError("the store")


def test_a_propagator_that_fails_costs_the_trace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("nothing is carried")

    monkeypatch.setattr(trace, "get_tracer", TracerProvider().get_tracer)
    monkeypatch.setattr(propagate, "inject", refuse)
    with sending("job", 1) as trace_context:
        assert trace_context is None
