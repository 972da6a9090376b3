"""What a run leaves in its child: compared before and after, so that a child that is not as it was is replaced.

What cannot be seen, such as a patched function of the application, stays; `fresh_process_per_run` is for jobs that do
such things.
"""

from __future__ import annotations

import asyncio
import datetime
import locale
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .usage import children, status

_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_KEPT_BY_THE_LOOP = "asyncio_"

PROCESSES = "processes"


class Residue:
    """How this process was when it was made ready, and whether it still is so."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._ready = _look(runner)

    @property
    def found(self) -> tuple[str, ...]:
        """What is not as it was, in words."""
        try:
            now = _look(self._runner)
            return tuple(what for what, was in self._ready.items() if now[what] != was)
        except BaseException as error:  # a job has put things of its own in the place of those that we look at
            return (f"what raises {type(error).__name__}"[:50],)

    def forgive(self) -> None:
        """From here on this is how it is to be."""
        self._ready = _look(self._runner)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """What changes meanwhile is to stay: a service for all runs is made. What a run left before is not forgiven."""
        found_before = self.found
        yield
        if not found_before:
            self.forgive()


def _look(runner: asyncio.Runner) -> dict[str, object]:
    """The state of this process that one run may spoil for the next."""
    return {
        "folder": _folder(),
        "signal handlers": [*map(signal.getsignal, _SIGNALS)],
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "recursion limit": sys.getrecursionlimit(),
        "resource limits": [*map(resource.getrlimit, _LIMITS)],
        "standard streams": [(id(stream), getattr(stream, "closed", None)) for stream in (sys.stdout, sys.stderr)],
        "descriptors": (_open_file(1), _open_file(2)),
        "threads": _threads(),
        "event loop": runner.get_loop().is_closed(),
        PROCESSES: {*children(os.getpid())},
        "environment": dict(getattr(os.environ, "_data", os.environ)),  # its values as they are, which is quick
        "umask": _umask(),
        "sys.path": [*sys.path],
        "locale": locale.setlocale(locale.LC_ALL),
        "socket timeout": socket.getdefaulttimeout(),
        "clocks": (time.time, time.monotonic, time.perf_counter, time.sleep, datetime.datetime, datetime.date),
    }


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _open_file(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _threads() -> int:
    """Threads that would keep a process from ending; those of the event loop's own pool are meant to stay."""
    return sum(not t.daemon and not t.name.startswith(_KEPT_BY_THE_LOOP) for t in threading.enumerate())


def _umask() -> bytes:
    """As the kernel tells it, for to ask for it is to set it."""
    _, _, rest = status().partition(b"\nUmask:")
    return rest[: rest.find(b"\n")]
