"""What a benchmark tells of the machine it ran on, and of what else that machine was doing meanwhile.

    watch = Watch()          busy time of our cores, CPU time of our processes
    ...
    watch.others()           the difference of both: how many cores somebody else kept busy

Nothing here names the machine: no host name, no user, no path.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from durablestack.options import EventLoop
from durablestack.supervisor.event_loop import is_uvloop
from processes import descendants, stat_fields

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SYNCS = 30


def describe() -> dict[str, Any]:
    """Cores, versions, and what a write to the disk costs that is waited for."""
    return {
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "durablestack": metadata.version("durablestack"),
        "event_loop": event_loop(),
        "fsync_ms": round(fsync_seconds() * 1000, 3),
    }


def event_loop() -> str:
    """What drives a supervisor that has a process of its own, as the environment wants it."""
    wanted = EventLoop(os.environ.get("DURABLESTACK__EVENT_LOOP", EventLoop.ASYNCIO))
    return f"uvloop {metadata.version('uvloop')}" if is_uvloop(wanted) else "asyncio"


def bind(cores: int) -> None:
    """Keep this process, and all that it starts from here on, to the first of its cores.

    Raises:
        ValueError: there are not so many.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= cores <= len(allowed):
        raise ValueError(f"{cores} cores are wanted, and there are {len(allowed)}")
    os.sched_setaffinity(0, allowed[:cores])


@contextmanager
def looking_from_elsewhere() -> Iterator[None]:
    """Keep this process off the cores that it was bound to, if there are others: whoever measures takes no part."""
    bound = os.sched_getaffinity(0)
    with suppress(OSError):  # there may be none that we are allowed
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - bound)
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def fsync_seconds() -> float:
    """The median time to append a page to a file where databases of benchmarks live, and see it on the disk."""
    seconds = []
    with tempfile.TemporaryFile() as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(bytes(8192))
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class Watch:
    """Looks at our cores from here on. Without Linux nothing is known of them."""

    def __init__(self) -> None:
        self._began = time.monotonic(), busy_seconds(os.sched_getaffinity(0)), tree_cpu_seconds(os.getpid())

    def others(self) -> float:
        """How many of our cores others kept busy since, on average; a server that is not ours is one of them."""
        at, busy, own = self._began
        seconds = time.monotonic() - at
        others = busy_seconds(os.sched_getaffinity(0)) - busy - (tree_cpu_seconds(os.getpid()) - own)
        return max(0.0, others / seconds) if seconds else 0.0


def busy_seconds(cores: set[int], stat: str | None = None) -> float:
    """CPU time that these cores have spent with anything but waiting; `stat` is what /proc/stat says.

    Time that another machine took from this one (steal) counts as busy.
    """
    if stat is None:
        stat = ""
        with suppress(OSError):
            stat = Path("/proc/stat").read_text()
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / TICKS_PER_SECOND


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process, of those below it, and of those that they have waited for."""
    return sum(cpu_seconds(each) for each in (pid, *descendants(pid)))


def cpu_seconds(pid: int, *, waited_for: bool = True) -> float:
    """CPU time of one process, with that of the children that it has waited for; 0 if there is none."""
    fields = stat_fields(pid)
    return sum(map(int, fields[11 : 15 if waited_for else 13])) / TICKS_PER_SECOND
