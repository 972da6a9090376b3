"""The child's end of its orders: taken one by one, when it is ready for the next.

Each is taken by taking its permit. What has not been taken, the supervisor may take back meanwhile. Two threads come
here: that in which jobs are executed takes orders, that which listens to the control pipe brings long ones, cancels,
and stops.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import sleep  # a job may put something else in its place

from durablestack.jobs.context import CancelFlag

from . import wire
from .isolation import out_of_the_way

_AT_ONCE = socket.MSG_DONTWAIT
_NO_MEMORY_PAUSE_SECONDS = 0.05


class OrdersLost(Exception):
    """A job has closed what they come through, or something else wrote to it."""


Taken = tuple[wire.Execute, CancelFlag]


class Orders:
    def __init__(self, windows: socket.socket, permits: Connection) -> None:
        fd = out_of_the_way(windows.fileno())
        windows.close()
        self._windows = socket.socket(fileno=fd)
        self._permits = out_of_the_way(permits.fileno())  # not blocking
        permits.close()
        self._poll = select.poll()
        self._poll.register(self._permits, select.POLLIN)
        self._poll.register(self._windows, 0)  # which wakes us once it is shut down
        self._ahead: deque[tuple[bytes, wire.Execute | wire.Follows]] = deque()  # with the permits of their generations
        self._long: SimpleQueue[wire.Execute] = SimpleQueue()
        self._lock = threading.Lock()  # over the three below
        self._number = -1
        self._flag = CancelFlag()
        self._cancelled: int | None = None
        self._stopped = threading.Event()
        os.register_at_fork(after_in_child=self._close)

    # --- the thread in which jobs are executed

    def waiting(self) -> Taken | None:
        """The next order, if there is one.

        Raises:
            OrdersLost: none can come any more.
        """
        permit = self._take_permit()
        return None if permit is None else self._begin(self._order_of(permit))

    def take(self) -> Taken | None:
        """Wait for the next order; None once it was said that none comes.

        Raises:
            OrdersLost: none can come any more.
        """
        while True:
            self._wait()
            is_last_look = self._stopped.is_set()
            if (taken := self.waiting()) is not None or is_last_look:
                return taken

    @property
    def some_follow(self) -> bool:
        """Whether it seems so: they may have been taken back."""
        return bool(self._ahead)

    def wait_stopped(self) -> None:
        """Take nothing more, whatever is there: it is to be done elsewhere."""
        self._stopped.wait()

    def _take_permit(self) -> bytes | None:
        while True:
            try:
                permit = os.read(self._permits, wire.PERMIT.size)
            except BlockingIOError:
                return None
            except OSError as error:
                raise OrdersLost from error
            except MemoryError:  # a run has taken all there is; once it has ended there is more
                sleep(_NO_MEMORY_PAUSE_SECONDS)
                continue
            if len(permit) != wire.PERMIT.size:
                raise OrdersLost
            return permit

    def _order_of(self, permit: bytes) -> wire.Execute | wire.Follows:
        """The first one of its generation. Those before it are void: taken back, or without room for their permits."""
        while True:
            while self._ahead:
                permitted_by, order = self._ahead.popleft()
                if permitted_by == permit:
                    return order
            window = self._receive()
            permitted_by = wire.PERMIT.pack(window.generation)
            self._ahead.extend((permitted_by, order) for order in window.orders)

    def _receive(self) -> wire.Window:
        message: bytes | None = None
        while True:
            try:
                if message is None:
                    message = self._windows.recv(2 * wire.MESSAGE_BYTES_MAX, _AT_ONCE)
                order = wire.decode_order(wire.only_body(message))
            except MemoryError:
                sleep(_NO_MEMORY_PAUSE_SECONDS)
                continue
            except Exception as error:  # also if there is none: it was sent before its permits
                raise OrdersLost from error
            if not isinstance(order, wire.Window):
                raise OrdersLost
            return order

    def _begin(self, order: wire.Execute | wire.Follows) -> Taken:
        if isinstance(order, wire.Follows):
            order = self._brought(order.number)
        flag = CancelFlag()
        with self._lock:
            self._number, self._flag = order.number, flag
            if self._cancelled == order.number:
                flag.set()
        return order, flag

    def _brought(self, number: int) -> wire.Execute:
        """One that was taken back before may have come too."""
        while (order := self._long.get()).number != number:
            continue
        return order

    def _wait(self) -> None:
        try:
            events = self._poll.poll()
        except MemoryError:
            sleep(_NO_MEMORY_PAUSE_SECONDS)
            return
        if any(event & select.POLLNVAL for _, event in events):  # a job has closed one of them
            raise OrdersLost

    # --- the thread that listens

    def bring(self, order: wire.Execute) -> None:
        """One that was too long for a window."""
        self._long.put(order)

    def cancel(self, number: int) -> None:
        """Of an order that is being executed, or will be taken."""
        with self._lock:
            self._cancelled = number
            flag = self._flag if number == self._number else None
        if flag is not None:
            flag.set()

    def stop(self) -> None:
        """What is there may still be taken; nothing comes after it."""
        self._stopped.set()
        try:
            self._windows.shutdown(socket.SHUT_RDWR)
        except OSError:  # a job has closed it
            return

    # --- a process that a job forks

    def _close(self) -> None:
        self._windows.close()
        try:
            os.close(self._permits)
        except OSError:
            return
