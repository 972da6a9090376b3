"""How children are started, one at a time, and what the fork server that starts them needs of us."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess

import anyio
from anyio import CapacityLimiter, to_thread

from durablestack.options import StartMethod

from . import guard, usage
from .application import ChildSettings
from .guarding import Guard
from .incarnation import marked_environment
from .oom import OomKills

Context = SpawnContext | ForkServerContext
Process = SpawnProcess | ForkServerProcess

_EXIT_CODE_WITHIN_SECONDS = 2.0
_FORK_SERVER_LOST = 255
"""What multiprocessing gives for an exit code when the fork server, which would know it, is gone."""

_DESCRIPTORS_OF_A_START = 8

_multiprocessing_lock = threading.Lock()


class Starter:
    """How children are started. Never by fork from here: the supervisor has threads and an event loop."""

    def __init__(
        self,
        start_method: StartMethod,
        targets: tuple[str, ...],
        settings: ChildSettings = ChildSettings(),  # noqa: B008, since it is frozen
        preload: tuple[str, ...] = (),
    ) -> None:
        self.context: Context
        if start_method is StartMethod.SPAWN:
            self.context = multiprocessing.get_context("spawn")
        else:
            self.context = multiprocessing.get_context("forkserver")
        self.targets = targets
        self.settings = settings
        self.guard = Guard()
        self.oom_kills = OomKills()
        self._lane = CapacityLimiter(1)
        self._counting = threading.Lock()
        self._calls = 0  # under way; written by the thread of each
        if isinstance(self.context, ForkServerContext):
            # the application is loaded once, in the fork server; a crashed child is back in milliseconds
            # a program's own module is for the children to import, which multiprocessing does with more care
            modules = [name for target in targets if (name := target.partition(":")[0]) != "__main__"]
            self.context.set_forkserver_preload(
                ["durablestack.supervisor.child", *preload, *modules, "durablestack.supervisor.preload"]
            )

    async def start(self, process: Process) -> None:
        """Raises OSError, EOFError or RuntimeError if it cannot be started."""
        await self._call(partial(_start_marked, process))

    async def exit_code(self, process: Process) -> int | None:
        """Of a process that has ended. None if it cannot be learnt."""
        with anyio.move_on_after(_EXIT_CODE_WITHIN_SECONDS):
            await self._call(partial(_join, process))
            if process.exitcode == _FORK_SERVER_LOST and isinstance(self.context, ForkServerContext):
                return None
            return process.exitcode
        return None

    async def _call(self, call: Callable[[], object]) -> None:
        """Call multiprocessing: one call at a time, since whenever it starts a process it reads exit codes of others.

        With the fork server in a thread, for its answer waits until the application is loaded. With spawn right
        here, for the kernel ties a child's parent-death signal to the life of the thread that started it.
        """
        if isinstance(self.context, ForkServerContext):
            await to_thread.run_sync(self._one_at_a_time, call, limiter=self._lane, abandon_on_cancel=True)
        else:
            self._one_at_a_time(call)

    def _one_at_a_time(self, call: Callable[[], object]) -> None:
        with self._counting:
            self._calls += 1
        try:
            with _multiprocessing_lock:
                call()
        finally:
            with self._counting:
                self._calls -= 1

    def unstick(self) -> None:
        """If the fork server does not answer, end it: whoever waits for it is freed, and the next call has a new one.

        Its children end with it.
        """
        if self._calls:
            end_fork_server()


def _start_marked(process: Process) -> None:
    """The fork server, too, is started by the first child that needs one."""
    with marked_environment():
        _prove_room_for_descriptors()
        process.start()


def _join(process: Process) -> None:
    process.join(_EXIT_CODE_WITHIN_SECONDS)
    _end_adopted()


def _prove_room_for_descriptors() -> None:
    """Raise OSError if a start would run out of them: half-way, it would end the fork server, and all children."""
    probes: list[int] = []
    try:
        for _ in range(_DESCRIPTORS_OF_A_START):
            probes.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for fd in probes:
            os.close(fd)


def end_fork_server() -> None:
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # it is dead, and waited for if that can be done
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _end_adopted() -> None:
    """End what children had sent off on their own, and the fork server took over when they died.

    Called while nothing is being started. What others start by the same fork server has the session of that, or is
    known here as a process of theirs.
    """
    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if server is None:
        return
    for pid in {*usage.children(server)} - _known_processes():
        with contextlib.suppress(OSError):  # it has ended
            if os.getsid(pid) != os.getsid(server):
                pidfd = os.pidfd_open(pid)
                guard.end([guard.Child(pid, pidfd)])
                os.close(pidfd)


def _known_processes() -> set[int]:
    known = set()
    for process in list(multiprocessing.process._children):  # type: ignore[attr-defined]
        with contextlib.suppress(ValueError):  # it has just been closed
            known.add(process.pid or 0)
    return known
