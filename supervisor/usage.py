"""What processes use, as Linux tells it in /proc: a child, and all that its run has started. Elsewhere little is known.

A child measures itself, from the beginning of a run to its end. The supervisor looks from outside, for those that die.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import perf_counter  # a job may put something else in its place

from msgspec import Struct
from msgspec.structs import astuple

from durablestack.runs import Usage

from .isolation import out_of_the_way
from .leases import boottime

_PAGE_BYTES = resource.getpagesize()
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
_FILE_BYTES_MAX = 65_536
_RESET_PEAK = b"5"
_RESET_PEAK_AFTER_SECONDS = 1.0
_RSS_ERROR_BYTES_MAX = 1_048_576
_END_ROUNDS_MAX = 20
_BEGINNINGS_SHARED_SECONDS = 0.001

_getrusage, _SELF, _CHILDREN = resource.getrusage, resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


# --- from inside: a child measures itself


class Meter:
    """What this process uses from the beginning of a run on.

    Many runs are short, and few are asked what they have used: those that begin within a millisecond share a beginning.
    What is told may so be too much by what is used in a millisecond.
    """

    cpu_before = (0.0, 0.0)
    since = 0.0
    """By the clock of `leases.boottime`."""
    _began_at = float("-inf")

    def begin(self, now: float) -> None:
        """`now` is of `perf_counter`."""
        if now - self._began_at >= _BEGINNINGS_SHARED_SECONDS:
            self.since = boottime()
            self.cpu_before = _cpu_seconds(_peak.begin())
            self._began_at = now

    def read(self) -> Usage:
        user_before, system_before = self.cpu_before
        user, system = _cpu_seconds(_getrusage(_SELF))
        return Usage(_peak_bytes(), max(0.0, user - user_before), max(0.0, system - system_before))


class _Peak:
    """The most memory that this process has had. Where it cannot be reset, that is of the whole life of the process.

    To open the file for each run would take longer than all else in a meter, so it stays open. A job may close our
    descriptor all the same, and open something of its own, which is not to be written to.

    To write to it takes as long as all the rest, so that is done if the peak has risen since, and each second: what
    was held then may have been given back.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._file: tuple[int, int] | None = None
        self._is_told = True
        self._since_reset = -1
        self._reset_again_at = 0.0

    def begin(self) -> resource.struct_rusage:
        """What this process has used so far; the peak counts from here on."""
        used = _getrusage(_SELF)
        if used.ru_maxrss == self._since_reset and perf_counter() < self._reset_again_at:
            return used
        self._reset()
        used = _getrusage(_SELF)
        self._since_reset = used.ru_maxrss if self._is_told else -1
        self._reset_again_at = perf_counter() + _RESET_PEAK_AFTER_SECONDS
        return used

    def _reset(self) -> None:
        try:
            if self._file is None or open_file(self._fd) != self._file:
                self._open()
            os.write(self._fd, _RESET_PEAK)
        except OSError:
            return

    def _open(self) -> None:
        fd = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            self._fd = out_of_the_way(fd)
            self._file = open_file(fd)
            os.write(fd, _RESET_PEAK)
            self._is_told = _usage_tells_peak()
        finally:
            os.close(fd)


_peak = _Peak()


def _usage_tells_peak() -> bool:
    """Whether a peak that rises is seen in `ru_maxrss`: not below that of the program which executed this one."""
    told_bytes = _getrusage(_SELF).ru_maxrss * _RSS_UNIT_BYTES
    return abs(told_bytes - (status_bytes(status(), b"VmHWM") or 0)) <= _RSS_ERROR_BYTES_MAX


def _peak_bytes() -> int:
    peak_bytes = status_bytes(status(), b"VmHWM")
    if peak_bytes is None:
        return _getrusage(_SELF).ru_maxrss * _RSS_UNIT_BYTES
    return peak_bytes


