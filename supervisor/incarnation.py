"""Which life of which process a worker is, so that another on the same host can tell for certain that it has ended.

A process is known by its number and by when it started. What it started itself, the fork server, the children, the
guard and what jobs left behind, carries its marker in the environment that it was given at its start, which nothing
but another start changes. Only when none of them is left is the worker proven to be dead; any doubt means no.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from uuid import uuid4

from durablestack.workers import Worker

MARKER = "DURABLESTACK_PROCESS_MARKER"

_FLAGS, _THREADS, _STARTED, _ENVIRONMENT_BEGIN, _ENVIRONMENT_END = 6, 17, 19, 47, 48
"""Of the fields of /proc/PID/stat, those behind the name counted from 0."""

_KERNEL_THREAD = 0x00200000
_NONE, _UNTOLD = -1, -2

_LOOKS_MAX = 20
_LOOK_AGAIN_SECONDS = 0.002
"""Whatever executes a program has an environment again soon."""

_marking = threading.Lock()


def marker() -> str:
    """Of this process: random, and another after a fork."""
    return _marker_of(os.getpid())


@cache
def _marker_of(_: int) -> str:
    return uuid4().hex


@contextmanager
def marked_environment() -> Iterator[None]:
    """What is started meanwhile carries our marker for good. What the application itself starts at other times does
    not, for it may outlive us and nothing of it is ours."""
    with _marking:
        before = os.environ.get(MARKER)  # ours may be a child of another supervisor
        os.environ[MARKER] = marker()
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(MARKER, None)
            else:
                os.environ[MARKER] = before


def this_worker(name: str) -> Worker:
    """A worker of this process. Where Linux does not tell who is who its boot id is empty, and nobody judges it."""
    started = _started(os.getpid()) if sys.platform == "linux" and proc_is_ours() else None
    return Worker(
        id=uuid4(),
        name=name,
        boot_id="" if started is None else _read("/proc/sys/kernel/random/boot_id").decode().strip(),
        pid_namespace="" if started is None else _namespaces(),
        user_id=os.geteuid(),
        pid=os.getpid(),
        process_started=started or 0,
        marker=marker(),
    )


def proc_is_ours() -> bool:
    """Whether the numbers in /proc are those that we know processes by: it may be that of an outer namespace."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def proven_dead(worker: Worker) -> bool:
    """Whether the process of a worker has ended, and all that it started. False where that cannot be told."""
    try:
        return _could_be_seen(worker) and _started(worker.pid) != worker.process_started and not _marked_process(worker)
    except OSError:
        return False


def _could_be_seen(worker: Worker) -> bool:
    """Whether its processes, if there were any, would be among those that we see."""
    here = this_worker("")
    return (
        here.boot_id != ""
        and (here.boot_id, here.pid_namespace) == (worker.boot_id, worker.pid_namespace)
        and here.user_id in (0, worker.user_id)
    )


def _namespaces() -> str:
    """In which numbers of processes and times of starts mean what they mean to us."""
    return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "time", "user"))


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none, or only what is left for its parent."""
    fields = _stat(pid)
    return int(fields[_STARTED]) if fields and not _is_left_over(fields) else None


def _stat(pid: int | str) -> list[bytes]:
    """The fields behind the name; none if there is no such process."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_left_over(fields: list[bytes]) -> bool:
    """Ended, and not waited for yet; not so where only its first thread has ended."""
    return fields[0] in (b"Z", b"X") and int(fields[_THREADS]) <= 1


def _marked_process(worker: Worker) -> bool:
    """Whether there may be a process with the marker. Looks until no new ones have come, for they may be handing on."""
    seen: set[str] = set()
    while new := {entry for entry in os.listdir("/proc") if entry.isdigit()} - seen:
        if any(_may_be_of(worker, pid) for pid in new):
            return True
        seen |= new
    return False


def _may_be_of(worker: Worker, pid: str) -> bool:
    length = 0
    for _ in range(_LOOKS_MAX):
        try:
            environment = _read(f"/proc/{pid}/environ")
        except (FileNotFoundError, ProcessLookupError):
            environment = b""
        except PermissionError:  # we may not look; but it is none of theirs if it is older, or somebody else's
            started = _started(int(pid))
            return started is not None and started >= worker.process_started and _runs_as(pid, worker.user_id)
        if f"{MARKER}={worker.marker}".encode() in environment.split(b"\0"):
            return True
        length = _length_of_environment(pid)
        if length == _NONE or (environment and length == len(environment)):
            return False
        time.sleep(_LOOK_AGAIN_SECONDS)
    return length != 0  # which it seems to be for a moment whenever a program is executed, and seldom is


def _length_of_environment(pid: str) -> int:
    """In bytes; `_NONE` if it has none and never will. It cannot be told of one whose first thread has ended."""
    fields = _stat(pid)
    if not fields or int(fields[_FLAGS]) & _KERNEL_THREAD or _is_left_over(fields):
        return _NONE
    begin, end = int(fields[_ENVIRONMENT_BEGIN]), int(fields[_ENVIRONMENT_END])
    return end - begin if end else _UNTOLD


def _runs_as(pid: str, user_id: int) -> bool:
    try:
        status = _read(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return False
    users = next(line.split()[1:] for line in status.splitlines() if line.startswith(b"Uid:"))
    return str(user_id).encode() in users


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
