"""Jobs of an application whose events go to the file EVENTS_FILE, one JSON object a line."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from chaos_jobs import once
from durablestack import DurableStack, Event

__all__ = ["once"]

stack = DurableStack(__name__)


class EventsToFile:
    def emit(self, events: Sequence[Event]) -> None:
        if path := os.environ.get("EVENTS_FILE"):
            with Path(path).open("ab") as file:
                file.writelines(msgspec.json.encode(event) + b"\n" for event in events)


stack.add_event_sink(EventsToFile())
