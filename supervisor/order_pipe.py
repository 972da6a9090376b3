"""Our ends of what leads orders to a child: they are put for it, and taken back while it has not taken them.

What a child's end makes of them is in `orders`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from . import guard, wire

_PERMITS_MAX = select.PIPE_BUF // wire.PERMIT.size


class OrderPipe:
    """`untaken` is the child's end of `permits`. What is too long for a message goes by `send_long`."""

    def __init__(
        self,
        orders: socket.socket,
        permits: Connection,
        untaken: Connection,
        send_long: Callable[[wire.Execute], None],
    ) -> None:
        self._orders = orders
        self._permits = permits
        self._untaken = untaken
        self._send_long = send_long
        self._generation = 0  # of orders

    def put(self, orders: Sequence[wire.Execute]) -> int:
        """Give the child orders, to be taken after those that it has; return how many, from the first one on: there may
        be no room for all. Those that are put in vain, for the child is gone, are taken back."""
        message = wire.frame(wire.Window(self._generation, list(orders)))
        is_long = len(message) > wire.MESSAGE_BYTES_MAX
        if is_long or len(orders) > _PERMITS_MAX:
            if len(orders) > 1:
                first = orders[: len(orders) // 2]
                count = self.put(first)
                return count if count < len(first) else count + self.put(orders[count:])
            message = wire.frame(wire.Window(self._generation, [wire.Follows(orders[0].number)]))
        try:
            self._orders.send(message, socket.MSG_DONTWAIT)
        except ConnectionError:  # the death of the child is learnt elsewhere
            pass
        except OSError:  # no room, or no memory
            return 0
        if is_long:
            self._send_long(orders[0])
        try:
            os.write(self._permits.fileno(), wire.PERMIT.pack(self._generation) * len(orders))
        except BlockingIOError:
            self._void()
            return 0
        return len(orders)

    def take_back(self) -> int:
        """Take back the orders that the child has not taken; return how many: the latest ones."""
        bytes_taken = 0
        with contextlib.suppress(BlockingIOError):
            while taken := os.read(self._untaken.fileno(), select.PIPE_BUF):
                bytes_taken += len(taken)
        if bytes_taken:
            self._void()
        return bytes_taken // wire.PERMIT.size

    def _void(self) -> None:
        """Orders without permits are not to be taken for those that come after them."""
        self._generation = (self._generation + 1) % wire.GENERATIONS

    @property
    def has_untaken(self) -> bool:
        """Whether there is an order that the child has not taken."""
        return guard.readable(self._untaken.fileno())

    def close(self) -> None:
        self._orders.close()
        self._permits.close()
        self._untaken.close()
