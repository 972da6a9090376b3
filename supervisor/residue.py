"""What a run leaves in its child: compared before and after, so that a child that is not as it was is replaced.

What cannot be seen, such as a patched function of the application, stays; `fresh_process_per_run` is for jobs that do
such things. It is done after each run, and many runs are short: what is looked at here costs about half a microsecond
each, limits and descriptors several, and handlers of real-time signals harm the next run hardly. So between runs that
follow each other at once, those three have their turn each millisecond.
"""

from __future__ import annotations

import _thread
import asyncio
import ctypes
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
from time import perf_counter  # a job may put something else in its place
from typing import Any

from .usage import children, open_file, status

_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_REAL_TIME_SIGNALS = [number for number in _SIGNALS if number >= getattr(signal, "SIGRTMIN", signal.NSIG)]
_STANDARD_SIGNALS = [number for number in _SIGNALS if number not in _REAL_TIME_SIGNALS]
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_KEPT_BY_THE_LOOP = "asyncio_"

_signal: Any = getattr(signal, "_signal", signal)
"""Below `signal`, which turns each answer into a member of an enumeration; that takes a hundred times as long."""

_ALL_KINDS_WITHOUT_WAITING = 0x4000_0000  # __WALL
if sys.platform == "linux":
    _ALL_KINDS_WITHOUT_WAITING |= os.WEXITED | os.WNOHANG | os.WNOWAIT
    _waitid = ctypes.CDLL(None).waitid
    """That of `os` raises an error if there is nobody, which takes as long as to ask."""

_LOOK_CLOSELY_EACH_SECONDS = 0.001

PROCESSES = "processes"


class Residue:
    """How this process was when it was made ready, and whether it still is so."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._loop = runner.get_loop()
        self.forgive()

    @property
    def found(self) -> tuple[str, ...]:
        """What is not as it was, in words. No run is under way."""
        self._looked_at = perf_counter()
        is_as_it_was = self._is_as_it_was_at_a_glance() and self._is_as_it_was_closely()
        return () if is_as_it_was else self._found(while_running=False)

    def found_between(self, now: float) -> tuple[str, ...]:
        """The same, where another run follows at once; `now` is of `perf_counter`.

        What takes a closer look may be found as late as a millisecond after the last one, and the runs until then meet
        it. What they left is found as that of the last one, so where none follows, ask for what is `found`.
        """
        is_soon = now - self._looked_at < _LOOK_CLOSELY_EACH_SECONDS
        return () if is_soon and self._is_as_it_was_at_a_glance() else self.found

    def forgive(self) -> None:
        """From here on this is how it is to be."""
        self._looked_at, self._threads = perf_counter(), _thread._count()
        self._umask, self._is_alone = _umask(), not _has_processes()
        self._glance, self._close_look = _glance(self._loop), _close_look()
        self._ready = _look(self._loop, self._umask)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """What changes meanwhile is to stay: a service for all runs is made. What a run left before is not forgiven."""
        found_before = self._found(while_running=True)
        yield
        if not found_before:
            self.forgive()

    def _found(self, *, while_running: bool) -> tuple[str, ...]:
        try:
            threads = _thread._count()
            now = _look(self._loop, _umask() if while_running else _umask_if(self._umask))
            if now != self._ready:
                return tuple(what for what, was in self._ready.items() if now[what] != was)
            self._threads = threads
            return ()
        except BaseException as error:  # a job has put things of its own in the place of those that we look at
            return (f"what raises {type(error).__name__}"[:50],)

    def _is_as_it_was_at_a_glance(self) -> bool:
        """Whether all is but what takes a closer look. If not, to look at all may say that it still is."""
        ready = self._ready
        try:
            return (
                _glance(self._loop) == self._glance
                and _variables() == ready["environment"]
                and sys.path == ready["sys.path"]
                and _thread._count() == self._threads
                and self._is_alone
                and _is_alone_still()
                and _umask_if(self._umask) == self._umask
            )
        except BaseException:  # to look at all tells what it is
            return False

    def _is_as_it_was_closely(self) -> bool:
        try:
            return _close_look() == self._close_look
        except BaseException:
            return False


_AT_A_GLANCE = (
    "folder",
    "signal handlers",
    "timer",
    "recursion limit",
    "standard streams",
    "event loop",
    "locale",
    "socket timeout",
    "clocks",
)


def _glance(loop: asyncio.AbstractEventLoop) -> tuple[object, ...]:
    """The state of this process that one run may spoil for the next, as far as it is quickly told and compared."""
    stdout, stderr = sys.stdout, sys.stderr
    return (
        _folder(),
        [*map(_signal.getsignal, _STANDARD_SIGNALS)],
        signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        sys.getrecursionlimit(),
        (id(stdout), getattr(stdout, "closed", None), id(stderr), getattr(stderr, "closed", None)),
        loop.is_closed(),
        locale.setlocale(locale.LC_ALL),
        socket.getdefaulttimeout(),
        (time.time, time.monotonic, time.perf_counter, time.sleep, datetime.datetime, datetime.date),
    )


_CLOSELY = ("real-time signals", "resource limits", "descriptors", "threads")


def _close_look() -> tuple[object, ...]:
    """What takes longer to tell."""
    return (
        [*map(_signal.getsignal, _REAL_TIME_SIGNALS)],
        [*map(resource.getrlimit, _LIMITS)],
        (open_file(1), open_file(2)),
        _threads(),
    )


def _look(loop: asyncio.AbstractEventLoop, umask: int | None) -> dict[str, object]:
    """All of it."""
    return {
        **dict(zip(_AT_A_GLANCE, _glance(loop), strict=True)),
        **dict(zip(_CLOSELY, _close_look(), strict=True)),
        PROCESSES: {*children(os.getpid())} if _has_processes() else set(),
        "environment": {**_variables()},
        "umask": umask,
        "sys.path": [*sys.path],
    }


def _variables() -> Any:
    """The environment, its values as they are, which is quick."""
    return getattr(os.environ, "_data", os.environ)


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
    if sys.platform != "linux":  # where nobody tells whom there is either
        return False
    try:
        os.waitid(os.P_ALL, 0, _ALL_KINDS_WITHOUT_WAITING)
    except ChildProcessError:
        return False
    except OSError:
        return True
    return True


def _is_alone_still() -> bool:
    """Where we were before: then to ask is allowed, and an error says that there is nobody."""
    return sys.platform != "linux" or bool(_waitid(os.P_ALL, 0, None, _ALL_KINDS_WITHOUT_WAITING) < 0)


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
