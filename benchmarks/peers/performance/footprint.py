"""What a tree of processes uses: CPU time and memory, as Linux tells it in /proc."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from benchmarks.machine import cpu_seconds
from processes import descendants, stat_fields


def family(pid: int) -> list[int]:
    """The process and those below it, the elder first."""
    return [pid, *sorted(descendants(pid))]


def session_of(leader: int) -> list[int]:
    """The processes of a session, also those whose parents have ended."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in pids if stat_fields(pid)[3:4] == [str(leader)]]


def tree_seconds(pid: int) -> float:
    """CPU time of a process, of those below it, and of those that they have waited for."""
    return sum(map(_process_seconds, family(pid)))


def own_seconds(pid: int) -> float:
    """CPU time of this process alone."""
    return max(cpu_seconds(pid, waited_for=False), _threads_seconds(pid))


def _process_seconds(pid: int) -> float:
    waited_for = cpu_seconds(pid) - cpu_seconds(pid, waited_for=False)
    return own_seconds(pid) + waited_for


def _threads_seconds(pid: int) -> float:
    """To the microsecond, where `stat` counts hundredths of a second; but without threads that have ended."""
    nanoseconds = 0
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # the thread has just ended
                nanoseconds += int(path.read_text().split()[0])
    return nanoseconds / 1e9


def tree_memory(pid: int) -> int:
    """Bytes that a tree of processes holds; of a page that several processes share, each has its part (PSS)."""
    return sum(proportional_set_size(rollup_of(each)) for each in family(pid))


def rollup_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/smaps_rollup").read_text()
    return ""


def proportional_set_size(rollup: str) -> int:
    """In bytes, of the text of smaps_rollup; 0 if there is none."""
    for line in rollup.splitlines():
        name, _, amount = line.partition(":")
        if name == "Pss":
            return int(amount.split()[0]) * 1024
    return 0
