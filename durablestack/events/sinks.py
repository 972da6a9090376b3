"""Who is told of events: the contract, and the sink that writes them to the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from durablestack.text import on_one_line

from .event import Event, EventType

log = logging.getLogger("durablestack.events")

_WORTH_A_LOOK = frozenset(
    {
        EventType.JOB_FAILED,
        EventType.LEASE_LOST,
        EventType.RUN_QUARANTINED,
        EventType.CHILD_CRASHED,
        EventType.CLOCK_JUMP_DETECTED,
    }
)
_LOGGED = (
    "run_id",
    "job_name",
    "attempt",
    "worker_name",
    "duration_ms",
    "retry_at",
    "error_type",
    "error_message",
    "message",
)


class EventSink(Protocol):
    """Listens to the events of one supervisor.

    `emit` is called in a thread that belongs to this sink alone, with one or more events in the order in which they
    happened. It may take its time: then events gather, and beyond a bound they are dropped and counted. What it
    raises is logged, and the events of that call are lost to this sink.

    A sink may also have `close()`, which is called in the same thread after the last events.

    The application's modules are imported in child processes too: open connections at the first `emit`, not when
    the sink is made.
    """

    def emit(self, events: Sequence[Event]) -> None: ...


class LoggingEventSink:
    """Writes each event as one line to the logger `durablestack.events`."""

    def emit(self, events: Sequence[Event]) -> None:
        for event in events:
            level = logging.WARNING if event.event_type in _WORTH_A_LOOK else logging.INFO
            if log.isEnabledFor(level):
                log.log(level, "%s: %s", event.event_type.value, _told(event))


def _told(event: Event) -> str:
    fields = ((name, getattr(event, name)) for name in _LOGGED)
    return " ".join(f"{name}={on_one_line(str(value))}" for name, value in fields if value is not None)
