"""Sinks for tests: one that keeps what it hears, one that hangs, one that raises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from uuid import UUID

from durablestack.events import Event, EventType

PATIENCE_SECONDS = 30.0


class Listener:
    """Keeps all it hears. May be waited at."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.calls: list[int] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()
        self._changed = threading.Condition()

    def emit(self, events: Sequence[Event]) -> None:
        with self._changed:
            self.calls.append(len(events))
            self.threads.add(threading.get_ident())
            self.events += events
            self._changed.notify_all()

    def close(self) -> None:
        self.closed.set()

    def until(self, heard: Callable[[list[Event]], bool]) -> list[Event]:
        with self._changed:
            assert self._changed.wait_for(lambda: heard(self.events), PATIENCE_SECONDS), self.events
            return list(self.events)

    def until_count(self, count: int) -> list[Event]:
        return self.until(lambda events: len(events) >= count)

    def until_type(self, event_type: EventType) -> Event:
        events = self.until(lambda events: any(event.event_type is event_type for event in events))
        return next(event for event in events if event.event_type is event_type)

    def types_of(self, run_id: UUID, attempt: int | None = None) -> list[str]:
        return [
            event.event_type.value
            for event in self.events
            if event.run_id == run_id and (attempt is None or event.attempt == attempt)
        ]


class Hanging:
    """Its first call does not return for an hour, unless the test lets it."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.called = threading.Event()
        self.calls = 0

    def emit(self, events: Sequence[Event]) -> None:
        self.calls += 1
        self.called.set()
        self.let_go.wait(3600)


class Raising:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or ValueError("this sink always raises")
        self.calls = 0

    def emit(self, events: Sequence[Event]) -> None:
        self.calls += 1
        raise self.error
