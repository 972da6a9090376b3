"""The guard as a process of ours: executed, spoken to without waiting, listened to, and its death learnt."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import subprocess
from array import array
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import spawn

import anyio

from . import guard
from .incarnation import MARKER, marker, proc_is_ours

log = logging.getLogger(__name__)

_UP_WITHIN_SECONDS = 10.0
_GONE_WITHIN_SECONDS = 3.0
_TAKES_WITHIN_MILLISECONDS = 100
_BUFFER_BYTES = 1024 * 1024
_INTERPRETER_VARIABLES = ("LD_LIBRARY_PATH",)
"""What the guard's own interpreter may need; of the environment it gets no more, for it holds secrets."""


class GuardDied(Exception):
    """The guard could not be started, or ended before it was up."""


class GuardProcess:
    """Raises GuardDied if it cannot be started."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._at_fault = False
        try:
            if not proc_is_ours():
                raise OSError("/proc is that of another namespace")
            self._start()
        except (OSError, AttributeError, ValueError) as error:  # AttributeError: not Linux, or an old one
            raise GuardDied(f"{type(error).__name__}: {error}") from error

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as failed:
            failed.callback(self._channel.close)
            self._channel.setblocking(False)
            for end in (self._channel, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            ourselves = os.pidfd_open(os.getpid())
            try:
                self._popen = _execute(theirs.fileno(), ourselves)
            finally:
                os.close(ourselves)
            failed.callback(self._popen.wait)
            failed.callback(self._popen.kill)
            self._pidfd = os.pidfd_open(self._popen.pid)
            failed.pop_all()
        self.pid = self._popen.pid

    async def up(self) -> bool:
        with anyio.move_on_after(_UP_WITHIN_SECONDS):
            await anyio.wait_readable(self._channel)
            return any(kind == guard.UP for kind, _ in self.receive())
        return False

    def on_readable(self, call: Callable[[], None]) -> None:
        self._loop.add_reader(self._channel, call)

    def send(self, packet: bytes, pidfd: int | None = None) -> None:
        """From any thread. A guard that takes nothing is none: it is ended, and another takes its place."""
        if self._at_fault:
            return
        ancillary = [] if pidfd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [pidfd]))]
        try:
            with suppress(BlockingIOError):
                self._channel.sendmsg([packet], ancillary)
                return
            patience = select.poll()
            patience.register(self._channel, select.POLLOUT)
            patience.poll(_TAKES_WITHIN_MILLISECONDS)
            self._channel.sendmsg([packet], ancillary)
        except OSError as error:
            self._at_fault = True
            log.error("the guard takes no message any more (%s)", error)
            self.kill()

    def receive(self) -> list[tuple[bytes, int]]:
        """What it has told, and of which child; nothing more comes from one that has died."""
        told: list[tuple[bytes, int]] = []
        while True:
            try:
                packet = self._channel.recv(guard.PACKET_BYTES_MAX)
            except BlockingIOError:
                return told
            except ConnectionResetError:  # it died without hearing us out; what it had said before is still there
                continue
            if not packet:
                self._loop.remove_reader(self._channel)
                return told
            told += [(kind, key) for kind, key, _ in guard.RECORD.iter_unpack(packet)]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def dead(self) -> None:
        await anyio.wait_readable(self._pidfd)

    async def gone(self) -> str:
        """Wait until it is dead, let go of what belonged to it, and tell how it ended."""
        with anyio.move_on_after(_GONE_WITHIN_SECONDS, shield=True):
            await self.dead()
        self._loop.remove_reader(self._channel)
        self._channel.close()
        os.close(self._pidfd)
        exit_code = self._popen.poll()
        return f"exit code {exit_code}" if exit_code is None or exit_code >= 0 else signal.Signals(-exit_code).name


def _execute(channel: int, supervisor_pidfd: int) -> subprocess.Popen[bytes]:
    isolated = ["-I", "-S"]  # nothing but the standard library can be imported
    descriptors = (channel, supervisor_pidfd)
    environment = {name: os.environ[name] for name in _INTERPRETER_VARIABLES if name in os.environ}
    return subprocess.Popen(
        [os.fsdecode(spawn.get_executable()), *isolated, guard.__file__, *map(str, descriptors), MARKER],
        pass_fds=descriptors,
        env={**environment, MARKER: marker()},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
