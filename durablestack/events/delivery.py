"""One sink, the events that wait for it, and the thread that brings them.

    put --> waiting (bounded) --> gather for a moment --> sink.emit, in the thread

Nobody who puts an event ever waits: where there is no room the event is dropped and counted. A sink that raises,
dawdles or hangs loses its own events, and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from .event import Event
from .sinks import EventSink

log = logging.getLogger(__name__)

WAITING_EVENTS_MAX = 10_000
"""Per sink. An event is a few hundred bytes; with error details it may be several thousand."""

HANDED_OVER_MAX = 1_000
_GATHER_SECONDS = 0.05
_TELL_AGAIN_SECONDS = 30.0


class Seldom:
    """Counts what may happen often, and says when to speak of it: the first time, then at most twice a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.untold = 0
        self._clock = clock
        self._told_at: float | None = None

    def count(self, number: int) -> int:
        """Count; return how many to tell of now, 0 if this is not the time."""
        self.untold += number
        now = self._clock()
        if self._told_at is not None and now < self._told_at + _TELL_AGAIN_SECONDS:
            return 0
        self._told_at, told, self.untold = now, self.untold, 0
        return told


class Delivery:
    """See the module.

    Args:
        shape: makes of an event what the sink is to see; called in the thread, for it may take a while.
        closing: set when no more events come; shared with whoever else should hurry then.
        gather_seconds, batch_size: events are handed over this long after the first of them was put, or as soon as
            there are so many.
    """

    def __init__(
        self,
        sink: EventSink,
        shape: Callable[[Event], Event],
        closing: threading.Event,
        *,
        gather_seconds: float = _GATHER_SECONDS,
        batch_size: int = HANDED_OVER_MAX,
    ) -> None:
        self.name = type(sink).__name__
        self.dropped = 0
        self._sink = sink
        self._shape = shape
        self._closing = closing
        self._gather_seconds = gather_seconds
        self._batch_size = min(batch_size, HANDED_OVER_MAX)
        self._lock = threading.Lock()  # around what follows
        self._waiting: deque[Event] = deque()
        self._drops = Seldom()
        self._some = threading.Event()  # set while there is an event
        self._enough = threading.Event()  # set while there are as many as a batch
        self._failures = Seldom()
        self._given_up = False
        self._thread = threading.Thread(target=self._live, name=f"durablestack-events-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, event: Event) -> None:
        """Take an event in, or drop it. From any thread; never waits, never raises."""
        with self._lock:
            if len(self._waiting) < WAITING_EVENTS_MAX:
                self._waiting.append(event)
                waiting, tell = len(self._waiting), 0
            else:
                self.dropped += 1
                waiting, tell = 0, self._drops.count(1)
        if waiting == 1:
            self._some.set()
        if waiting == self._batch_size:
            self._enough.set()
        if tell:  # told here, for the thread of the sink may be the one that hangs
            self._tell_dropped(tell)

    def _tell_dropped(self, count: int) -> None:
        log.warning("event sink %s does not keep up: %d events were dropped", self.name, count)

    # --- the end

    def hurry(self) -> None:
        """`closing` has been set: hand over what waits, without gathering."""
        self._some.set()
        self._enough.set()

    def join(self, within_seconds: float) -> None:
        """Wait for the last events to be handed over, and the sink to be closed; then leave it alone."""
        if self._thread.ident is not None:
            self._thread.join(max(within_seconds, 0.0))
        if self._thread.is_alive():
            self._given_up = True
            waiting = len(self._waiting)
            log.warning("event sink %s did not end in time: %d events and more were not delivered", self.name, waiting)
        if self._drops.untold:
            self._tell_dropped(self._drops.untold)

    # --- the thread

    def _live(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._enough.wait(self._gather_seconds)
            self._hand_over()
        while not self._given_up and self._hand_over():
            continue
        close = getattr(self._sink, "close", None)
        if close is not None:
            self._guarded(close, 0)
        if self._failures.untold:
            log.warning("event sink %s failed; %d more events are lost to it", self.name, self._failures.untold)

    def _hand_over(self) -> bool:
        """Hand over what waits, up to a bound; return whether there was anything."""
        events = self._take()
        if events:
            self._guarded(lambda: self._sink.emit([self._shape(event) for event in events]), len(events))
        return bool(events)

    def _take(self) -> list[Event]:
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), HANDED_OVER_MAX))]
            if not self._waiting:
                self._some.clear()
            if len(self._waiting) < self._batch_size:
                self._enough.clear()
        return taken

    def _guarded(self, call: Callable[[], None], events: int) -> None:
        try:
            call()
        except BaseException as error:  # a sink is a stranger's code; even sys.exit() in it ends nothing of ours
            if told := self._failures.count(max(events, 1)):
                log.warning("event sink %s failed; %d events are lost to it", self.name, told, exc_info=error)
