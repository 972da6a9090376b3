"""Spans round enqueueing and execution, by OpenTelemetry, where the application uses it.

    client --send {job}--> trace_context, stored with the run --> child --process {job}, linked to it

Only the API of OpenTelemetry is used, and only once the application has loaded it: without it nothing happens, and
without a configured provider close to nothing. Names follow its semantic conventions for messaging.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from durablestack.options import TraceRelation, redact

log = logging.getLogger(__name__)

SOURCE = "DurableStack"
"""The name of the tracer and of the meter, as the documents have it."""

_TRACE_CONTEXT_LENGTH_MAX = 4_096
_CARRIER = msgspec.json.Decoder(dict[str, str])


def loaded() -> bool:
    """Whether the application has brought OpenTelemetry into this process."""
    return "opentelemetry.trace" in sys.modules


class ExecutionSpan:
    """The span of one attempt; empty ids where nobody traces."""

    def __init__(self, span: Any = None) -> None:
        self._span = span
        context = span.get_span_context() if span is not None else None
        traced = context is not None and context.is_valid
        self.trace_id = f"{context.trace_id:032x}" if context is not None and traced else ""
        self.span_id = f"{context.span_id:016x}" if context is not None and traced else ""

    def failed(self, error_type: str, error_message: str) -> None:
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        try:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(Status(StatusCode.ERROR, redact(error_message)))
        except Exception:
            log.warning("the span could not be told of the error", exc_info=True)


_UNTRACED = nullcontext(ExecutionSpan())


class Execution(Struct, frozen=True, kw_only=True):
    """What a span says of an attempt."""

    run_id: UUID
    job_name: str
    attempt: int
    worker_name: str
    trace_context: str | None


@contextmanager
def sending(job_name: str, count: int) -> Iterator[str | None]:
    """A span round the storing of runs; gives the trace context to be stored with them, None if there is none."""
    if not loaded():
        yield None
        return
    from opentelemetry import trace

    attributes: dict[str, Any] = {**_messaging(job_name, "send"), "messaging.batch.message_count": count}
    with _spanned(
        lambda: trace.get_tracer(SOURCE).start_as_current_span(
            f"send {job_name}", kind=trace.SpanKind.PRODUCER, attributes=attributes
        )
    ) as span:
        yield None if span is None else _injected()


def executing(execution: Execution, relation: TraceRelation) -> AbstractContextManager[ExecutionSpan]:
    """A span round the execution of an attempt, linked to whoever enqueued the run, or as its child."""
    return _executing(execution, relation) if loaded() else _UNTRACED


@contextmanager
def _executing(execution: Execution, relation: TraceRelation) -> Iterator[ExecutionSpan]:
    with _spanned(lambda: _execution_span(execution, relation)) as span:
        yield ExecutionSpan(span)


@contextmanager
def _spanned(start: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
    """A span round the block, if there can be one: what a tracer of the application does wrong costs no run."""
    span, leave = None, None
    try:
        current = start()
        span, leave = current.__enter__(), current.__exit__
    except Exception:
        log.warning("there is no span, the tracer failed", exc_info=True)
    try:
        yield span
    finally:
        try:
            if leave is not None:
                leave(None, None, None)
        except Exception:
            log.warning("a span was not ended, the tracer failed", exc_info=True)


def _execution_span(execution: Execution, relation: TraceRelation) -> AbstractContextManager[Any]:
    from opentelemetry import trace

    origin = _extracted(execution.trace_context)
    sender = trace.get_current_span(origin).get_span_context() if origin is not None else None
    known = sender is not None and sender.is_valid
    is_parent = known and relation is TraceRelation.PARENT
    return trace.get_tracer(SOURCE).start_as_current_span(
        f"process {execution.job_name}",
        context=origin if is_parent else None,
        kind=trace.SpanKind.CONSUMER,
        links=[trace.Link(sender)] if sender is not None and known and not is_parent else [],
        attributes={
            **_messaging(execution.job_name, "process"),
            "messaging.message.id": str(execution.run_id),
            "durablestack.job.name": execution.job_name,
            "durablestack.job.attempt": execution.attempt,
            "durablestack.worker": execution.worker_name,
        },
    )


def flush(within_seconds: float) -> None:
    """Let spans and measurements leave this process before it ends without ceremony."""
    if not loaded():
        return
    from opentelemetry import metrics, trace

    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        force_flush = getattr(provider, "force_flush", None)
        if force_flush is not None:
            try:
                force_flush(int(within_seconds * 1000))
            except Exception as error:  # an exporter is the application's, and whatever it does must not hold us
                log.debug("telemetry could not be flushed: %s", error)


def _messaging(job_name: str, operation: str) -> Mapping[str, str]:
    return {
        "messaging.system": "durablestack",
        "messaging.operation.type": operation,
        "messaging.operation.name": operation,
        "messaging.destination.name": job_name,
    }


def _injected() -> str | None:
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    try:
        propagate.inject(carrier)
    except Exception:
        log.warning("the trace cannot be carried on, the propagator failed", exc_info=True)
    text = msgspec.json.encode(carrier).decode()
    return text if carrier and len(text) <= _TRACE_CONTEXT_LENGTH_MAX else None


def _extracted(trace_context: str | None) -> Any:
    if trace_context is None:
        return None
    from opentelemetry import propagate

    try:
        return propagate.extract(_CARRIER.decode(trace_context))
    except msgspec.MsgspecError:  # altered by hand: an execution without its origin is still one
        return None
