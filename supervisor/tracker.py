"""multiprocessing's resource tracker, started when somebody speaks to it: it takes 7 MiB, and few jobs need it.

    a process that registers shared memory or a semaphore --> our socket --(the first word)--> tracker, on that socket

multiprocessing hands each child one end of a pipe at whose other end the tracker reads. Here that is a socket, for what
a socket holds can be looked at and left there: the tracker finds all that was said to it. If it cannot be started,
the socket closes, and multiprocessing starts one where it is needed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import resource_tracker, spawn, util
from typing import Any

_PROBES = re.compile(rb"(PROBE:0:noop\n)+")
"""What multiprocessing says whenever it starts a process, to learn whether the tracker is there."""

_LOOK_BYTES_MAX = 16_384
_LOOK_EVERY_SECONDS = 0.01
"""At most, whatever a job writes there."""


def stand_by() -> None:
    """Take the tracker's place until it is needed, unless it is there already. Any thread may call this."""
    if sys.platform == "win32":
        return  # there is none
    tracker: Any = resource_tracker._resource_tracker
    with tracker._lock:
        if tracker._fd is not None:
            return
        ours, theirs = socket.socketpair()
        tracker._fd = theirs.detach()
    threading.Thread(target=_start_once_needed, args=(ours, tracker), name="durablestack-tracker", daemon=True).start()


def _start_once_needed(ours: socket.socket, tracker: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # the tracker unblocks them once it is up
    with ours:
        said = ours.recv(_LOOK_BYTES_MAX, socket.MSG_PEEK)
        while probes := _PROBES.match(said):
            ours.recv(probes.end())
            time.sleep(_LOOK_EVERY_SECONDS)
            said = ours.recv(_LOOK_BYTES_MAX, socket.MSG_PEEK)
        if said:
            tracker._pid = _start(ours.fileno())


def _start(fd: int) -> int:
    told = [fd]
    with suppress(Exception):  # of a service without an error output
        told.append(sys.stderr.fileno())
    command = f"from multiprocessing.resource_tracker import main;main({fd})"
    executable = os.fsencode(spawn.get_executable())
    arguments = [executable, *util._args_from_interpreter_flags(), "-c", command]  # type: ignore[attr-defined]
    pid: int = util.spawnv_passfds(executable, arguments, told)
    return pid
