"""Where there is no guard: a thread in the child, which ends it when its deadline has passed or its parent has gone.

A job that holds the GIL holds it up too, and a process that is stopped has no running thread. A guard knows neither
limit; this is what can be had without one.
"""

from __future__ import annotations

import os
import signal
import threading

from .leases import boottime

_LOOK_EVERY_SECONDS = 0.5


class Watchdog:
    """Its thread begins with the first word about trust: where there is a guard, there is none."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._until: float | None = None  # written by the listener, read by the thread
        self._told = threading.Event()
        self._thread: threading.Thread | None = None

    def trust_until(self, until: float | None) -> None:
        self._until = until
        self._told.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="durablestack-watchdog", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._is_over():
            self._told.wait(self._rest_seconds())
            self._told.clear()
        os.killpg(0, signal.SIGKILL)  # ourselves, and what jobs have started

    def _is_over(self) -> bool:
        until = self._until
        return os.getppid() != self._parent or (until is not None and until <= boottime())

    def _rest_seconds(self) -> float:
        """Not for long: neither a suspended machine nor the death of a parent wakes us."""
        until = self._until
        return _LOOK_EVERY_SECONDS if until is None else max(0.0, min(until - boottime(), _LOOK_EVERY_SECONDS))
