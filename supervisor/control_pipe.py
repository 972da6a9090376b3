"""Our end of the control pipe of a child: what it is told beside its orders, and all that it replies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

from . import wire

_RECEIVE_BYTES = 65536
_CLOSED_GRACE_SECONDS = 1.0


class ControlPipe:
    """To be made on the event loop, on which `on_replies` and `on_fault` are called, too.

    `on_fault` is told in words what is wrong with the pipe; nothing more is to be expected of it.
    """

    def __init__(
        self,
        control: socket.socket,
        on_replies: Callable[[Sequence[wire.Reply]], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self._control = control
        self._on_replies = on_replies
        self._on_fault = on_fault
        self._loop = asyncio.get_running_loop()
        self._frames = wire.FrameReader(wire.REPLY_BYTES_MAX)
        self._hears = True
        self._deaf = False
        self._unsent = bytearray()
        self._send_lock = threading.Lock()  # over what is unsent
        control.setblocking(False)
        self._loop.add_reader(control, self._on_readable)

    # --- speak

    def send(self, message: wire.Order) -> None:
        """Send, from any thread, without ever waiting for the child. To a child that is gone it is sent in vain."""
        with self._send_lock:
            self._unsent += wire.frame(message)
            everything_sent = self._send_some()
        if not everything_sent:
            self._loop.call_soon_threadsafe(self._send_more)

    def _send_more(self) -> None:
        if self._control.fileno() < 0:  # closed meanwhile
            return
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

    # --- listen

    def hears(self, at_once: bool) -> None:
        """Whether replies are heard as they come, or only when there is a `look`, which costs both sides less where
        there are many."""
        if at_once == self._hears or self._deaf:
            return
        self._hears = at_once
        if at_once:
            self._loop.add_reader(self._control, self._on_readable)
        else:
            self._loop.remove_reader(self._control)

    def look(self) -> None:
        """Hear what came meanwhile, if replies are not heard as they come."""
        if not self._hears and not self._deaf:
            self._on_readable()

    def drain(self) -> None:
        """The child is dead: a reply that it sent whole counts, however it ended after it."""
        with contextlib.suppress(OSError):
            while not self._deaf and (received := self._control.recv(_RECEIVE_BYTES)):
                self._take_in(received)
        self._hear_no_more()

    def _hear_no_more(self) -> None:
        self._deaf = True
        self._loop.remove_reader(self._control)

    def _on_readable(self) -> None:
        try:
            received = self._control.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._hear_no_more()
            self._loop.call_later(_CLOSED_GRACE_SECONDS, self._on_fault, "it closed its control pipe")
            return
        self._take_in(received)

    def _take_in(self, received: bytes) -> None:
        replies: list[wire.Reply] = []
        fault: wire.ProtocolError | None = None
        try:
            for body in self._frames.feed(received):
                replies.append(wire.decode_reply(body))
        except wire.ProtocolError as error:
            fault = error
        self._on_replies(replies)
        if fault is not None:
            self._hear_no_more()
            self._on_fault(f"it sent {fault}")

    def close(self) -> None:
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
