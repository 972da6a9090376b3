"""Tells what happens here to the sinks of the application and to the hosted service, without ever waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from durablestack.events import Event, EventSink, EventType
from durablestack.events.delivery import Delivery
from durablestack.options import DurableStackOptions, redact
from durablestack.runs import Failure, Outcome, Run
from durablestack.stores.contract import ExpiredRun


class Course(Struct, frozen=True, gc=False):
    """What is known of an attempt besides its outcome."""

    duration_seconds: float | None = None
    """As long as the job took in its child; of one whose child died, from when its turn came until the death."""
    trace_id: str | None = None
    span_id: str | None = None
    quarantined: bool = False
    """It has crashed once too often: whatever attempts are left, there is no other one."""


NOT_BEGUN = Course()

Told = tuple[Run, Outcome, Course]
"""How an attempt at a run has ended."""


class Emit(Protocol):
    """How the actors tell. Never waits, never raises, from any thread."""

    def __call__(
        self,
        event_type: EventType,
        run: Run | ExpiredRun | None = None,
        *,
        course: Course = NOT_BEGUN,
        message: str | None = None,
        failure: Failure | None = None,
        retry_at: datetime | None = None,
    ) -> None: ...


class Bus:
    """Each sink has a thread and a bounded buffer of its own.

    Raises:
        OptionsError: the credentials of the hosted service cannot be sent.
    """

    def __init__(self, options: DurableStackOptions, sinks: Iterable[EventSink] = ()) -> None:
        eventing = options.eventing
        self._worker_name = options.worker_name
        self._include_error_detail = eventing.include_error_detail
        self._error_detail_length_max = eventing.max_error_detail_length
        self._secrets = options.secrets()
        self._closing = threading.Event()
        self._deliveries = [Delivery(sink, self._shaped, self._closing) for sink in sinks]
        if eventing.ingestion_enabled:
            from durablestack.events.ingestion import IngestionSink  # an HTTP client, for those who ask only

            self._deliveries.append(
                Delivery(
                    IngestionSink(
                        eventing,
                        worker_name=options.worker_name,
                        service_name=options.application_name,
                        closing=self._closing,
                    ),
                    self._shaped,
                    self._closing,
                    gather_seconds=eventing.ingestion_flush_interval_seconds,
                    batch_size=eventing.ingestion_max_batch_size,
                )
            )

    @property
    def dropped(self) -> dict[str, int]:
        """How many events each sink missed, because it did not keep up."""
        return {delivery.name: delivery.dropped for delivery in self._deliveries}

    def add(self, sink: EventSink) -> None:
        """One more sink, before the start."""
        self._deliveries.append(Delivery(sink, self._shaped, self._closing))

    def start(self) -> None:
        for delivery in self._deliveries:
            delivery.start()

    def emit(
        self,
        event_type: EventType,
        run: Run | ExpiredRun | None = None,
        *,
        course: Course = NOT_BEGUN,
        message: str | None = None,
        failure: Failure | None = None,
        retry_at: datetime | None = None,
    ) -> None:
        if not self._deliveries:
            return
        now = datetime.now(UTC)
        event = Event(
            event_type=event_type,
            occurred_at=now,
            worker_name=self._worker_name,
            run_id=run.id if isinstance(run, Run) else run.run_id if run is not None else None,
            job_name=run.job_name if run is not None else None,
            attempt=run.attempt if run is not None else None,
            max_attempts=run.max_attempts if isinstance(run, Run) else None,
            duration_ms=None if course.duration_seconds is None else round(course.duration_seconds * 1000),
            queue_wait_ms=_waited_ms(run, now) if event_type is EventType.JOB_STARTED else None,
            message=message,
            error_type=failure.error_type if failure is not None else None,
            error_message=failure.error_message if failure is not None else None,
            error_detail=failure.error_detail if failure is not None and self._include_error_detail else None,
            retry_at=retry_at,
            trace_id=course.trace_id,
            span_id=course.span_id,
        )
        for delivery in self._deliveries:
            delivery.put(event)

    def close(self, within_seconds: float) -> None:
        """No more events come: hand over those that wait, within this time for all sinks together."""
        deadline = time.monotonic() + within_seconds
        self._closing.set()
        for delivery in self._deliveries:
            delivery.hurry()
        for delivery in self._deliveries:
            delivery.join(deadline - time.monotonic())

    def _shaped(self, event: Event) -> Event:
        """As it may be shown: secrets go before the text is cut, for half a secret would not be known as one."""
        if event.message is None and event.error_message is None:
            return event
        detail = self._redacted(event.error_detail)
        return replace(
            event,
            message=self._redacted(event.message),
            error_message=self._redacted(event.error_message),
            error_detail=detail and detail[: self._error_detail_length_max],
        )

    def _redacted(self, text: str | None) -> str | None:
        return text and redact(text, self._secrets)


def _waited_ms(run: Run | ExpiredRun | None, now: datetime) -> int | None:
    """Since the run was due; never less than nothing, whatever the clocks of worker and database make of each other."""
    if not isinstance(run, Run):
        return None
    return max(0, round((now - run.scheduled_for).total_seconds() * 1000))
