"""Tells systemd how we are: ready, stopping, alive, and in a few words what we do.

    starting: more time, please --> running: READY, WATCHDOG --> stopping: STOPPING, more time, please

All of it is sent from the event loop, at intervals: if that is blocked, or the heartbeat is stuck, systemd hears
nothing, and restarts us, or does not wait any longer. Without systemd there is nobody to tell.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from typing import Self

import anyio

from .health import why_not_live, why_not_ready
from .tree import Supervisor

log = logging.getLogger(__name__)

_INTERVAL_SECONDS_MAX = 5.0
_MORE_TIME_SECONDS = 30


class Systemd:
    """See the module.

    Args:
        address: of the socket, as `NOTIFY_SOCKET` has it.
        watchdog_seconds: how long systemd goes without a word from us; None if it does not care.
    """

    def __init__(self, address: str, watchdog_seconds: float | None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watched = watchdog_seconds is not None
        self._interval_seconds = min((watchdog_seconds or 2 * _INTERVAL_SECONDS_MAX) / 2, _INTERVAL_SECONDS_MAX)
        self._failed = False

    @classmethod
    def take_from(cls, environ: MutableMapping[str, str]) -> Self | None:
        """From what systemd put there, which is taken out: it is meant for this process, not for its children."""
        address, microseconds, pid = (
            environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        if not address.startswith(("/", "@")):
            return None
        watched = (
            microseconds.isdecimal()
            and len(microseconds) <= 18
            and int(microseconds) > 0
            and pid in ("", str(os.getpid()))
        )
        return cls(address, int(microseconds) / 1e6 if watched else None)

    async def run(self, supervisor: Supervisor) -> None:
        """Tell until the supervisor has stopped."""
        await self._tell_until(supervisor.started, supervisor, [_more_time()])
        await self._tell_until(supervisor.stop_asked, supervisor, ["READY=1"])
        await self._tell_until(supervisor.stopped, supervisor, ["STOPPING=1", _more_time()])

    async def _tell_until(self, next_phase: anyio.Event, supervisor: Supervisor, words: list[str]) -> None:
        while not next_phase.is_set():
            live = not why_not_live(supervisor)
            alive = ["WATCHDOG=1"] if self._watched else []
            self._send([*(words + alive if live else []), f"STATUS={_status(supervisor)}"])
            with anyio.move_on_after(self._interval_seconds):
                await next_phase.wait()

    def _send(self, words: list[str]) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(words).encode(), self._address)
        except OSError as error:
            if not self._failed:
                log.warning("systemd cannot be told how we are: %s", error)
            self._failed = True
        else:
            self._failed = False


def _more_time() -> str:
    """However long systemd would wait otherwise: a start that migrates, and a stop that drains, are bounded by us."""
    return f"EXTEND_TIMEOUT_USEC={_MORE_TIME_SECONDS * 1_000_000}"


def _status(supervisor: Supervisor) -> str:
    counts = supervisor.completer.counts
    state = "; ".join(why_not_ready(supervisor)) or "ready"
    return (
        f"{state}: {len(supervisor.pool.busy)} of {len(supervisor.pool.executors)} slots busy, "
        f"{counts.succeeded} succeeded, {counts.retried} retried, {counts.failed} failed"
    )
