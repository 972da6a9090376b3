"""What a run leaves in its child: compared before and after, so that a child that is not as it was is replaced.

What cannot be seen, such as a patched function of the application, stays; `fresh_process_per_run` is for jobs that do
such things. It is done after each run, and many runs are short: what is looked at here costs about a microsecond each.
"""

from __future__ import annotations

import asyncio
import datetime
import errno
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
from typing import Any

from .usage import children, open_file, status

_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_KEPT_BY_THE_LOOP = "asyncio_"

_signal: Any = getattr(signal, "_signal", signal)
"""Below `signal`, which turns each answer into a member of an enumeration; that takes a hundred times as long."""

_ANY_KIND_OF_CHILD = 0x4000_0000  # __WALL

PROCESSES = "processes"


class Residue:
    """How this process was when it was made ready, and whether it still is so."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.forgive()

    @property
    def found(self) -> tuple[str, ...]:
        """What is not as it was, in words. No run is under way."""
        return self._found(while_running=False)

    def forgive(self) -> None:
        """From here on this is how it is to be."""
        self._umask = _umask()
        self._ready = _look(self._runner, self._umask)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """What changes meanwhile is to stay: a service for all runs is made. What a run left before is not forgiven."""
        found_before = self._found(while_running=True)
        yield
        if not found_before:
            self.forgive()

    def _found(self, *, while_running: bool) -> tuple[str, ...]:
        try:
            now = _look(self._runner, _umask() if while_running else _umask_if(self._umask))
            return () if now == self._ready else tuple(what for what, was in self._ready.items() if now[what] != was)
        except BaseException as error:  # a job has put things of its own in the place of those that we look at
            return (f"what raises {type(error).__name__}"[:50],)


def _look(runner: asyncio.Runner, umask: int | None) -> dict[str, object]:
    """The state of this process that one run may spoil for the next."""
    return {
        "folder": _folder(),
        "signal handlers": [*map(_signal.getsignal, _SIGNALS)],
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "recursion limit": sys.getrecursionlimit(),
        "resource limits": [*map(resource.getrlimit, _LIMITS)],
        "standard streams": [(id(stream), getattr(stream, "closed", None)) for stream in (sys.stdout, sys.stderr)],
        "descriptors": (open_file(1), open_file(2)),
        "threads": _threads(),
        "event loop": runner.get_loop().is_closed(),
        PROCESSES: {*children(os.getpid())} if _has_processes() else set(),
        "environment": dict(getattr(os.environ, "_data", os.environ)),  # its values as they are, which is quick
        "umask": umask,
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


def _threads() -> int:
    """Threads that would keep a process from ending; those of the event loop's own pool are meant to stay."""
    return sum(not t.daemon and not t.name.startswith(_KEPT_BY_THE_LOOP) for t in threading.enumerate())


def _has_processes() -> bool:
    """Whether there is anybody below us, alive or only to be waited for. Nobody is waited for here."""
    if sys.platform != "linux":
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _ANY_KIND_OF_CHILD)
    except OSError as error:
        return error.errno != errno.ECHILD
    return True


def _umask() -> int | None:
    """As the kernel tells it, for to ask for it is to set it. None where it is not told."""
    _, found, rest = status().partition(b"\nUmask:")
    return int(rest.split(None, 1)[0], 8) if found else None


def _umask_if(expected: int | None) -> int | None:
    """The same, a hundred times as fast: it is set to what it should be, which changes nothing if it is that already.

    If it is not, whatever runs in another thread may see it change. So that is for when no run is under way.
    """
    if expected is None:
        return None
    found = os.umask(expected)
    if found != expected:
        os.umask(found)
    return found
