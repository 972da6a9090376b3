"""Run ids: UUIDv7 (RFC 9562), so that ids sort by the time they were drawn and indexes stay compact."""

from __future__ import annotations

import os
import struct
import threading
import time
from uuid import UUID

import msgspec

_lock = threading.Lock()
_latest = 0
_as_bytes = struct.Struct(">QQ").pack


def new_run_id() -> UUID:
    """A fresh UUIDv7. Ids drawn in one process increase strictly."""
    return UUID(bytes=_bytes(_next_stamp(1), int.from_bytes(os.urandom(8), "big")))


def new_run_ids(count: int) -> list[UUID]:
    """So many, in their order."""
    first = _next_stamp(count)
    random = memoryview(os.urandom(8 * count)).cast("Q")
    ids = [_bytes(stamp, each) for stamp, each in zip(range(first, first + count), random, strict=True)]
    return msgspec.convert(ids, list[UUID])  # in a third of the time that `UUID` takes


def _next_stamp(count: int) -> int:
    """The first of so many."""
    global _latest
    with _lock:
        # 48 bits of milliseconds, then 12 bits of the millisecond's fraction: RFC 9562, 6.2, method 3
        milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
        first = max((milliseconds << 12) | (nanoseconds * 4096 // 1_000_000), _latest + 1)
        _latest = first + count - 1
    return first


def _bytes(stamp: int, random_64_bits: int) -> bytes:
    return _as_bytes((stamp >> 12) << 16 | 0x7 << 12 | (stamp & 0xFFF), 0b10 << 62 | random_64_bits >> 2)
