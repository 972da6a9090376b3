"""What a run writes, read by its own child: between two runs that follow each other at once nobody else could tell.

The supervisor reads these pipes too, while a run takes its time: each byte is read once.
"""

from __future__ import annotations

import os
import select
from multiprocessing.connection import Connection

from . import wire
from .isolation import out_of_the_way

_READS_MAX = 16  # somebody may go on writing


class Written:
    """The reading ends of a child's standard output and standard error."""

    def __init__(self, stdout: Connection, stderr: Connection) -> None:
        self._fds = [out_of_the_way(stream.fileno()) for stream in (stdout, stderr)]
        self._poll = select.poll()
        for stream, fd in zip((stdout, stderr), self._fds, strict=True):
            stream.close()
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
            os.register_at_fork(after_in_child=lambda fd=fd: _close(fd))

    def take(self) -> tuple[bytes, bytes]:
        """The ends of what was written since the last time, and has not been read by the supervisor."""
        if not self._poll.poll(0):
            return b"", b""
        stdout, stderr = map(_read, self._fds)
        return stdout, stderr


def _read(fd: int) -> bytes:
    tail = b""
    for _ in range(_READS_MAX):
        try:
            tail = (tail + os.read(fd, wire.OUTPUT_BYTES_MAX))[-wire.OUTPUT_BYTES_MAX :]
        except OSError:  # there is no more, or a job has closed it
            break
    return tail


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return
