"""Events: what happens to runs and workers, told to whoever listens, in threads that hold up nobody.

    emit -> Delivery: a bounded buffer and a thread -> sink        as many as there are sinks, each on its own

A sink hears of runs; it never has a say in them.
"""

from .event import Event, EventType
from .sinks import EventSink, LoggingEventSink

__all__ = ["Event", "EventSink", "EventType", "LoggingEventSink"]
