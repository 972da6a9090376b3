"""Sets a child process apart before it loads the application: its session, its input and output, and when it dies.

It leads its own session, so that a signal to its group reaches what its jobs started, and nothing else.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

STACK_SIGNAL = signal.SIGRTMIN + 5 if sys.platform == "linux" else signal.SIGUSR2
"""Makes a child write the Python stack of its main thread to its stack pipe, also while C code holds the GIL."""

_OUR_FD_MIN = 64
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE_ADJUSTMENT = 500


def set_apart(stdout: Connection, stderr: Connection, stacks: Connection) -> None:
    """To these goes what the process writes, and what its Python stacks are when somebody asks."""
    os.setsid()
    _die_with_parent()
    _be_the_first_to_starve()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _empty_input()
    _capture_output(stdout, stderr)
    _tell_stacks(stacks)


def _die_with_parent() -> None:
    """The net below the closing pipe, which a job that holds the GIL keeps us from noticing.

    Our parent may be the fork server. It ends when the supervisor does, provided that nobody else keeps the pipe
    open by which it notices, and multiprocessing hands that pipe to each child.
    """
    server: Any = forkserver._forkserver
    if (alive_fd := getattr(server, "_forkserver_alive_fd", None)) is not None:
        os.close(alive_fd)
        server._forkserver_alive_fd = None
    tracker: Any = resource_tracker._resource_tracker
    if (tracker_fd := getattr(tracker, "_fd", None)) is not None:  # another one; what a job executes is not to have it
        os.set_inheritable(tracker_fd, False)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a job sends off on its own can be found below us all the same


def _be_the_first_to_starve() -> None:
    """When the kernel is out of memory it is to end us and what our jobs start, rather than the supervisor."""
    with suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as adjustment:
        if int(adjustment.read()) < OOM_SCORE_ADJUSTMENT:
            adjustment.seek(0)
            adjustment.write(str(OOM_SCORE_ADJUSTMENT))


def _empty_input() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _capture_output(stdout: Connection, stderr: Connection) -> None:
    for name, capture, fd in (("stdout", stdout, 1), ("stderr", stderr, 2)):
        os.dup2(capture.fileno(), fd)
        capture.close()
        # by lines, so that what was written is seen even if the process dies a moment later
        stream = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _tell_stacks(stacks: Connection) -> None:
    """When we crash, all of them; when we are asked, that of the main thread, where jobs are executed: to read those of
    threads that run meanwhile, nobody holding the GIL, crashes them now and then."""
    fd = out_of_the_way(stacks.fileno())
    stacks.close()
    faulthandler.enable(file=fd)
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=False)


def out_of_the_way(fd: int) -> int:
    """The same on a high descriptor, where jobs seldom come, closed in whatever they execute."""
    descriptors_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(_OUR_FD_MIN, descriptors_max // 2))