def open_file(fd: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None if it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _cpu_seconds(own: resource.struct_rusage) -> tuple[float, float]:
    """User's and system's, of this process and of the children that it waited for."""
    others = _getrusage(_CHILDREN)
    return own.ru_utime + others.ru_utime, own.ru_stime + others.ru_stime


def status(pid: int | str = "self") -> bytes:
    """Empty if there is no such process, or not Linux."""
    return _read(f"/proc/{pid}/status")


def status_bytes(status: bytes, field: bytes) -> int | None:
    """An amount of memory, by its name there; None if it is not told."""
    _, found, rest = status.partition(b"\n" + field + b":")
    return int(rest.split(None, 1)[0]) * 1024 if found else None


# --- from outside


class Process(Struct, frozen=True):
    """`started_at` is by the clock of `leases.boottime`. CPU time is its own and that of the children it waited for."""

    pid: int
    state: str
    started_at: float
    resident_bytes: int
    user_cpu_seconds: float
    system_cpu_seconds: float

    @property
    def ended(self) -> bool:
        return self.state in ("Z", "X")


class Sample(Struct, frozen=True):
    """What the processes of a run use now, and have used so far."""

    resident_bytes: int
    usage: Usage

    @property
    def cpu_seconds(self) -> float:
        return (self.usage.user_cpu_seconds or 0.0) + (self.usage.system_cpu_seconds or 0.0)


def sample(pid: int, since: float, cpu_before: tuple[float, float]) -> Sample | None:
    """What a child uses whose run began at `since`, when it had used that much CPU time. None if it is gone.

    Of the processes below it those count that were started since: what the application keeps there does not. Memory
    that processes share counts for each of them.
    """
    child = look(pid)
    if child is None or child.ended:
        return None
    processes = [child, *_descendants(pid, since)]
    resident_bytes = sum(process.resident_bytes for process in processes)
    user_before, system_before = cpu_before
    usage = Usage(
        max(resident_bytes, status_bytes(status(pid), b"VmHWM") or 0),
        max(0.0, sum(process.user_cpu_seconds for process in processes) - user_before),
        max(0.0, sum(process.system_cpu_seconds for process in processes) - system_before),
    )
    return Sample(resident_bytes, usage)


def most(one: Usage, other: Usage) -> Usage:
    """Of two views of the same attempt the greater ones."""
    both = zip(astuple(one), astuple(other), strict=True)
    return Usage(*[max((amount for amount in pair if amount is not None), default=None) for pair in both])


def end_descendants(pid: int, since: float) -> int:
    """Kill what was started below a process since then, and lives; return how many there were."""
    found: set[int] = set()
    for _ in range(_END_ROUNDS_MAX):  # they may go on starting others
        alive = [process.pid for process in _descendants(pid, since) if not process.ended]
        if not alive:
            break
        for each in alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        found.update(alive)
    return len(found)


def _descendants(pid: int, since: float) -> list[Process]:
    """What was started below a process since then; what older ones have started is theirs."""
    found: dict[int, Process] = {}
    parents = [pid]
    while parents:
        for child in children(parents.pop()):
            process = look(child) if child not in found else None
            if process is not None and process.started_at >= since - 1 / _TICKS_PER_SECOND:
                found[child] = process
                parents.append(child)
    return list(found.values())


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started, or was made to look after, and that are there."""
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, _read(f"/proc/{pid}/task/{task}/children").split())


def look(pid: int) -> Process | None:
    """None if there is no such process."""
    fields = _fields(pid)
    if not fields:
        return None
    return Process(
        pid,
        fields[0].decode(),
        int(fields[19]) / _TICKS_PER_SECOND,
        int(fields[21]) * _PAGE_BYTES,
        *_cpu_seconds_in(fields),
    )


def cpu_seconds(pid: int) -> tuple[float, float] | None:
    """User's and system's, as in `look`, and quicker."""
    fields = _fields(pid)
    return _cpu_seconds_in(fields) if fields else None


def _fields(pid: int) -> list[bytes]:
    """What the kernel tells of a process, after its name; empty if there is no such process."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _cpu_seconds_in(fields: Sequence[bytes]) -> tuple[float, float]:
    user, system, user_of_others, system_of_others = map(int, fields[11:15])
    return (user + user_of_others) / _TICKS_PER_SECOND, (system + system_of_others) / _TICKS_PER_SECOND


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, which it would die of else. True where that is not told."""
    _, found, rest = _read(f"/proc/{pid}/status").partition(b"\nSigCgt:")
    return not found or bool(int(rest.split(None, 1)[0], 16) >> (number - 1) & 1)


def _read(path: str) -> bytes:
    """A file that the kernel writes as it is read; empty if there is none, or none any more."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, _FILE_BYTES_MAX)
    except OSError:  # it has ended meanwhile
        return b""
    finally:
        os.close(fd)
