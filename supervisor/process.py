"""One child process, seen from the supervisor: started, spoken to, listened to, ended, and its death learnt.

Death is learnt from the process itself (a pidfd, or multiprocessing's sentinel), never from the pipe, whose other
end something that the child left behind may hold open. Whatever the child managed to say before is read first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection

import anyio
from msgspec import Struct, structs

from durablestack.runs import NO_OUTPUT, Output

from . import child, guard, usage, wire
from .capture import Capture
from .control_pipe import ControlPipe
from .death import Death
from .isolation import STACK_SIGNAL
from .order_pipe import OrderPipe
from .starter import Process, Starter

log = logging.getLogger(__name__)

_ORDERS_BYTES = 1024 * 1024
"""As many may wait for a child; of which the system gives what it will."""

_MESSAGES = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
_STACK_BYTES_MAX = 32_768
_KILLED_WITHIN_SECONDS = 5.0


class _Ends(Struct, frozen=True):
    """Ours of what leads to a child; `untaken` is the child's end of `permits`."""

    control: socket.socket
    orders: socket.socket
    permits: Connection
    untaken: Connection
    stdout: Connection
    stderr: Connection
    stacks: Connection


class ChildProcess:
    """Started by `start`, and gone after `end`. `send`, `trust_until`, `kill` and the ways to signal it may be called
    from any thread, at any time."""

    def __init__(self, starter: Starter, *, output_bytes_max: int, name: str) -> None:
        self.on_replies: Callable[[Sequence[wire.Reply]], None] = lambda replies: None
        self.on_gone: Callable[[], None] = lambda: None
        self.gone = False
        self.tells_beginnings = False  # of runs, once it is ready
        self.killed_by_guard = False
        self.pid = 0
        self._starter = starter
        self._output_bytes_max = output_bytes_max
        self._name = name
        self._listens = True  # to output
        self._asked_for_stack = False
        self._fault: str | None = None
        self._signal_lock = threading.Lock()
        self._alive = False  # written under the lock by start and end, read under it by whoever signals
        self.killed = False  # by us; written under the lock
        self._process: Process | None = None
        self._pidfd: int | None = None

    # --- begin

    async def start(self) -> None:
        ours, lent = self._new_ends()
        process = self._starter.context.Process(
            target=child.main, args=(lent, self._starter.targets, self._starter.settings), name=self._name
        )
        try:
            await self._starter.start(process, lent=structs.astuple(lent))
        except BaseException:
            for end in structs.astuple(ours):
                end.close()
            raise
        self._begin(process, ours)

    def _new_ends(self) -> tuple[_Ends, child.Ends]:
        """Ours, and the child's. The end from which it takes its permits is ours too, to take them back; each side has
        descriptors of its own, for a start that is abandoned goes on for a moment."""
        pipe = partial(self._starter.context.Pipe, duplex=False)
        control, child_control = socket.socketpair()
        orders, child_orders = socket.socketpair(type=_MESSAGES)
        orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ORDERS_BYTES)
        (child_permits, permits), (stdout, child_stdout), (stderr, child_stderr), (stacks, child_stacks) = (
            pipe() for _ in range(4)
        )
        os.set_blocking(permits.fileno(), False)
        os.set_blocking(child_permits.fileno(), False)  # for either side
        untaken, *readers = [
            Connection(os.dup(end.fileno()), writable=False) for end in (child_permits, stdout, stderr)
        ]
        lent = (child_control, child_orders, child_permits, child_stdout, child_stderr, child_stacks)
        return _Ends(control, orders, permits, untaken, stdout, stderr, stacks), child.Ends(*lent, *readers)

    def _begin(self, process: Process, ends: _Ends) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid
        self.control = ControlPipe(ends.control, self.on_replies, self._at_fault)
        self.orders = OrderPipe(ends.orders, ends.permits, ends.untaken, self.send)
        with self._signal_lock:
            self._alive = True
        with contextlib.suppress(OSError, AttributeError):  # dead and buried already, or not Linux
            self._pidfd = os.pidfd_open(self.pid)
        looked = usage.look(self.pid)
        self._started_at = looked.started_at if looked is not None else None
        self._starter.guard.adopt(self)
        self._stdout = Capture(ends.stdout, self._output_bytes_max)
        self._stderr = Capture(ends.stderr, self._output_bytes_max)
        self._stacks = Capture(ends.stacks, _STACK_BYTES_MAX)

    # --- speak and listen

    def send(self, message: wire.Order) -> None:
        """Tell the child something beside its orders. To one that is gone it is sent in vain."""
        self.control.send(message)

    def trust_until(self, boottime: float | None) -> None:
        """From any thread: by when the child has to be dead, should we not be there to see to it; None: it may live."""
        self._starter.guard.trust_until(self, boottime)

    def _at_fault(self, reason: str) -> None:
        if self._alive and not self.gone:  # nor is one at fault that has died, and whose exit code is being asked for
            self._fault = self._fault or reason
            self.kill()

    def take_output(self) -> Output:
        """What was written to standard output and standard error since this was last asked."""
        return Output(self._stdout.take(), self._stderr.take())

    @property
    def listens(self) -> bool:
        """Whether what is written is read here at once."""
        return self._listens

    def listens_to_output(self, listens: bool) -> None:
        """Whether what is written is read here at once. Else its child reads and tells it, and this is asked for it
        only if that does not come about, since it dies or takes its time."""
        self._listens = listens
        self._stdout.listens(listens)
        self._stderr.listens(listens)

    def told_outputs(self, replies: Sequence[wire.Succeeded | wire.Failed]) -> list[Output]:
        """What was written, by the replies that end with it; before that comes what is here already."""
        some_here = self._stdout.has_some or self._stderr.has_some
        return [
            Output(self._stdout.take_with(reply.stdout), self._stderr.take_with(reply.stderr))
            if reply.stdout or reply.stderr or some_here
            else NO_OUTPUT
            for reply in replies
        ]

    def take_stack(self) -> str | None:
        """The Python stacks that it told since this was last asked: when it was asked to, or because it crashed."""
        return self._stacks.take()

    def forget_stack(self) -> None:
        """What it was asked for before is not of the next run."""
        if self._asked_for_stack:
            self._asked_for_stack = False
            self._stacks.take()

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
                self._asked_for_stack = True
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
            self.control.drain()
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
        self.control.close()
        self.orders.close()
        self._stdout.close()
        self._stderr.close()
        self._stacks.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        with contextlib.suppress(ValueError):  # it lives
            self._process.close()
