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
from collections.abc import Hashable

_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_KEPT_BY_THE_LOOP = "asyncio_"


def look(runner: asyncio.Runner) -> Hashable:
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
    )


def has_children() -> bool:
    """Whether processes that were started here still run."""
    if sys.platform != "linux":
        return False
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as children:
                if children.read(1):
                    return True
        except OSError:  # the thread has ended, or the kernel does not tell
            continue
    return False


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
