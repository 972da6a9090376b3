"""What a child writes to standard output and standard error: read as it comes, of which the tail is kept."""

from __future__ import annotations

import asyncio
import os
from multiprocessing.connection import Connection

from durablestack.text import clean

_READ_BYTES = 65536
_BYTES_PER_SECOND_MAX = 4 * 1024 * 1024
_DRAIN_BYTES_MAX = 1024 * 1024


class Capture:
    """One stream of one child. Holds at most `bytes_max` bytes, and never keeps the event loop busy with a flood:
    a child that writes faster than we care to read waits in its own write."""

    def __init__(self, stream: Connection, bytes_max: int) -> None:
        self._stream = stream
        self._fd = stream.fileno()
        self._bytes_max = bytes_max
        self._tail = bytearray()
        self._bytes_cut = 0
        self._bytes_read_lately = 0
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._open = True
        self._listens = True
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._on_readable)

    def listens(self, listens: bool) -> None:
        """Whether what is written is read as it comes, or only when it is asked for."""
        if listens == self._listens:
            return
        self._listens = listens
        if not self._open or self._pause is not None:
            return
        if listens:
            self._loop.add_reader(self._fd, self._on_readable)
        else:
            self._loop.remove_reader(self._fd)

    @property
    def has_some(self) -> bool:
        """Whether something was read that has not been taken."""
        return bool(self._tail or self._bytes_cut)

    def take(self) -> str | None:
        """What was written since the last time, cleaned; None if nothing was."""
        self._drain()
        return self._taken() if self.has_some else None

    def take_with(self, received: bytes) -> str | None:
        """What was written since the last time, of which somebody else has read the end; what comes after it stays."""
        if received:
            self._keep(received)
        return self._taken() if self.has_some else None

    def _taken(self) -> str | None:
        text = bytes(self._tail).decode("utf-8", "replace")
        if self._bytes_cut:
            text = f"[{self._bytes_cut} bytes before this were not kept]\n{text}"
        self._tail.clear()
        self._bytes_cut = 0
        return clean(text, self._bytes_max + 100) or None

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._stop_reading()
        if not self._stream.closed:
            self._stream.close()

    def _on_readable(self) -> None:
        self._read()
        if self._bytes_read_lately > _BYTES_PER_SECOND_MAX and self._open:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(1.0, self._resume)

    def _resume(self) -> None:
        self._bytes_read_lately = 0
        self._pause = None
        if self._open and self._listens:
            self._loop.add_reader(self._fd, self._on_readable)

    def _read(self) -> int:
        """Read once; return how many bytes came, 0 when there are none now, or none any more."""
        if not self._open:
            return 0
        try:
            received = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            received = b""
        if not received:
            self._stop_reading()
        self._keep(received)
        self._bytes_read_lately += len(received)
        return len(received)

    def _keep(self, received: bytes) -> None:
        self._tail += received
        excess = len(self._tail) - self._bytes_max
        if excess > 0:
            del self._tail[:excess]
            self._bytes_cut += excess

    def _drain(self) -> None:
        drained = 0
        while drained < _DRAIN_BYTES_MAX and (received := self._read()):
            drained += received

    def _stop_reading(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
