"""What a run leaves in its child: compared before and after, so that a child that is not as it was is replaced.

What cannot be seen, such as a patched function, stays; `fresh` state for each run is what a new process is for.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_KEPT_BY_THE_LOOP = "asyncio_"


class Residue:
    """How this process was when it was made ready, and whether it still is so."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._ready = _look(runner)

    @property
    def found(self) -> bool:
        return _look(self._runner) != self._ready

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


def _look(runner: asyncio.Runner) -> Hashable:
    """The state of this process that one run may spoil for the next."""
    return (
        _folder(),
        tuple(map(id, map(signal.getsignal, _SIGNALS))),
        signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        sys.getrecursionlimit(),
        tuple(resource.getrlimit(limit) for limit in _LIMITS),
        tuple((id(stream), getattr(stream, "closed", None)) for stream in (sys.stdout, sys.stderr)),
        (_open_file(1), _open_file(2)),
        _threads(),
        runner.get_loop().is_closed(),
        _children(),
    )


def _children() -> frozenset[bytes]:
    """The processes that were started here and still run, by number."""
    if sys.platform != "linux":
        return frozenset()
    found: set[bytes] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as children:
                found.update(children.read().split())
        except OSError:  # the thread has ended, or the kernel does not tell
            continue
    return frozenset(found)


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
