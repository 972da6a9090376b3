"""Loaded into the fork server only: loads the application there, and readies it to be the template of all children.

import, register the jobs --> what fork, signals and orphans need --> collect, freeze --> children share all that
"""

import ctypes
import errno
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import popen_forkserver as _popen_forkserver  # noqa: F401, or each child would import it

from .application import FORK_SERVER_TARGETS, load

_FORK_AGAIN_SECONDS = 0.1
_PR_SET_CHILD_SUBREAPER = 36


def patient(fork: Callable[[], int]) -> Callable[[], int]:
    """The same, tried again while there is no room for a process, for as long as the supervisor lives.

    multiprocessing's fork server does not survive a fork that fails, and its children do not survive it.
    """
    supervisor = os.getppid()

    def fork_when_there_is_room() -> int:
        told = False
        while True:
            try:
                pid = fork()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOMEM) or os.getppid() != supervisor:
                    raise
                if not told:
                    print(f"no child can be started, trying again: {error}", file=sys.stderr, flush=True)
                told = True
                time.sleep(_FORK_AGAIN_SECONDS)
                continue
            if pid == 0:
                os.fork = fork  # jobs have the one that they know
            return pid

    return fork_when_there_is_room


with suppress(Exception):  # each child then loads it by itself, and tells what is wrong
    load(tuple(os.environ.pop(FORK_SERVER_TARGETS, "").split()))
os.fork = patient(os.fork)
# Signals that a terminal or a service manager sends to our whole process group are meant for the supervisor,
# which then decides when children end. The fork server must outlive them, for children die with it.
os.setsid()
if sys.platform == "linux":
    # What a child had sent off on its own comes to us when the child dies, where the supervisor finds and ends it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
# What is loaded here is shared with every child for as long as nobody touches it: not even the collector.
gc.collect()
gc.freeze()
