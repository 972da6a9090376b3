"""How children are started, one at a time, and what the fork server that starts them needs of us."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path

import anyio
from anyio import CapacityLimiter, to_thread

from durablestack.options import StartMethod

from . import guard, tracker, usage
from .application import FORK_SERVER_TARGETS, ChildSettings
from .guarding import Guard
from .incarnation import marked_environment
from .isolation import OOM_SCORE_ADJUSTMENT
from .oom import OomKills

Context = SpawnContext | ForkServerContext
Process = SpawnProcess | ForkServerProcess
End = socket.socket | Connection

_EXIT_CODE_WITHIN_SECONDS = 2.0
_FORK_SERVER_LOST = 255
"""What multiprocessing gives for an exit code when the fork server, which would know it, is gone."""

_DESCRIPTORS_OF_A_START = 12

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
        self._children = 0  # started, and not known to have ended; written on the event loop
        if isinstance(self.context, ForkServerContext):
            _users_of_fork_server.add(self)
            # the application is loaded once, in the fork server; a crashed child is back in milliseconds
            self.context.set_forkserver_preload(
                ["durablestack.supervisor.child", *preload, "durablestack.supervisor.preload"]
            )

    async def start(self, process: Process, lent: tuple[End, ...]) -> None:
        """Start a process with its ends of pipes, and close those here.

        Abandoned, it leaves no process behind.

        Raises:
            OSError, EOFError, RuntimeError: it cannot be started.
        """
        start = _Start(process, lent, self.targets)
        try:
            await self._call(start)
        except BaseException:
            start.abandon()
            raise
        self._children += 1

    async def exit_code(self, process: Process) -> int | None:
        """Of a process that has ended. None if it cannot be learnt."""
        self._children -= 1
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

        Its children end with it. So it stays if another supervisor of this process has some; and one that was merely
        stopped goes on.
        """
        if not _go_on_if_stopped() and self._calls and not self._others_have_children():
            end_fork_server()

    def _others_have_children(self) -> bool:
        return any(other._children for other in list(_users_of_fork_server) if other is not self)


_users_of_fork_server: weakref.WeakSet[Starter] = weakref.WeakSet()


class _Start:
    """The start of a process, in a thread. Whoever comes last closes the ends that are lent to it: a fork server does
    not survive that they are closed while they are being sent."""

    def __init__(self, process: Process, lent: tuple[End, ...], targets: tuple[str, ...]) -> None:
        self._process = process
        self._lent = lent
        self._targets = targets
        self._under_way = threading.Lock()
        self._abandoned = False

    def __call__(self) -> None:
        with self._under_way:
            if self._abandoned:
                return
            try:
                _start_marked(self._process, self._targets)
            finally:
                self._close()
        if self._abandoned:
            self._kill()

    def abandon(self) -> None:
        self._abandoned = True
        if self._under_way.acquire(blocking=False):
            self._close()
            self._kill()
            self._under_way.release()

    def _close(self) -> None:
        for end in self._lent:  # or we would never see the child close them
            end.close()

    def _kill(self) -> None:
        if self._process.pid is not None:
            self._process.kill()


def _start_marked(process: Process, targets: tuple[str, ...]) -> None:
    """Marked is what has to be executed: the process, or the fork server alone.

    Whatever else the application starts meanwhile is marked too: within some milliseconds, for nobody waits here for
    an application that loads.
    """
    _prove_room_for_descriptors()
    tracker.stand_by()
    if isinstance(process, SpawnProcess):
        with marked_environment():
            process.start()
        return
    with marked_environment(), _targets_in_environment(targets):
        forkserver.ensure_running()
    server = _fork_server()
    process.start()
    if _fork_server() != server:
        end_fork_server()
        raise OSError("the fork server has died, and the one in its place carries no marker")


@contextlib.contextmanager
def _targets_in_environment(targets: tuple[str, ...]) -> Iterator[None]:
    """For a fork server that is started meanwhile, which takes them out. A program's own module is for the children to
    import, which multiprocessing does with more care."""
    os.environ[FORK_SERVER_TARGETS] = " ".join(each for each in targets if each.partition(":")[0] != "__main__")
    try:
        yield
    finally:
        os.environ.pop(FORK_SERVER_TARGETS, None)


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


def _fork_server() -> int | None:
    pid: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)
    return pid


def end_fork_server() -> None:
    pid = _fork_server()
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # it is dead, and waited for if that can be done
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _go_on_if_stopped() -> bool:
    """Let a fork server go on that was stopped, by a job perhaps; return whether it was."""
    pid = _fork_server()
    seen = usage.look(pid) if pid is not None else None
    if seen is None or seen.state != "T":
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(seen.pid, signal.SIGCONT)
    return True


def _end_adopted() -> None:
    """End what children had sent off on their own, and the fork server took over when they died.

    Called while nothing is being started. What others start by the same fork server has the session of that, or is
    known here as a process of theirs; and what those have sent off is none of ours.
    """
    server = _fork_server()
    if server is None:
        return
    for pid in {*usage.children(server)} - _known_processes():
        with contextlib.suppress(OSError):  # it has ended
            if os.getsid(pid) != os.getsid(server) and _may_come_of_a_child(pid, server):
                pidfd = os.pidfd_open(pid)
                guard.end([guard.Child(pid, pidfd)])
                os.close(pidfd)


def _may_come_of_a_child(pid: int, server: int) -> bool:
    """By what a child has changed (see `isolation`) and hands on to all that descends from it, also when executed.

    It cannot be told where the fork server is among the first to starve already.
    """
    servers, its = (int(Path(f"/proc/{each}/oom_score_adj").read_bytes()) for each in (server, pid))
    return its != servers or servers >= OOM_SCORE_ADJUSTMENT


def _known_processes() -> set[int]:
    known = set()
    for process in list(multiprocessing.process._children):  # type: ignore[attr-defined]
        with contextlib.suppress(ValueError):  # it has just been closed
            known.add(process.pid or 0)
    return known
