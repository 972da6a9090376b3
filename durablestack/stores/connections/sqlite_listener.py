"""Hears of writes to a SQLite file: each is a write to its write-ahead log, of which the kernel tells.

The log is not opened for that: whoever closes one of SQLite's files takes the locks of all its connections along.
Where the kernel does not tell (inotify is Linux's), the time and the size of the log are looked at now and then.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path

import anyio

_LOOK_EVERY_SECONDS = 0.1
_OTHERS_APART_SECONDS = 0.01
"""What is written to other files of the folder meanwhile is looked at once."""

_CLOCK_STEP_NS = 20_000_000
"""File systems note the time of a write by a clock that goes in steps, of 10 ms at most."""

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_Q_OVERFLOW = 0x2, 0x80, 0x100, 0x4000
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_EVENTS_BYTES_MAX = 65_536

Mark = tuple[int, int, bool] | None


class SqliteListener:
    """Any write is heard, our own too: a claim that finds nothing writes nothing, so that this comes to an end.

    It is heard while it is under way; a claim waits for the lock of the writer, and then sees what was written.
    """

    def __init__(self, path: Path) -> None:
        self._log = Path(f"{os.path.realpath(path)}-wal")  # SQLite follows links too
        self._watch: int | None = None
        self._mark: Mark = None
        self._just_opened = False

    async def open(self) -> None:
        self._watch = _watch(self._log.parent)
        self._mark = self._last_write()
        self._just_opened = True

    async def works(self) -> bool:
        return True

    async def heard(self) -> bool:
        if self._just_opened:  # of what came before nothing was heard
            self._just_opened = False
        elif self._watch is not None:
            await self._told(self._watch)
        else:
            await self._seen()
        return False

    async def _told(self, watch: int) -> None:
        while True:
            await anyio.wait_readable(watch)
            if _tells_of(os.read(watch, _EVENTS_BYTES_MAX), self._log.name.encode()):
                return
            await anyio.sleep(_OTHERS_APART_SECONDS)

    async def _seen(self) -> None:
        before = self._mark
        while True:
            self._mark = self._last_write()
            if self._mark != before:
                return
            await anyio.sleep(_LOOK_EVERY_SECONDS)

    def _last_write(self) -> Mark:
        """When it was, the size of the log, and whether it is so recent that there may have been another since."""
        try:
            found = os.stat(self._log)
        except OSError:  # nobody has written since the last one left
            return None
        return found.st_mtime_ns, found.st_size, time.time_ns() - found.st_mtime_ns < _CLOCK_STEP_NS

    async def close(self) -> None:
        if self._watch is not None:
            os.close(self._watch)
        self._watch = None


def _watch(folder: Path) -> int | None:
    """A descriptor that is readable when a file in the folder was written to; None where there is none to be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        return None
    watch: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if watch < 0:
        return None
    if libc.inotify_add_watch(watch, os.fsencode(folder), _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE) < 0:
        os.close(watch)
        return None
    return watch


def _tells_of(events: bytes, name: bytes) -> bool:
    """Whether there is an event of that file among these, or of who knows what."""
    at = 0
    while at < len(events):
        _, mask, _, length = _EVENT.unpack_from(events, at)
        at += _EVENT.size + length
        if mask & _IN_Q_OVERFLOW or events[at - length : at].rstrip(b"\0") == name:
            return True
    return False
