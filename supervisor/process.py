"""One child process, seen from the supervisor: started, spoken to, listened to, ended, and its death learnt.

Death is learnt from the process itself (a pidfd, or multiprocessing's sentinel), never from the pipe, whose other
end something that the child left behind may hold open. Whatever the child managed to say before is read first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import anyio
from msgspec import Struct

from durablestack.runs import Output

from . import child, guard, usage, wire
from .capture import Capture
from .isolation import STACK_SIGNAL
from .starter import Process, Starter

log = logging.getLogger(__name__)

_RECEIVE_BYTES = 65536
_STACK_BYTES_MAX = 32_768
_KILLED_WITHIN_SECONDS = 5.0
_PIPE_CLOSED_GRACE_SECONDS = 1.0


class Death(Struct, frozen=True):
    """How a process ended. `exit_code` as multiprocessing has it: negative for a signal; None if it is not known.

    `reason` is what made us end it, if the pipe was at fault.
    """

    exit_code: int | None
    reason: str | None = None
    by_guard: bool = False
    out_of_memory: bool = False

    @property
    def code(self) -> int | None:
        """What it left with by itself."""
        return self.exit_code if self.exit_code is None or self.exit_code >= 0 else None

    @property
    def signal_name(self) -> str | None:
        if self.exit_code is None or self.exit_code >= 0:
            return None
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"SIG{-self.exit_code}"

    @property
    def how(self) -> str:
        return self.signal_name or f"exit code {self.exit_code}"


class ChildProcess:
    """Started by `start`, and gone after `end`. `send`, `trust_until`, `kill` and the ways to signal it may be called
    from any thread, at any time."""

    def __init__(self, starter: Starter, *, output_bytes_max: int, name: str) -> None:
        self.on_reply: Callable[[wire.Reply], None] = lambda reply: None
        self.on_gone: Callable[[], None] = lambda: None
        self.gone = False
        self.killed_by_guard = False
        self.pid = 0
        self._starter = starter
        self._output_bytes_max = output_bytes_max
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._frames = wire.FrameReader(wire.REPLY_BYTES_MAX)
        self._unsent = bytearray()
        self._send_lock = threading.Lock()  # over what is unsent
        self._fault: str | None = None
        self._signal_lock = threading.Lock()
        self._alive = False  # written under the lock by start and end, read under it by whoever signals
        self.killed = False  # by us; written under the lock
        self._process: Process | None = None
        self._pidfd: int | None = None

    # --- begin

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        context = self._starter.context
        stdout, child_stdout = context.Pipe(duplex=False)
        stderr, child_stderr = context.Pipe(duplex=False)
        stacks, child_stacks = context.Pipe(duplex=False)
        process = context.Process(
            target=child.main,
            args=(theirs, child_stdout, child_stderr, child_stacks, self._starter.targets, self._starter.settings),
            name=self._name,
        )
        try:
            await self._starter.start(process, lent=(theirs, child_stdout, child_stderr, child_stacks))
        except BaseException:
            for end in (ours, stdout, stderr, stacks):
                end.close()
            raise
        self._begin(process, ours, stdout, stderr, stacks)

    def _begin(
        self,
        process: Process,
        control: socket.socket,
        stdout: Connection,
        stderr: Connection,
        stacks: Connection,
    ) -> None:
        assert process.pid is not None
        self._process, self.pid, self._control = process, process.pid, control
        with self._signal_lock:
            self._alive = True
        with contextlib.suppress(OSError, AttributeError):  # dead and buried already, or not Linux
            self._pidfd = os.pidfd_open(self.pid)
        looked = usage.look(self.pid)
        self._started_at = looked.started_at if looked is not None else None
        self._starter.guard.adopt(self)
        self._stdout = Capture(stdout, self._output_bytes_max)
        self._stderr = Capture(stderr, self._output_bytes_max)
        self._stacks = Capture(stacks, _STACK_BYTES_MAX)
        control.setblocking(False)
        self._loop.add_reader(control, self._on_readable)

    # --- speak and listen

    def send(self, order: wire.Order) -> None:
        """Send, from any thread, without ever waiting for the child. To a child that is gone it is sent in vain."""
        with self._send_lock:
            self._unsent += wire.frame(order)
            everything_sent = self._send_some()
        if not everything_sent:
            self._loop.call_soon_threadsafe(self._send_more)

    def _send_more(self) -> None:
        with self._send_lock:
            everything_sent = self._send_some()
        if everything_sent:
            self._loop.remove_writer(self._control)
        else:
            self._loop.add_writer(self._control, self._send_more)

    def _send_some(self) -> bool:
        try:
            while self._unsent:
                del self._unsent[: self._control.send(self._unsent)]
        except BlockingIOError:
            return False
        except OSError:  # the death of the child is learnt elsewhere
            self._unsent.clear()
        return True

    def trust_until(self, boottime: float | None) -> None:
        """From any thread: by when the child has to be dead, should we not be there to see to it; None: it may live."""
        self._starter.guard.trust_until(self, boottime)

    def _on_readable(self) -> None:
        try:
            received = self._control.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._loop.remove_reader(self._control)
            self._loop.call_later(_PIPE_CLOSED_GRACE_SECONDS, self._at_fault, "it closed its control pipe")
            return
        try:
            for body in self._frames.feed(received):
                self.on_reply(wire.decode_reply(body))
        except wire.ProtocolError as error:
            self._loop.remove_reader(self._control)
            self._at_fault(f"it sent {error}")

    def _at_fault(self, reason: str) -> None:
        if self._alive and not self.gone:  # nor is one at fault that has died, and whose exit code is being asked for
            self._fault = self._fault or reason
            self.kill()

    def take_output(self) -> Output:
        """What was written to standard output and standard error since this was last asked."""
        return Output(self._stdout.take(), self._stderr.take())

    def take_stack(self) -> str | None:
        """The Python stacks that it told since this was last asked: when it was asked to, or because it crashed."""
        return self._stacks.take()

    # --- end

    @property
    def pidfd(self) -> int | None:
        return self._pidfd

    def kill(self) -> None:
        """End the child now, and with it whatever it is doing and has started, wherever that went."""
        with self._signal_lock:
            self.killed = True
            if self._alive and self._pidfd is not None:
                guard.end([guard.Child(self.pid, self._pidfd)])
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        with self._signal_lock:
            if not self._alive:  # its number may be somebody else's by now
                return
            self._signal_all(number)
            self._signal_one(number)  # it may not lead its group yet

    def ask_for_stack(self) -> None:
        """A job may have set all signals back, and its process would die of ours: then it is not asked."""
        with self._signal_lock:
            if self._alive and usage.catches(self.pid, STACK_SIGNAL):
                self._signal_one(STACK_SIGNAL)

    def _signal_one(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def _signal_all(self, number: int) -> None:
        """Its group, whose number nobody else gets while anyone of it lives. If the child is dead, and a process has
        its number that began at another time, none does, and the group is that one's."""
        if self._pidfd is not None and guard.readable(self._pidfd):
            now = usage.look(self.pid)
            if now is not None and now.started_at != self._started_at:
                return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def dead(self) -> Death:
        """Wait for the death of the child; read what it still had to say; end what it left running."""
        assert self._process is not None
        await anyio.wait_readable(self._process.sentinel if self._pidfd is None else self._pidfd)
        self.gone = True
        self.on_gone()
        with anyio.CancelScope(shield=True):
            self._signal_all(signal.SIGKILL)  # the group alone: the number of the child itself is free again
            self._drain_control()
            exit_code = await self._starter.exit_code(self._process)
        with self._signal_lock:
            self._alive = False
        if exit_code == child.EXIT_ORPHANED and self._fault is None:
            self._fault = "it lost its control pipe"
        self._starter.guard.hear()
        return Death(exit_code, self._fault, self.killed_by_guard, self._ran_out_of_memory(exit_code))

    def _ran_out_of_memory(self, exit_code: int | None) -> bool:
        by_somebody_else = exit_code == -signal.SIGKILL and not self.killed and not self.killed_by_guard
        return by_somebody_else and self._starter.oom_kills.explain_one()

    def _drain_control(self) -> None:
        """A reply that was sent whole counts, however the child ended after it."""
        with contextlib.suppress(OSError, wire.ProtocolError):
            while received := self._control.recv(_RECEIVE_BYTES):
                for body in self._frames.feed(received):
                    self.on_reply(wire.decode_reply(body))

    async def end(self) -> None:
        """Kill the child if it lives, wait until it is gone, and let go of all that belonged to it."""
        if self._process is None:
            return
        with anyio.move_on_after(_KILLED_WITHIN_SECONDS, shield=True):
            if self._alive:
                self.kill()
                await self.dead()
        if self._alive:
            log.error("child %d cannot be killed: it waits in the kernel for something that does not come", self.pid)
        self._starter.guard.forget(self)
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        self._stdout.close()
        self._stderr.close()
        self._stacks.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        with contextlib.suppress(ValueError):  # it lives
            self._process.close()
