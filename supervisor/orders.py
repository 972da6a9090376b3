"""The child's end of its orders: taken one by one, when it is ready for the next.

What has not been taken, the supervisor may take back meanwhile. Two threads come here: that in which jobs are executed
takes orders, that which listens to the control pipe brings long ones, cancels, and stops.
"""

from __future__ import annotations

import os
import socket
import threading
from queue import SimpleQueue
from time import sleep  # a job may put something else in its place

from durablestack.jobs.context import CancelFlag

from . import wire
from .isolation import out_of_the_way

_NO_MEMORY_PAUSE_SECONDS = 0.05


class OrdersLost(Exception):
    """A job has closed the socket, or something else wrote to it."""


class Orders:
    def __init__(self, orders: socket.socket) -> None:
        fd = out_of_the_way(orders.fileno())
        orders.close()
        self._socket = socket.socket(fileno=fd)
        self._long: SimpleQueue[wire.Execute] = SimpleQueue()
        self._lock = threading.Lock()  # over the three below
        self._number = -1
        self._flag = CancelFlag()
        self._cancelled: int | None = None
        self._stopped = threading.Event()
        os.register_at_fork(after_in_child=self._socket.close)

    # --- the thread in which jobs are executed

    def waiting(self) -> tuple[wire.Execute, CancelFlag] | None:
        """The next order, if there is one."""
        return self._take(socket.MSG_DONTWAIT)

    def take(self) -> tuple[wire.Execute, CancelFlag] | None:
        """Wait for the next order; None once it was said that none comes.

        Raises:
            OrdersLost: none can come any more.
        """
        return self._take(0)

    def wait_stopped(self) -> None:
        """Take nothing more, whatever is there: it is to be done elsewhere."""
        self._stopped.wait()

    def _take(self, flags: int) -> tuple[wire.Execute, CancelFlag] | None:
        message = self._receive(flags)
        if not message:
            return None
        try:
            order = wire.decode_order(wire.only_body(message))
        except Exception as error:
            raise OrdersLost from error
        if isinstance(order, wire.Follows):
            order = self._brought(order.number)
        if not isinstance(order, wire.Execute):
            raise OrdersLost
        with self._lock:
            self._number, self._flag = order.number, CancelFlag()
            if self._cancelled == order.number:
                self._flag.set()
            return order, self._flag

    def _receive(self, flags: int) -> bytes:
        while True:
            try:
                return self._socket.recv(2 * wire.MESSAGE_BYTES_MAX, flags)
            except BlockingIOError:
                return b""
            except OSError as error:
                raise OrdersLost from error
            except MemoryError:  # a run has taken all there is; once it has ended there is more
                sleep(_NO_MEMORY_PAUSE_SECONDS)

    def _brought(self, number: int) -> wire.Execute:
        """One that was taken back before may have come too."""
        while (order := self._long.get()).number != number:
            continue
        return order

    # --- the thread that listens

    def bring(self, order: wire.Execute) -> None:
        """One that was too long for a message."""
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
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:  # a job has closed it
            return
